"""Trial rounds: on how many updates the weights of every rule lie, and which remedies hold."""

from __future__ import annotations

import subprocess
import sys
from math import inf

import numpy as np
import pytest
from pydantic import ValidationError

from fedrobust.aggregation import Aggregation, Combination, Context, Gram, Rule
from fedrobust.options import members
from fedrobust.secure import GroupedPrivacy, MaskedPrivacy, ReplicatedPrivacy, SharesPrivacy
from fedrobust.secure.remedies import remedies
from fedrobust.secure.supports import MOST, always_below, prospect, supports


def defence(rule: str, *stages: str, **more: object) -> Aggregation:
    return Aggregation.model_validate({"rule": rule, "stages": list(stages), **more})


def test_what_is_known_of_rules_is_found() -> None:
    assert set(supports(defence("mean"), 6)) == {6.0}
    assert set(supports(defence("multi_krum", f=1), 6)) == {5.0}  # n − f rows
    assert set(supports(defence("krum", "nnm", f=2), 9)) == {7.0}
    assert set(supports(Aggregation.model_validate({"rule": {"name": "multi_krum", "m": 2}}), 8)) == {2.0}
    assert list(supports(defence("krum"), 2)) == list(supports(defence("mean"), MOST + 1)) == []


@pytest.mark.parametrize("name", sorted(members(Rule)))
@pytest.mark.parametrize("stages", [(), ("clip",), ("nnm",)], ids=["alone", "clip", "nnm"])
def test_every_rule_is_tried_and_what_is_certain_is_in_every_trial(name: str, stages: tuple[str, ...]) -> None:
    try:
        aggregation = defence(name, *stages)
    except ValidationError:
        return
    privacy = SharesPrivacy()
    if privacy.fits(aggregation) or aggregation.refusal(5):
        return
    found = list(supports(aggregation, 5, rounds=1))
    assert found and all(each == inf or 0 <= each <= 5.001 for each in found)
    certain = always_below(aggregation, 5, privacy.support)
    assert certain is None or all(abs(each - certain) < 0.01 for each in found)


class Refused(Rule):
    """A rule of a user's own, with a negative weight."""

    name: str = f"{__name__}:Refused"

    def combine(self, gram: Gram, context: Context) -> Combination:
        weights = np.full(gram.n, 1.0)
        weights[0] = -1.0
        return Combination(weights)


class Nothing(Rule):
    """A rule that takes nothing."""

    name: str = f"{__name__}:Nothing"

    def combine(self, gram: Gram, context: Context) -> Combination:
        return Combination(np.zeros(gram.n))


def test_rules_of_ones_own_are_members_of_the_family() -> None:
    privacy = SharesPrivacy()
    refused = privacy.refusal(Aggregation(rule=Refused()), 8, 3)
    assert refused is not None and "negative" in refused.message
    assert privacy.refusal(Aggregation(rule=Nothing()), 8, 3) is None  # nothing is opened
    assert prospect(Aggregation(rule=Nothing()), 8, 3.0).refused == 0.0


def test_each_remedy_removes_the_doubt() -> None:
    privacy, aggregation = ReplicatedPrivacy(), defence("mean", "nnm")
    doubt = privacy.doubt(aggregation, 5)
    assert doubt is not None and doubt.path == "privacy"
    assert privacy.refusal(aggregation, 5, 3) is None  # not certain
    ways = remedies(aggregation, 5, 5, prospect(aggregation, 5, privacy.support), privacy.fits)
    assert doubt.hint == f"use {', or '.join(ways)}"
    more, rules, none, last = ways
    assert privacy.doubt(aggregation, int(more.split()[0])) is None
    for rule in rules.removeprefix("aggregation.rule=").removesuffix(" after nnm").split(" or "):
        assert privacy.doubt(defence(rule, "nnm"), 5) is None, rule
    assert none == "aggregation.stages=[]" and privacy.doubt(defence("mean"), 5) is None
    assert last.startswith("privacy.min_support=") and "fewer updates" in last
    lowered = float(last.split("=")[1].split(",")[0])
    assert ReplicatedPrivacy(min_support=lowered).doubt(aggregation, 5) is None


@pytest.mark.parametrize(("rule", "n"), [("adaptive", 4), ("geometric_median", 4), ("fltrust", 10)])
def test_rules_that_are_named_work_here_and_never_the_one_in_use(rule: str, n: int) -> None:
    privacy, aggregation = SharesPrivacy(), defence(rule)
    ways = remedies(aggregation, n, n, prospect(aggregation, n, privacy.support), privacy.fits)
    (named,) = [way for way in ways if way.startswith("aggregation.rule=")]
    rules = named.removeprefix("aggregation.rule=").split(" or ")
    assert rules and rule not in rules
    for other in rules:
        assert privacy.doubt(defence(other), n) is None, other


def test_colluders_count() -> None:
    aggregation = defence("multi_krum", f=1)
    assert SharesPrivacy(colluders=1).refusal(aggregation, 5, 3) is None
    found = SharesPrivacy(colluders=2).refusal(aggregation, 5, 3)
    assert found is not None and "min_support + colluders is 5" in found.message


def test_protocols_without_servers_have_no_doubts() -> None:
    for privacy in (MaskedPrivacy(), GroupedPrivacy()):
        assert privacy.doubt(defence("geometric_median", "clip"), 4) is None


def test_trials_import_no_torch() -> None:
    script = (
        "import sys; from fedrobust.aggregation import Aggregation; from fedrobust.secure.supports import supports\n"
        "[list(supports(Aggregation.model_validate({'rule': rule}), 5)) for rule in ('adaptive', 'fltrust')]\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
