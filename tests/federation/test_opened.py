"""Servers of secret shares open what the defence needs, and no more: all products, lengths alone, or only the sum."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from acted import House, messages, options, updates

from fedrobust.experiment import Experiment
from fedrobust.secure.messages import Kind
from fedrobust.secure.sharing import SPARE, SharesPrivacy

N, D = 8, 3_000
NAMES = ("shares", "replicated")
NOBODY = {"detector": "none"}
LENGTHS = {"detector": {"name": "robust_z", "parts": ["norm"]}}
WHOLE = N * (N + 1) // 2
WITH_HISTORY = 2 * N * (2 * N + 1) // 2

OPENED: dict[str, tuple[Any, dict[str, Any], int, tuple[int, int]]] = {
    # stages and rule, trust → products of a round; functionals of the first and of the second round
    "mean": ("mean", NOBODY, 0, (0, 0)),
    "bucketing": ({"rule": "mean", "stages": [{"name": "bucketing", "s": 2}]}, NOBODY, 0, (0, 0)),
    "clip": ({"rule": "mean", "stages": ["clip"]}, NOBODY, N, (0, 0)),
    "arc": ({"rule": "mean", "stages": ["arc"]}, NOBODY, N, (0, 0)),
    "norm bound": ("norm_bound", NOBODY, N, (0, 0)),
    "clip, then buckets": ({"rule": "mean", "stages": ["clip", "bucketing"]}, NOBODY, N, (0, 0)),
    "centred clipping": ("centered_clipping", NOBODY, N, (0, 1)),
    "fltrust": ("fltrust", NOBODY, N, (1, 1)),
    "zeno++ after a clip": ({"rule": "zeno_pp", "stages": ["clip"]}, NOBODY, N, (1, 1)),
    "a mean whose lengths are scored": ("mean", LENGTHS, N, (0, 0)),
    "a mean whose angles are scored": ("mean", {}, WHOLE, (0, 0)),
    "buckets, then a clip": ({"rule": "mean", "stages": ["bucketing", "clip"]}, NOBODY, WHOLE, (0, 0)),
    "three steps of it": ({"rule": {"name": "centered_clipping", "iterations": 3}}, NOBODY, WHOLE, (0, 1)),
    "an estimated f": ({"rule": "mean", "stages": ["arc"], "f": "auto"}, NOBODY, WHOLE, (0, 0)),
    "geometric median": ("geometric_median", NOBODY, WHOLE, (0, 0)),
    "adaptive": ("adaptive", NOBODY, WITH_HISTORY, (0, 0)),
    "a mean beside a consensus": ("mean", {"detector": "consensus"}, WITH_HISTORY, (0, 0)),
}  # fmt: skip


def played(privacy: Any, rule: Any, trust: dict[str, Any], patch: pytest.MonkeyPatch, rounds: int = 2) -> House:
    house = House(options(privacy, rule, trust=trust), D, patch)
    for round in range(rounds):
        house.round(updates(round), root=updates(9)[0] if rule_name(rule) in ("fltrust", "zeno_pp") else None)
    return house


def rule_name(rule: Any) -> Any:
    return rule if isinstance(rule, str) else rule["rule"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", OPENED)
def test_what_is_opened_is_what_is_needed(case: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule, trust, products, functionals = OPENED[case]
    house = played(name, rule, trust, monkeypatch)
    assert [record["products"] for record in house.records] == [products] * 2
    assert tuple(record["functionals"] for record in house.records) == functionals
    size = {0: 0, N: N, WHOLE: N * N, WITH_HISTORY: 4 * N * N}[products]
    kinds = Counter((message.kind, len(message.body) // 8) for message in messages(house))
    assert {words for kind, words in kinds if kind == Kind.GRAM} == ({size} if size else set())
    if not size:
        assert {kind for kind, _ in kinds} == {Kind.SENDERS, Kind.PROJECTIONS, Kind.AGGREGATE}
    clear = played("clear", rule, trust, monkeypatch)
    for ours, theirs in zip(house.records, clear.records, strict=True):
        assert ours["weights"] == pytest.approx(theirs["weights"], abs=1e-5)
        if products:
            assert ours["update_norm"] == pytest.approx(theirs["update_norm"], rel=1e-6)
        assert ours.get("anomaly", {}) == pytest.approx(theirs["anomaly"] if products else {}, abs=1e-4)
    exact = np.linalg.norm(clear.arrays["weights"])
    assert np.linalg.norm(house.arrays["weights"] - clear.arrays["weights"]) < 1e-3 * exact


@pytest.mark.parametrize("name", NAMES)
def test_a_sketch_is_opened_no_further(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sketched = {"name": name, "sketch": 512}
    house = played(sketched, {"rule": "mean", "stages": ["clip"]}, NOBODY, monkeypatch)
    assert [record["products"] for record in house.records] == [N, N]
    lengths = np.array(list(house.records[0]["update_norm"].values()))
    assert np.abs(lengths / np.linalg.norm(updates(0), axis=1) - 1).max() < 0.2
    alone = played(sketched, "mean", NOBODY, monkeypatch)
    assert [record["products"] for record in alone.records] == [0, 0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("rule", "products"), [("mean", 0), ({"rule": "centered_clipping", "stages": ["clip"]}, N)])
def test_parties_that_are_started_again_open_as_little(
    rule: Any, products: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = played(name, rule, NOBODY, monkeypatch)
    house = played(name, rule, NOBODY, monkeypatch, rounds=1)
    for party in house.parties:
        party.alive = False
    house.start(1)
    house.round(updates(1))
    assert [record["products"] for record in house.records] == [products] * 2
    assert house.records[1]["functionals"] == whole.records[1]["functionals"] == (1 if products else 0)
    assert house.arrays["weights"].tobytes() == whole.arrays["weights"].tobytes()


def test_colluders_cost_nothing_where_no_two_updates_are_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    spied = {"name": "shares", "colluders": 2}
    for rule, opened in ((("mean"), 0), ({"rule": "mean", "stages": ["clip"]}, 0), ("geometric_median", 2)):
        house = played(spied, rule, NOBODY, monkeypatch, rounds=1)
        assert house.records[0]["functionals"] == opened


def demanded(trust: dict[str, Any], rule: Any = "mean", privacy: str = "shares") -> Experiment:
    root = {"root": {"patches": 40, "set_aside": 0.2}}
    return Experiment.model_validate(options(privacy, rule, trust=trust, data=root))


def test_what_detector_and_referee_ask_beside_the_rule() -> None:
    referee = {"referee": {"hypotheses": ["mean"]}}
    assert demanded(NOBODY).demand().opens == "sum"
    assert demanded(NOBODY | referee).demand().opens == "norms"
    assert demanded(NOBODY | {"referee": {"hypotheses": []}}).demand().opens == "sum"
    mix = {"detector": {"name": "label_mix", "other": "none"}}
    assert (demanded(mix).demand(3).opens, demanded(mix).demand(3).vectors) == ("norms", 3)
    whole = demanded({"detector": "label_mix"}).demand(2)
    assert (whole.opens, whole.vectors, whole.histories) == ("gram", 2, ("average",))
    assert demanded(mix, "fltrust").demand(3).vectors == 4


def test_functionals_of_a_round_and_their_limit() -> None:
    protocol = SharesPrivacy()
    for trust, rule, opened in (
        ({"detector": "label_mix"}, "adaptive", 2 * 2),  # two labels, each with the update and its history
        ({"detector": {"name": "label_mix", "other": "none"}}, "mean", 2),
        ({"detector": {"name": "label_mix", "other": "none"}}, "fltrust", 3),
        (NOBODY, "centered_clipping", 1),
        ({"detector": "consensus"}, "adaptive", 0),
    ):
        demand = demanded(trust, rule).demand(2)
        assert (protocol.opened(demand), protocol.limit(demand, 20)) == (opened, (20 + SPARE) * opened)
    most = SharesPrivacy(max_functionals=79)
    assert most.exceeded(demanded({"detector": "label_mix"}, "adaptive").demand(1), 20) is None
    found = most.exceeded(demanded({"detector": "label_mix"}, "adaptive").demand(2), 20)
    assert found is not None and "80 functionals" in str(found)
