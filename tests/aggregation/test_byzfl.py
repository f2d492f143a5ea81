"""Our rules and stages against those of ByzFL (EPFL), on float64 rows; each difference is shown for what it is.

ByzFL computes in float64 for NumPy arrays only: it casts every tensor to float32.
"""

from __future__ import annotations

import sys

import byzfl
import numpy as np
import pytest
import torch
from refused import refused

from fedrobust.aggregation import (
    ARC,
    CAF,
    MDA,
    NNM,
    SMEA,
    Bucketing,
    CenteredClipping,
    Clip,
    Context,
    GeometricMedian,
    Krum,
    MeaMed,
    Mean,
    Median,
    Memory,
    MoNNA,
    MultiKrum,
    Pipeline,
    TrimmedMean,
)
from fedrobust.aggregation.testing import plain, with_common_part, with_huge
from fedrobust.updates import ClearUpdates

SHAPES = [(3, 2, 0), (5, 1, 1), (7, 3, 2), (10, 700, 3), (11, 40, 4), (12, 300, 2)]
KINDS = [plain, with_common_part, with_huge]

RULES = {
    "mean": (lambda f: [Mean()], lambda f: byzfl.Average()),
    "median": (lambda f: [Median()], lambda f: byzfl.Median()),
    "trimmed_mean": (lambda f: [TrimmedMean()], lambda f: byzfl.TrMean(f)),
    "meamed": (lambda f: [MeaMed()], lambda f: byzfl.Meamed(f)),
    "mda": (lambda f: [MDA()], lambda f: byzfl.MDA(f)),
    "monna": (lambda f: [MoNNA(pivot=0)], lambda f: byzfl.MoNNA(f)),
    "monna, another pivot": (lambda f: [MoNNA(pivot=2)], lambda f: byzfl.MoNNA(f, idx=2)),
    "centered_clipping": (
        lambda f: [CenteredClipping(tau=1.5, iterations=3)],
        lambda f: byzfl.CenteredClipping(L=3, tau=1.5),
    ),
}
STAGES = {
    "clip": (lambda f: Clip(radius=2.0), lambda f: byzfl.Clipping(c=2.0)),
    "arc": (lambda f: ARC(), lambda f: byzfl.ARC(f)),
    "nnm": (lambda f: NNM(), lambda f: byzfl.NNM(f)),
}


def instances(shapes=SHAPES, kinds=KINDS):
    for kind in kinds:
        for n, d, f in shapes:
            yield kind(np.random.default_rng(n), n, d, f), f


def ours(parts, rows, f):
    return Pipeline(parts).aggregate(rows, f=f)


def mixed(stage, rows, f):
    """The rows that a stage makes."""
    return stage.mix(ClearUpdates([rows]).gram(), Context(f)) @ rows


def apart(found, expected):
    """The largest difference, in units of the largest entry or 1."""
    return np.abs(found - expected).max() / max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("name", RULES)
def test_rules_agree(name):
    parts, theirs = RULES[name]
    for rows, f in instances():
        assert apart(ours(parts(f), rows, f), theirs(f)(rows.copy())) <= 1e-8, (rows.shape, f)


@pytest.mark.parametrize("name", STAGES)
def test_stages_agree(name):
    stage, theirs = STAGES[name]
    for rows, f in instances():
        assert apart(mixed(stage(f), rows, f), theirs(f)(rows.copy())) <= 1e-8, (rows.shape, f)


@pytest.mark.parametrize("name", ["clip", "arc", "nnm"])
def test_stages_before_a_rule_agree(name):
    stage, theirs = STAGES[name]
    for rows, f in instances():
        expected = byzfl.TrMean(f)(theirs(f)(rows.copy()))
        assert apart(ours([stage(f), TrimmedMean()], rows, f), expected) <= 1e-8, (rows.shape, f)


def test_geometric_median_agrees_once_theirs_has_converged():
    """ByzFL's Weiszfeld starts from zero, with ν = 0.1, and makes 3 steps, which the paper (RFA) says is enough."""
    for rows, f in instances(kinds=[plain, with_common_part]):
        found = ours([GeometricMedian(nu=0.1)], rows, f)
        assert apart(found, byzfl.GeometricMedian(nu=0.1, T=1000)(rows)) <= 1e-8, (rows.shape, f)
    rows = plain(np.random.default_rng(0), 7, 3, 2)
    assert apart(byzfl.GeometricMedian()(rows), ours([GeometricMedian(nu=0.1)], rows, 2)) > 1e-3


