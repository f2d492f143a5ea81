"""The declared number of Byzantine rows, estimated from the Gram."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from fedrobust.aggregation import Aggregation, Krum, Median, Pipeline, TrimmedMean, resolve_f
from fedrobust.aggregation.byzantine import estimated_f
from fedrobust.aggregation.testing import INSTANCES
from fedrobust.updates import ClearUpdates


def gram_of(rows):
    return ClearUpdates([np.asarray(rows)]).gram()


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize(("n", "f"), [(5, 1), (10, 0), (10, 3), (11, 5), (30, 14)])
@pytest.mark.parametrize("same", [True, False])
def test_rows_apart_from_the_majority_are_counted(n, f, same, scale):
    rng = np.random.default_rng(n + f)
    rows = rng.standard_normal((n, 400))
    bad = rng.choice(n, f, replace=False)
    rows[bad] = 4 * rng.standard_normal(400) if same else 4 * rng.standard_normal((f, 400))
    assert estimated_f(gram_of(scale * rows)) == f


def test_a_row_of_another_size_counts_whichever_side_of_a_common_part_it_lies():
    rng = np.random.default_rng(0)
    rows = 1e4 * rng.standard_normal(300) + rng.standard_normal((9, 300))
    rows[[2, 7]] += 3 * rng.standard_normal((2, 300))
    assert estimated_f(gram_of(rows)) == 2


@pytest.mark.parametrize("kind", INSTANCES)
@pytest.mark.parametrize(("n", "f"), [(1, 0), (2, 0), (3, 1), (9, 3), (10, 4)])
def test_any_rows_have_an_estimate_below_one_half(kind, n, f):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = estimated_f(gram_of(INSTANCES[kind](np.random.default_rng(1), n, 50, f)))
    assert 0 <= found <= (n - 1) // 2
    if kind in ("all_equal", "plain"):
        assert found == 0
    if kind == "with_huge":
        assert found == f


def test_auto_is_the_estimate_within_what_the_rule_allows():
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((10, 200))
    rows[:4] += 50 * rng.standard_normal((4, 200))
    gram = gram_of(rows)
    assert resolve_f("auto", 10, TrimmedMean(), (), gram) == 4
    assert resolve_f("auto", 10, Krum(), (), gram) == 3  # n ≥ 2f + 3
    assert resolve_f("auto", 10, Krum()) == 3  # nothing to estimate from: the largest
    assert Aggregation(rule=Median(), f="auto").byzantine_f(10, gram=gram) == 4
    assert Aggregation(rule=Median(), f="auto").byzantine_f(10) == 4
    honest = resolve_f("auto", 10, TrimmedMean(), (), gram_of(rows[4:].repeat(2, 0)[:10]))
    assert honest == 0
    found = Pipeline([TrimmedMean()]).aggregate(rows, f="auto")
    assert np.allclose(found, Pipeline([TrimmedMean()]).aggregate(rows, f=4))
