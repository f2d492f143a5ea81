from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from fedrobust.aggregation import Combination, Context, Krum, Median, Pipeline
from fedrobust.updates import ClearUpdates, NotRevealed, Updates


def rows_of(n=7, d=900, dtype=np.float32):
    return np.random.default_rng(0).standard_normal((n, d)).astype(dtype)


def held(clear):
    """The rows, put together from the chunks that a rule sees."""
    rows = np.full((clear.n, clear.d), np.nan)

    def keep(chunk, columns):
        rows[:, columns] = chunk

    clear.total(keep)
    return rows


def test_rows_in_order_from_blocks_of_both_kinds():
    rows = rows_of()
    clear = ClearUpdates([rows[4:], torch.from_numpy(rows[:4])], order=[3, 4, 5, 6, 0, 1, 2])
    assert (clear.n, clear.d) == (7, 900)
    assert np.array_equal(held(clear), rows)
    weights = np.arange(7.0)
    assert np.allclose(clear.combine(Combination(weights)), weights @ rows.astype(np.float64), rtol=0, atol=1e-5)


def test_read_only_rows_are_read_without_a_warning_and_stay_as_they_are():
    rows = rows_of()
    before = rows.copy()
    rows.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clear = ClearUpdates([rows[:3], rows[3:]])
        clear.finite_rows()
        clear.gram({"momentum": rows[0]})
        clear.combine(Combination(clear.prior, {"momentum": 1.0}))
        clear.total(lambda chunk, columns: np.multiply(chunk, 0, out=chunk))
    assert np.array_equal(rows, before)


def test_finite_rows_and_the_rest_without_them():
    rows = rows_of(dtype=np.float64)
    rows[1, 5], rows[2, 899], rows[4, 0], rows[5, 7] = np.nan, np.inf, -np.inf, 1e160
    clear = ClearUpdates([rows], prior=[1, 2, 3, 4, 5, 6, 7])
    finite = clear.finite_rows()
    assert finite.tolist() == [True, False, False, True, False, False, True]
    for keep in (finite, np.flatnonzero(finite)):
        kept = clear.subset(keep)
        assert np.allclose(kept.prior, np.array([1, 4, 7]) / 12)
        assert np.array_equal(held(kept), rows[[0, 3, 6]])
        assert np.allclose(kept.gram().matrix, rows[[0, 3, 6]] @ rows[[0, 3, 6]].T)


def test_finite_float32_extremes_are_finite():
    rows = np.full((2, 1000), np.finfo(np.float32).max)
    assert ClearUpdates([rows]).finite_rows().all()
    assert not ClearUpdates([torch.full((1, 3), torch.nan, dtype=torch.bfloat16)]).finite_rows().any()


def test_a_row_that_has_no_weight_is_not_read():
    rows = rows_of()
    rows[2] = np.nan
    weights = np.array([1.0, 0, 0, 0, 0, 0, 2])
    assert np.allclose(ClearUpdates([rows]).combine(Combination(weights)), rows[0] + 2 * rows[6], rtol=1e-6)
    assert np.array_equal(ClearUpdates([rows]).combine(Combination(np.zeros(7))), np.zeros(900))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ClearUpdates([np.zeros(3)]), r"floating \(n, d\)"),
        (lambda: ClearUpdates([np.zeros((3, 3), dtype=np.int64)]), "int64"),
        (lambda: ClearUpdates([[[1.0]]]), "found list"),
        (lambda: ClearUpdates([np.zeros((3, 3)), np.zeros((3, 4))]), r"\[3, 4\]"),
        (lambda: ClearUpdates([np.zeros((0, 3))]), "n = 0"),
        (lambda: ClearUpdates([np.zeros((3, 0))]), "d = 0"),
        (lambda: ClearUpdates([np.zeros((2, 3))], prior=[1.0, -1.0]), "positive"),
        (lambda: ClearUpdates([np.zeros((2, 3))], prior=[1.0]), "2 positive"),
        (lambda: ClearUpdates([np.zeros((2, 3))]).gram({"momentum": np.zeros(4)}), r"'momentum' has the shape \(4,\)"),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


class GramOnly(Updates):
    """Opens G and weighted sums, and hides the rows."""

    reveals = frozenset({"gram", "sum"})

    def __init__(self, rows):
        self._clear = ClearUpdates([rows])
        self.n, self.d = rows.shape

    def gram(self, anchors=None, histories=()):
        return self._clear.gram(anchors, histories)

    def combine(self, combination):
        return self._clear.combine(combination)

    def finite_rows(self):
        return self._clear.finite_rows()

    def subset(self, keep):
        raise AssertionError("a pipeline drops no rows")


def test_what_must_not_be_seen_is_refused():
    rows = rows_of()
    updates = GramOnly(rows)
    assert np.array_equal(
        Pipeline([Krum()]).run(updates, Context(f=1)).aggregate, Pipeline([Krum()]).aggregate(rows, f=1)
    )
    with pytest.raises(NotRevealed, match=r"median needs rows; .* gram, sum"):
        Pipeline([Median()]).run(updates, Context(f=1))
    with pytest.raises(NotRevealed, match="gram, sum"):
        updates.total(lambda chunk, columns: None)


PEAK = """
import resource
import numpy as np
import fedrobust.aggregation as a
pipelines = [a.Pipeline([a.Clip(), a.NNM(), rule]) for rule in (a.GeometricMedian(), a.TrimmedMean())]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
updates = np.random.default_rng(0).standard_normal((30, 1_000_000), dtype=np.float32)
for pipeline in pipelines:
    pipeline.aggregate(np.ascontiguousarray(updates[:, :100_000]))
before = peak()
for pipeline in pipelines:
    pipeline.aggregate(updates)
print((peak() - before) / updates.nbytes)
"""


def test_peak_memory_is_a_small_part_of_the_updates():
    out = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 0.3


def test_importing_the_options_imports_no_torch():
    code = "import sys, fedrobust.aggregation; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
