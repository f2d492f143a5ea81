"""What every rule and stage of the package is held to, found by introspection."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refused import refused

from fedrobust.aggregation import NNM, Bucketing, Clip, Mean, Median, Pipeline, RowRule, Rule, Stage, TrimmedMean
from fedrobust.aggregation.byzantine import misfit, violation
from fedrobust.aggregation.testing import INSTANCES, check_rule
from fedrobust.aggregation.testing.checks import Checks
from fedrobust.options import members

RULES = {name: rule() for name, rule in members(Rule, RowRule).items()}
STAGES = {name: stage() for name, stage in members(Stage).items()}
ALL = frozenset({"permutation", "translation", "scaling", "breakdown"})


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_keeps_its_word(name):  # with its defaults; with other options in the file of its kind
    check_rule(RULES[name])


def followed(stage):
    """Rules that show what a stage does, and a few of all the others, so that each rule follows some stage."""
    place, rules = list(STAGES).index(stage), list(RULES)
    return dict.fromkeys(["multi_krum", "trimmed_mean", *rules[place :: len(STAGES)]])


@pytest.mark.parametrize(("stage", "rule"), [(stage, rule) for stage in STAGES for rule in followed(stage)])
def test_every_stage_keeps_its_word(stage, rule):
    parts = [STAGES[stage], RULES[rule]]
    if reason := misfit(parts):
        with refused(message=reason):
            Pipeline(parts)
        return
    check_rule(parts[1], stages=parts[:1], shapes=[(9, 40, 3)])


def test_two_stages_and_a_rule():
    check_rule(TrimmedMean(), stages=[Clip(), NNM()])


@st.composite
def instances(draw, rule):
    n, d, seed = draw(st.integers(5, 16)), draw(st.integers(1, 15)), draw(st.integers(0, 2**32))
    allowed = [f for f in range((n - 1) // 2) if violation([rule], n, f) is None]
    return n, 4 * d, draw(st.sampled_from(allowed)), seed


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_claims_on_instances_of_any_shape(name, data):
    rule = RULES[name]
    n, d, f, seed = data.draw(instances(rule))
    checks = Checks(Pipeline([rule]), INSTANCES, seed)
    case = checks.case("plain", n, d, f)
    results = checks.play(case)
    if "permutation" in rule.claims:
        checks.permutation(case, results)
    if "translation" in rule.claims:
        checks.translation(case, results)
    if "scaling" in rule.claims:
        checks.scaling(case, results, data.draw(st.sampled_from([0.125, 3.0, 1024.0])))
    if "breakdown" in rule.claims:
        checks.breakdown(n, d, f, sizes=[data.draw(st.sampled_from([1e1, 1e4, 1e9, 1e18, 1e60]))])


def test_an_option_may_take_a_claim_away():
    check_rule(Mean(), stages=[Clip()], claims=frozenset({"permutation", "scaling"}))
    check_rule(Mean(), stages=[Clip(radius=1.5)], claims=frozenset({"permutation"}))
    with pytest.raises(AssertionError, match="scaling"):
        check_rule(Mean(), stages=[Clip(radius=1.5)], claims=frozenset({"permutation", "scaling"}))


def test_claims_that_the_rules_do_not_make():
    """What the checks say of true rules that are held to more than they can keep."""
    for parts, claim in [
        ([Mean()], "breakdown"),
        ([Clip(), Mean()], "translation"),
        ([NNM(), Mean()], "breakdown"),
        ([Bucketing(), Median()], "permutation"),
    ]:
        with pytest.raises(AssertionError, match=claim) as error:
            check_rule(parts[-1], stages=parts[:-1], claims=frozenset({claim}))
        assert all(text in str(error.value) for text in ("kind ", "n = ", "d = ", "f = ", "seed = 0"))
