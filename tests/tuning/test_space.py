"""Templates: what they stand for, what is searched in them, and what they refuse."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from fedrobust.tuning.space import Number, Space, TemplateError, parsed

AGGREGATION = {
    "choice": {
        "clipping": {"rule": {"name": "centered_clipping", "tau": {"log": [0.1, 10.0]}}},
        "krum": {"stages": ["nnm"], "rule": "multi_krum", "f": {"choice": [1, 2]}},
    }
}


def space(**templates: Any) -> Space:
    return Space({path: parsed(path, template) for path, template in templates.items()})


def test_every_template_has_its_distribution() -> None:
    found = space(
        lr={"log": [0.001, 0.3]},
        share={"float": [0.5, 1], "step": 0.1},
        steps={"int": [2, 16]},
        wide={"int": [2, 64], "log": True},
        even={"int": [2, 16], "step": 2},
        acts={"choice": [True, False]},
        plain={"a": [1, {"float": [0, 1], "log": False}]},
        aggregation=AGGREGATION,
    )
    assert found.distributions == {
        "lr": FloatDistribution(0.001, 0.3, log=True),
        "share": FloatDistribution(0.5, 1.0, step=0.1),
        "steps": IntDistribution(2, 16),
        "wide": IntDistribution(2, 64, log=True),
        "even": IntDistribution(2, 16, step=2),
        "acts": CategoricalDistribution([True, False]),
        "plain.a.1": FloatDistribution(0.0, 1.0),
        "aggregation": CategoricalDistribution(["clipping", "krum"]),
        "aggregation.clipping.rule.tau": FloatDistribution(0.1, 10.0, log=True),
        "aggregation.krum.f": CategoricalDistribution([1, 2]),
    }


def test_what_is_nested_in_a_choice_is_suggested_only_where_it_is_chosen() -> None:
    searched = space(aggregation=AGGREGATION, other={"step": 3, "log": True})
    clipping = FixedTrial({"aggregation": "clipping", "aggregation.clipping.rule.tau": 2.0})
    assert searched.suggest(clipping) == {
        "aggregation": {"rule": {"name": "centered_clipping", "tau": 2.0}},
        "other": {"step": 3, "log": True},
    }
    krum = FixedTrial({"aggregation": "krum", "aggregation.krum.f": 2})
    assert searched.suggest(krum)["aggregation"] == {"stages": ["nnm"], "rule": "multi_krum", "f": 2}
    assert list(krum.distributions) == ["aggregation", "aggregation.krum.f"]
    assert searched.chosen(krum.params) == searched.suggest(krum)


def test_values_with_a_step_are_written_as_they_were_meant() -> None:
    share = space(share={"float": [0, 1], "step": 0.1})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    found = {share.suggest(study.ask())["share"] for _ in range(80)}
    assert found == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0}


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_share_of_a_range_is_in_it(share: float) -> None:
    for template, distribution in [
        ({"float": [-1, 3]}, FloatDistribution(-1, 3)),
        ({"log": [1e-4, 0.7]}, FloatDistribution(1e-4, 0.7, log=True)),
        ({"int": [1, 9]}, IntDistribution(1, 9)),
        ({"int": [1, 9], "log": True}, IntDistribution(1, 9, log=True)),
        ({"float": [0.5, 1.0], "step": 0.1}, FloatDistribution(0.5, 1.0, step=0.1)),
        ({"log": [1e-308, 1e308]}, FloatDistribution(1e-308, 1e308, log=True)),
        ({"float": [-8e307, 8e307]}, FloatDistribution(-8e307, 8e307)),
        ({"int": [1, 2**53], "log": True}, IntDistribution(1, 2**53, log=True)),
    ]:
        value = parsed("x", template).at(share)
        assert distribution._contains(distribution.to_internal_repr(value))
        assert isinstance(value, int if isinstance(distribution, IntDistribution) else float)


def test_shares_are_even_on_the_scale_of_the_range() -> None:
    shares = (np.arange(4000) + 0.5) / 4000
    assert parsed("x", {"log": [0.01, 1.0]}).at(0.5) == pytest.approx(0.1)
    _, counts = np.unique([parsed("x", {"int": [1, 4]}).at(share) for share in shares], return_counts=True)
    assert counts.tolist() == [1000, 1000, 1000, 1000]
    # Of 1 to 3 on a logarithmic scale each n has log((n + 1) / n) / log(4): 1/2, 0.2925, 0.2075.
    _, counts = np.unique([parsed("x", {"int": [1, 3], "log": True}).at(share) for share in shares], return_counts=True)
    assert counts.tolist() == [2000, 1170, 830]


def test_a_grid_has_every_point_once_and_none_for_what_is_not_chosen() -> None:
    searched = space(
        rule={"choice": {"mean": "mean", "krum": {"name": "krum", "f": {"int": [1, 3]}}}},
        share={"float": [0.5, 1.0], "step": 0.25},
    )
    points = searched.points()
    rules: list[dict[str, Any]] = [{"rule": "mean"}, *({"rule": "krum", "rule.krum.f": f} for f in (1, 2, 3))]
    assert points == [{**rule, "share": share} for rule in rules for share in (0.5, 0.75, 1.0)]
    assert searched.size == len(points)
    assert searched.endless() == []
    assert space(a={"float": [0, 1]}, b={"int": [1, 9], "log": True}).endless() == ["a", "b"]


def test_variants_try_every_choice_and_both_ends() -> None:
    searched = space(rule={"choice": {"mean": "mean", "krum": {"f": {"int": [1, 5]}}}}, lr={"log": [0.01, 1.0]})
    assert searched.middle == {"rule": "mean", "rule.krum.f": 3, "lr": pytest.approx(0.1)}
    tried = [(name, {key: value for key, value in each.items() if key != "lr"}) for name, each in searched.variants()]
    assert tried == [
        ("rule", {"rule": "mean", "rule.krum.f": 3}),
        ("rule", {"rule": "krum", "rule.krum.f": 3}),
        ("rule.krum.f", {"rule": "krum", "rule.krum.f": 1}),
        ("rule.krum.f", {"rule": "krum", "rule.krum.f": 5}),
        ("lr", {"rule": "mean", "rule.krum.f": 3}),
        ("lr", {"rule": "mean", "rule.krum.f": 3}),
    ]
    assert [each["lr"] for _, each in searched.variants()][-2:] == [0.01, 1.0]


@pytest.mark.parametrize(
    ("template", "keys", "tells"),
    [
        ({"float": [0, 1], "int": [0, 1]}, (), "found float and int"),
        ({"float": [0, 1], "stp": 0.1}, ("stp",), "did you mean 'step'"),
        ({"log": [1, 2], "step": 1}, ("step",), "allowed: log"),
        ({"float": 3}, ("float",), "two ends"),
        ({"float": [0, 1, 2]}, ("float",), "two ends"),
        ({"float": [0, "x"]}, ("float",), "two ends"),
        ({"float": [0, float("inf")]}, ("float",), "two ends"),
        ({"float": [1, 1]}, ("float",), "below the second"),
        ({"int": [1, 2.5]}, ("int",), "whole numbers"),
        ({"int": [True, 3]}, ("int",), "whole numbers"),
        ({"log": [0, 1]}, ("log",), "above 0"),
        ({"int": [0, 4], "log": True}, ("int",), "above 0"),
        ({"int": [1, 4], "log": True, "step": 1}, ("step",), "no step"),
        ({"float": [0, 1], "log": "yes"}, ("log",), "true or false"),
        ({"float": [0, 1], "step": 0.3}, ("step",), "whole number of steps"),
        ({"float": [0, 1], "step": 0}, ("step",), "positive"),
        ({"int": [0, 4], "step": 0.5}, ("step",), "positive whole number"),
        ({"choice": [1]}, ("choice",), "two values or more"),
        ({"choice": "krum"}, ("choice",), "two values or more"),
        ({"choice": [1, 2, 1]}, ("choice", 2), "found 1 again"),
        ({"choice": [{"name": "krum"}, "mean"]}, ("choice", 0), "needs a name"),
        ({"choice": {"a.b": 1, "c": 2}}, ("choice",), "without dots"),
        ({"choice": {"a": {"tau": {"int": [2, 1]}}, "c": 2}}, ("choice", "a", "tau", "int"), "below the second"),
        ({"rule": [{"int": [2]}]}, ("rule", 0, "int"), "two ends"),
        ({"float": [-1e308, 1e308]}, ("float",), "too far apart"),
        ({"float": [1, 10**400]}, ("float",), "two ends"),
        ({"int": [2, 10**5000]}, ("int",), "found a number that is too large"),
        ({"int": [2, 2**53 + 1]}, ("int",), "whole numbers up to 9007199254740992"),
        ({"int": [-(2**60), 2]}, ("int",), "whole numbers up to 9007199254740992"),
        ({"float": [0.0, float("nan")]}, ("float",), "two ends"),
        ({"float": [0, 1], "step": 1e-300}, ("step",), "too many steps"),
        ({"float": [0, 1e308], "step": 1e-300}, ("step",), "too many steps"),
        ({"float": [0, 1], "step": float("nan")}, ("step",), "positive"),
        ({"choice": []}, ("choice",), "two values or more"),
        ({"choice": [float("nan"), 1.0]}, ("choice", 0), "found nan"),
        ({"choice": [date(2020, 1, 1), 1.0]}, ("choice", 0), "a number, a text, true, false or null"),
        ({"choice": list(range(1001))}, ("choice",), "1000 values at most"),
        ({"choice": {"a\x1b[2J": 1, "c": 2}}, ("choice",), r"control characters; found a\\x1b\[2J"),
        ({"choice": ["x" * 10**6, "x" * 10**6]}, ("choice", 1), "^must name each value once; found x{99}… again$"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(template: Any, keys: tuple[Any, ...], tells: str) -> None:
    with pytest.raises(TemplateError, match=tells) as caught:
        parsed("path.to", template)
    assert caught.value.keys == ("path.to", *keys)


def test_the_middle_of_the_widest_range_is_its_middle() -> None:
    assert parsed("x", {"log": [1e-308, 1e308]}).at(0.5) == pytest.approx(1.0)


SCALAR = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**400), 10**400),
    st.sampled_from([0, 1, 2, 2**53, 10**30]),
    st.floats(),
    st.text(max_size=3),
    st.dates(),
)
TEMPLATE = st.recursive(
    SCALAR,
    lambda inside: st.one_of(
        st.lists(inside, max_size=3),
        st.dictionaries(st.sampled_from(["float", "int", "log", "step", "choice", "a", "b.c", ""]), inside, max_size=3),
    ),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None)
@given(TEMPLATE)
def test_whatever_is_given_makes_a_space_or_is_refused_in_a_line(template: Any) -> None:
    try:
        found = Space({"x": parsed("x", template)})
    except TemplateError as error:
        assert len(str(error).splitlines()) == 1
        return
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    if found.searched and found.distributions:
        found.suggest(study.ask())
    found.at(dict.fromkeys(found.searched, 0.999))
    assert found.chosen(found.middle).keys() == {"x"}
    assert len(list(found.variants())) >= len(found.searched)


def test_three_tenths_are_three_steps() -> None:
    """0.3 / 0.1 is not 3 among floats."""
    found = parsed("x", {"float": [0.1, 0.4], "step": 0.1})
    assert isinstance(found, Number)
    assert [found.nth(index) for index in range(found.size or 0)] == [0.1, 0.2, 0.3, 0.4]
