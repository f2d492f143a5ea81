"""What does not go together with a protocol is refused when the file is read, with the place and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedrobust
from fedrobust.aggregation import Aggregation, RowRule, Rule
from fedrobust.errors import ExperimentError
from fedrobust.options import members
from fedrobust.secure import (
    ClearPrivacy,
    GroupedPrivacy,
    MaskedPrivacy,
    PairwiseMasking,
    Privacy,
    ReplicatedPrivacy,
    SecretSharing,
    SharesPrivacy,
)

FILE = "federation: {clients: 10, rounds: 20}\n"
KRUM = "krum puts all weight on one update, which {} would open; rules that go with it: mean, geometric_median"
PROTOCOLS: list[Privacy] = [ClearPrivacy(), SharesPrivacy(), ReplicatedPrivacy(), MaskedPrivacy(), GroupedPrivacy()]


def read(*overrides: str) -> fedrobust.Experiment:
    Path("tried.yaml").write_text(FILE)
    return fedrobust.load("tried.yaml", list(overrides))


REFUSED = [
    # (what is in the file, the path that the refusal names, the reason and the way out)
    ("shares", "aggregation={rule: krum}", "aggregation", KRUM.format("shares")),
    ("replicated", "aggregation={rule: krum}", "aggregation", KRUM.format("replicated")),
    ("shares", "aggregation={rule: krum, stages: [clip]}", "aggregation", KRUM.format("shares")),
    ("shares", "aggregation={rule: krum, stages: [bucketing]}", "aggregation", "a bucket of fewer updates than min_support"),  # noqa: E501
    ("shares", "aggregation={rule: median}", "aggregation", "median needs rows, which shares does not reveal; rules that go with it: mean"),  # noqa: E501
    ("masked", "aggregation={rule: median}", "aggregation", "median needs rows, which masked does not reveal; rules that go with it: mean"),  # noqa: E501
    ("masked", "aggregation={rule: multi_krum}", "aggregation", "multi_krum needs gram, which masked does not reveal; rules that go with it: mean"),  # noqa: E501
    ("masked", "aggregation={stages: [clip]}", "aggregation", "clip needs gram, which masked does not reveal"),
    ("grouped", "aggregation={rule: adaptive}", "aggregation", "adaptive remembers clients; a group of masked updates is no single client's; rules that go with it: mean"),  # noqa: E501
    ("grouped", "aggregation={rule: afa}", "aggregation", "afa remembers clients"),
    ("grouped", "aggregation={rule: median, f: 2}", "aggregation.f", "2 malicious clients can spoil 2 of 2 groups of 4: median needs n ≥ 2f + 1"),  # noqa: E501
    ("grouped", "aggregation={rule: median, f: 0.2}", "aggregation.f", "2 malicious clients can spoil 2 of 2 groups of 4"),  # noqa: E501
    ("grouped", "trust.detector=consensus", "trust.detector", "consensus remembers clients; a group is no single"),
    ("grouped", "trust.acts=true", "trust.acts", "grouped shows no single update that could be left out or weighed"),
    ("masked", "trust.acts=true", "trust.acts", "masked shows no single update"),
    ("{name: grouped, size: 11}", "seed=1", "privacy.size", "must be at most the 10 hospitals of a round"),
    ("{name: grouped, size: 2}", "seed=1", "privacy.size", "greater than or equal to 3"),
    ("masked", "federation.clients=2", "federation.clients", "masked needs 3 hospitals in a round"),
    ("masked", "aggregation.weighting=samples", "privacy.largest_count", "must be given with aggregation.weighting samples, and only then"),  # noqa: E501
    ("{name: masked, largest_count: 99}", "seed=1", "privacy.largest_count", "and only then"),
    ("masked", "workers.shards=2", "workers.shards", "privacy masked places the updates itself; use 1"),
    ("shares", "federation.clients=2", "privacy.min_support", "must be at most the 2 updates of a round"),
    ("shares", "federation.participation=0.2", "privacy.min_support", "must be at most the 2 updates of a round"),
    ("{name: shares, min_support: 11}", "seed=1", "privacy.min_support", "must be at most the 10 updates of a round"),
    ("{name: shares, max_functionals: 19}", "aggregation.rule=fltrust", "privacy.max_functionals", "20 rounds open 20 functionals of every update"),  # noqa: E501
    ("{name: replicated, max_functionals: 59, colluders: 2}", "aggregation.rule=centered_clipping", "privacy.max_functionals", "20 rounds open 60 functionals"),  # noqa: E501
    ("{name: shares, clip: 0}", "seed=1", "privacy.clip", "greater than 0"),
    ("{name: shares, min_support: 0.5}", "seed=1", "privacy.min_support", "greater than or equal to 1"),
    ("{name: shares, randomness: dice}", "seed=1", "privacy.randomness", "'seed' or 'system'"),
    ("{name: masked, threshold: 0.4}", "seed=1", "privacy.threshold", "greater than or equal to 0.5"),
    ("{name: masked, bits: 16}", "seed=1", "privacy.bits", "32"),
    ("{name: shares, size: 3}", "seed=1", "privacy.size", "unknown"),
    ("shards", "seed=1", "privacy", "clear, shares, replicated, masked, grouped"),
    ("shares", "workers.parties=[one, two]", "workers.parties", "expected one resource for each of the 3 parties of shares, found 2"),  # noqa: E501
    ("replicated", "workers.parties=[a, b, c, d]", "workers.parties", "each of the 3 parties of replicated, found 4"),
    ("masked", "workers.parties=[a]", "workers.parties", "each of the 0 parties of masked, found 1"),
    ("clear", "workers.parties=[a]", "workers.parties", "each of the 0 parties of clear, found 1"),
]  # fmt: skip


@pytest.mark.parametrize(("privacy", "other", "path", "reason"), REFUSED)
def test_what_cannot_be_is_refused_with_its_place_and_the_reason(
    privacy: str, other: str, path: str, reason: str, workplace: Path
) -> None:
    with pytest.raises(ExperimentError) as refused:
        read(f"privacy={privacy}", other)
    message = str(refused.value)
    assert f": {path}: " in message, message
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("privacy", "other"),
    [
        ("shares", "aggregation={rule: krum, stages: [nnm]}"),
        ("shares", "aggregation={rule: krum, stages: [{name: bucketing, s: 3}]}"),
        ("{name: shares, min_support: 2}", "aggregation={rule: krum, stages: [bucketing]}"),
        ("shares", "aggregation={rule: krum, stages: [bucketing, nnm]}"),
        ("{name: shares, max_functionals: 20}", "aggregation.rule=fltrust"),
        ("{name: replicated, max_functionals: 60, colluders: 2}", "aggregation.rule=centered_clipping"),
        ("{name: shares, max_functionals: 0}", "aggregation.rule=adaptive"),
        ("masked", "trust.detector=consensus"),
        ("{name: masked, largest_count: 99}", "aggregation.weighting=samples"),
        ("grouped", "aggregation={rule: median, f: 0.04}"),
        ("{name: grouped, size: 3}", "aggregation={rule: median, f: 1}"),
        ("shares", "workers.parties=[one, one, two]"),
    ],
)
def test_what_goes_together_is_read(privacy: str, other: str, workplace: Path) -> None:
    read(f"privacy={privacy}", other)


@pytest.mark.parametrize("privacy", PROTOCOLS, ids=lambda privacy: privacy.name)
def test_the_rules_that_a_refusal_names_are_those_that_are_read(privacy: Privacy, workplace: Path) -> None:
    named = privacy._rules()
    assert "mean" in named
    for name in members(Rule, RowRule):
        found = privacy.refusal(Aggregation.model_validate({"rule": name, "f": 0}), participants=20, rounds=20)
        if name in named:
            assert found is None, name
        else:
            assert found is not None and found[1].endswith("rules that go with it: " + ", ".join(named)), name


def test_what_each_protocol_reveals() -> None:
    shown = {privacy.name: set(privacy.reveals) for privacy in PROTOCOLS}
    rows, gram = {"sum", "gram", "rows"}, {"sum", "gram"}
    assert shown == {"clear": rows, "shares": gram, "replicated": gram, "masked": {"sum"}, "grouped": rows}
    parties = {each.name: each.servers + each.dealer for each in PROTOCOLS if isinstance(each, SecretSharing)}
    assert parties == {"shares": 3, "replicated": 3}
    assert [each.name for each in PROTOCOLS if isinstance(each, PairwiseMasking)] == ["masked", "grouped"]
    assert Privacy.reveals == frozenset()  # whoever adds a protocol has to say what it shows


def test_a_protocol_is_part_of_the_experiment_and_its_parties_places_are_not(workplace: Path) -> None:
    shares = read("privacy=shares")
    assert shares.digest() != read().digest()
    assert shares.digest() != read("privacy={name: shares, clip: 4}").digest()
    assert shares.digest() == read("privacy=shares", "workers.parties=[a, b, c]").digest()