def test_krum_counts_one_neighbour_less_than_theirs():
    """The paper sums over the n − f − 2 nearest others; ByzFL over n − f − 1. Theirs for f + 1 is ours for f."""
    differ = 0
    for seed in range(30):
        for n, d, f in [(5, 2, 1), (9, 30, 2), (11, 40, 4)]:
            rows = plain(np.random.default_rng(seed), n, d, f)
            found = ours([Krum()], rows, f)
            assert apart(found, byzfl.Krum(f + 1)(rows)) <= 1e-8
            differ += apart(found, byzfl.Krum(f)(rows)) > 0.1
            few = ours([MultiKrum(m=n - f - 1)], rows, f)
            assert apart(few, byzfl.MultiKrum(f + 1)(rows)) <= 1e-8
    assert differ > 10


def test_monna_takes_the_medoid_where_theirs_takes_row_0():
    """ByzFL's pivot is row 0 unless it is told another: one Byzantine row there decides everything."""
    rows = plain(np.random.default_rng(0), 9, 30, 2)
    rows[0] += 1e6
    assert np.abs(byzfl.MoNNA(2)(rows)).max() > 1e4
    assert np.abs(ours([MoNNA()], rows, 2)).max() < 10


def test_centered_clipping_of_several_rounds_agrees():
    """ByzFL's object remembers its last aggregate; it takes no start from its caller (its check refuses every one)."""
    theirs, memory = byzfl.CenteredClipping(L=2, tau=1.5), Memory()
    pipeline = Pipeline([CenteredClipping(tau=1.5, iterations=2)])
    rng = np.random.default_rng(0)
    for _ in range(4):
        rows = rng.standard_normal((9, 40)) + 1.0
        # Ours carries the last aggregate in float32.
        assert apart(pipeline.aggregate(rows, f=2, memory=memory), theirs(rows)) <= 1e-6
    with pytest.raises(TypeError):
        byzfl.CenteredClipping(m=np.zeros(40))


def dominant(size):
    """The eigenvector that the caller, ByzFL's power iteration, would find in the end."""
    known = sys._getframe(1).f_locals
    return top(known["diffs"], known.get("c", np.ones(len(known["diffs"]))))[1]


def top(diffs, weights):
    """The top eigenvalue of Σ w d dᵀ / Σ w, and its eigenvector."""
    _, values, vectors = np.linalg.svd(np.sqrt(weights / weights.sum())[:, None] * diffs, full_matrices=False)
    return values[0] ** 2, vectors[0]


@pytest.mark.parametrize(("rule", "theirs"), [(CAF(), byzfl.CAF), (SMEA(), byzfl.SMEA)])
def test_power_iteration_of_theirs_depends_on_the_draw(rule, theirs):
    """For the top eigenvector, ByzFL makes one power iteration from a random vector, out of NumPy's global state."""
    rows, found = plain(np.random.default_rng(0), 11, 40, 3), []
    for seed in range(5):
        np.random.seed(seed)  # noqa: NPY002  it is what ByzFL draws from
        found.append(theirs(3)(rows))
    assert max(apart(one, found[0]) for one in found) > 1e-3
    assert apart(ours([rule], rows, 3), ours([rule], rows, 3)) == 0.0


def test_smea_agrees_with_theirs_started_from_the_eigenvector(monkeypatch):
    one_dimension = [(5, 1, 1), (9, 1, 2), (11, 1, 4)]  # where there is but one direction to draw
    for rows, f in instances(one_dimension):
        assert apart(ours([SMEA()], rows, f), byzfl.SMEA(f)(rows)) <= 1e-8, (rows.shape, f)
    monkeypatch.setattr(np.random, "randn", dominant)
    for rows, f in instances():
        assert apart(ours([SMEA()], rows, f), byzfl.SMEA(f)(rows)) <= 1e-8, (rows.shape, f)


def caf(rows, f, everyone):
    """The filter; τ_max is that of all rows, or of those that it has not taken out yet."""
    weights, least = np.ones(len(rows)), np.inf
    while weights.sum() > len(rows) - 2 * f:
        mean = weights @ rows / weights.sum()
        value, vector = top(rows - mean, weights)
        if value < least:
            least, best = value, mean
        tau = ((rows - mean) @ vector) ** 2
        largest = tau.max() if everyone else tau[weights > 0].max()
        weights = weights * np.maximum(1 - tau / largest, 0)
    return best


def test_caf_takes_out_a_row_in_each_step(monkeypatch):
    """In ByzFL, τ_max is also that of rows whose weight is 0 already: nobody else may lose weight then."""
    monkeypatch.setattr(np.random, "randn", dominant)
    differ = []
    for rows, f in instances(
        [(7, 3, 2), (9, 1, 2), (10, 700, 3), (11, 40, 4), (12, 300, 2)], [plain, with_common_part]
    ):
        assert apart(ours([CAF()], rows, f), caf(rows, f, everyone=False)) <= 1e-8, (rows.shape, f)
        assert apart(byzfl.CAF(f)(rows), caf(rows, f, everyone=True)) <= 1e-8, (rows.shape, f)
        differ.append(apart(byzfl.CAF(f)(rows), ours([CAF()], rows, f)))
    assert min(differ) <= 1e-8
    assert max(differ) > 1e-4


def test_caf_comes_to_an_end_with_a_huge_row(monkeypatch):
    """ByzFL's does not: the huge row has lost its weight in the first step, and is τ_max ever after."""
    steps = iter(range(1000))

    def dominant_or_stop(size):
        next(steps)
        known = sys._getframe(1).f_locals
        return top(known["diffs"], known["c"])[1]

    monkeypatch.setattr(np.random, "randn", dominant_or_stop)
    rows = with_huge(np.random.default_rng(0), 9, 30, 1)
    with pytest.raises(StopIteration):
        byzfl.CAF(1)(rows)
    assert np.abs(ours([CAF()], rows, 1)).max() < 10


def test_caf_without_byzantine_rows_is_the_mean():
    """ByzFL's loop, while Σ c > n − 2f, is not entered for f = 0: it returns nothing."""
    rows = plain(np.random.default_rng(0), 7, 30, 0)
    assert byzfl.CAF(0)(rows) is None
    assert apart(ours([CAF()], rows, 0), rows.mean(axis=0)) <= 1e-8


@pytest.mark.parametrize(("n", "s"), [(6, 1), (6, 2), (7, 2), (11, 3), (4, 5)])
def test_bucketing_agrees_for_the_same_permutation(n, s, monkeypatch):
    """Both draw the permutation; given ours, theirs makes the same buckets, the last of what is left."""
    rows = plain(np.random.default_rng(n), n, 20, 0)
    mixing = Bucketing(s=s).mix(ClearUpdates([rows]).gram(), Context(0))
    order = np.concatenate([np.flatnonzero(bucket) for bucket in mixing])
    monkeypatch.setattr(np.random, "permutation", lambda rows: rows[order])
    assert apart(mixing @ rows, byzfl.Bucketing(s)(rows)) <= 1e-8


def test_bucketing_keeps_the_mean():
    """In ByzFL, a last bucket of fewer rows counts as much as the others."""
    rows = plain(np.random.default_rng(0), 7, 30, 0)
    assert apart(ours([Bucketing(s=3), Mean()], rows, 0), rows.mean(axis=0)) <= 1e-8
    assert apart(byzfl.Average()(byzfl.Bucketing(3)(rows)), rows.mean(axis=0)) > 1e-3


@pytest.mark.parametrize("name", ["clip", "arc"])
def test_stages_leave_the_rows_of_the_caller_alone(name):
    """ByzFL's clipping stages write into their input."""
    stage, theirs = STAGES[name]
    original = 10 * plain(np.random.default_rng(0), 9, 30, 2)
    rows = original.copy()
    ours([stage(2), Mean()], rows, 2)
    assert (rows == original).all()
    theirs(2)(rows)
    assert not (rows == original).all()


def test_tensors_of_float64_stay_so():
    """ByzFL casts tensors to float32."""
    rows = torch.tensor(with_common_part(np.random.default_rng(0), 9, 30, 2))
    found = ours([TrimmedMean()], rows, 2)
    assert found.dtype == torch.float64
    assert byzfl.TrMean(2)(rows).dtype == torch.float32
    assert apart(found.numpy(), byzfl.TrMean(2)(rows.numpy())) <= 1e-8


def test_rows_that_are_not_finite_are_refused():
    """ByzFL's geometric median leaves out rows with Inf; NaN goes through to its aggregate."""
    rows = plain(np.random.default_rng(0), 9, 30, 2)
    rows[1, 0] = np.inf
    assert np.isfinite(byzfl.GeometricMedian()(rows)).all()
    rows[1, 0] = np.nan
    assert np.isnan(byzfl.GeometricMedian()(rows)).any()
    with refused(found="row 1"):
        ours([GeometricMedian()], rows, 2)


def test_bounds_are_stricter_than_theirs():
    """ByzFL checks n > 2f for every rule, and f < n for NNM; the papers ask for more of Krum, and of NNM."""
    rows = plain(np.random.default_rng(0), 6, 30, 2)
    assert len(byzfl.Krum(2)(rows)) == 30
    with refused(says="n ≥ 2f + 3"):
        ours([Krum()], rows, 2)
    assert len(byzfl.NNM(4)(rows)) == 6
    with refused(says="n ≥ 2f + 1"):
        ours([NNM(), Mean()], rows, 4)
