"""How exact the sums in float32 are, and that they are the same however the work is shared out."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from fedrobust.aggregation import ARC, NNM, Bucketing, CenteredClipping, Clip, FLTrust, Krum, Mean, NormBound, Pipeline
from fedrobust.aggregation.base import Context
from fedrobust.updates import ClearUpdates, Combination, ShardedUpdates, chunks
from fedrobust.updates.interface import not_revealed
from fedrobust.updates.threads import each

D = 150_000


def rows_of(n: int = 50, common: float = 0.0, dtype: str = "float32") -> np.ndarray:
    draw = np.random.default_rng(n)
    return (common * draw.standard_normal(D) + draw.standard_normal((n, D))).astype(dtype)


@pytest.mark.parametrize("n", [1, 14, 15, 50, 56, 57, 200])
@pytest.mark.parametrize("common", [0.0, 1000.0])
def test_a_weighted_sum_is_exact_to_a_millionth_of_what_is_added(n, common):
    rows = rows_of(n, common)
    weights = np.random.default_rng(0).standard_normal(n)
    exact, added = weights @ rows.astype(np.float64), np.abs(weights) @ np.abs(rows.astype(np.float64))
    found = ClearUpdates([rows]).combine(Combination(weights))
    assert (np.abs(found - exact) <= 1e-6 * added).all()


def test_weights_and_rows_of_any_size_add_up():
    rows = rows_of(3)
    rows[0] *= 1e32 / np.linalg.norm(rows[0])
    weights = np.array([1e-32, 1e-3, -1e-3])  # a clipped row, as long as the others
    exact = weights @ rows.astype(np.float64)
    assert np.allclose(ClearUpdates([rows]).combine(Combination(weights)), exact, rtol=1e-5, atol=1e-12)
    huge = np.full((2, 5), 3e38, dtype=np.float32)
    assert np.array_equal(ClearUpdates([huge]).combine(Combination(np.array([1.0, -1.0]))), np.zeros(5))
    assert np.allclose(ClearUpdates([huge]).combine(Combination(np.array([0.5, 0.5]))), huge[0])
    assert np.allclose(ClearUpdates([huge]).combine(Combination(np.array([1.0, -0.5]))), huge[0] / 2)


@pytest.mark.parametrize("size", [1e-30, 1e-10, 1.0, 1e10, 1e30])
def test_squares_are_exact_to_a_millionth(size):
    rows = rows_of(20) * np.float32(size)
    exact = (rows.astype(np.float64) ** 2).sum(axis=1)
    assert np.allclose(ClearUpdates([rows]).squares(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("common", [1.0, 1000.0])
def test_norms_and_distances_to_an_anchor_are_exact_to_a_millionth(common):
    rows = rows_of(20, common)
    anchor = rows[:5].astype(np.float64).mean(axis=0).astype(np.float32)
    found, whole = ClearUpdates([rows]).norms({"momentum": anchor}), ClearUpdates([rows]).gram({"momentum": anchor})
    assert np.allclose(found.norms(), whole.norms(), rtol=1e-6, atol=0)
    at_anchor = Combination(np.zeros(20), {"momentum": 1.0})
    assert np.allclose(found.distances_squared_to(at_anchor), whole.distances_squared_to(at_anchor), rtol=1e-6, atol=0)
    assert np.allclose(found.anchors["momentum"].products, whole.anchors["momentum"].products, rtol=1e-12, atol=0)
    assert np.isnan(found.matrix[~np.eye(20, dtype=bool)]).all()


@pytest.mark.parametrize("common", [0.0, 1000.0])
def test_distances_are_exact(common):
    rows = rows_of(30, common)
    double = rows.astype(np.float64)
    exact = np.array([((double - row) ** 2).sum(axis=1) for row in double])
    assert np.allclose(ClearUpdates([rows]).gram().distances_squared(), exact, rtol=1e-11, atol=0)


@pytest.mark.parametrize("n", [9, 40, 150])
def test_the_number_of_threads_changes_no_bit(n):
    rows, weights = rows_of(n), np.random.default_rng(1).standard_normal(n)
    anchor = {"root": rows[0]}
    one, three = (ClearUpdates([rows], threads=threads) for threads in (1, 3))
    for method in ("digests", "squares", "section_squares"):
        assert np.array_equal(getattr(one, method)(), getattr(three, method)())
    assert np.array_equal(one.gram(anchor).matrix, three.gram(anchor).matrix)
    assert np.array_equal(one.norms(anchor).matrix, three.norms(anchor).matrix, equal_nan=True)
    short = [updates.sketched(3000, 1).gram().matrix for updates in (one, three)]
    assert np.array_equal(*short)
    combination = Combination(weights, {"root": 0.5})
    assert np.array_equal(one.combine(combination), three.combine(combination))
    assert np.array_equal(one.reduce(half), three.reduce(half))


def half(rows, columns):
    return rows[: len(rows) // 2].sum(axis=0)


def test_an_error_in_a_thread_is_raised():
    with pytest.raises(ZeroDivisionError):
        each(lambda piece: 1 // piece, [1, 0, 2], 2)


def test_pieces_may_share_out_pieces_of_their_own_and_cores_stay_as_they_were():
    cores = getattr(os, "sched_getaffinity", lambda _: None)(0)
    assert each(lambda piece: sum(each(int, [piece] * 3, 3)), list(range(40)), 3) == [3 * piece for piece in range(40)]
    assert getattr(os, "sched_getaffinity", lambda _: None)(0) == cores


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system that forks")
def test_a_forked_process_has_helpers_of_its_own():
    code = (
        "import os\nfrom fedrobust.updates.threads import each\n"
        "assert each(abs, [-1, -2], 2) == [1, 2]\n"
        "child = os.fork()\n"
        "if not child: os._exit(each(abs, [-1, -2], 2) != [1, 2])\n"
        "assert os.waitpid(child, 0)[1] == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class Asked(ClearUpdates):
    """Notes what is asked of it."""

    def __init__(self, rows: np.ndarray) -> None:
        super().__init__([rows])
        self.seen: list[str] = []

    def gram(self, *arguments, **options):
        self.seen.append("gram")
        return super().gram(*arguments, **options)

    def norms(self, *arguments, **options):
        self.seen.append("norms")
        return super().norms(*arguments, **options)


ASKS = [
    ([Mean()], []),
    ([Bucketing(), Mean()], []),
    ([Clip(), Mean()], ["norms"]),
    ([ARC(), Clip(), Bucketing(), Mean()], ["norms"]),
    ([NormBound()], ["norms"]),
    ([Clip(), CenteredClipping()], ["norms"]),
    ([FLTrust()], ["norms"]),
    ([CenteredClipping(iterations=3)], ["gram"]),
    ([Bucketing(), Clip(), Mean()], ["gram"]),
    ([NNM(), NormBound()], ["gram"]),
    ([Clip(), Krum()], ["gram"]),
]


@pytest.mark.parametrize(("parts", "asked"), ASKS, ids=["+".join(part.name for part in parts) for parts, _ in ASKS])
def test_a_defence_asks_for_no_more_than_it_needs_and_decides_the_same(parts, asked):
    rows, pipeline = rows_of(12)[:, :5000], Pipeline(parts)
    rows[3] *= 40
    vector = rows[1] + np.float32(0.1)
    context = Context(f=2, previous=vector, root=vector)
    updates = Asked(rows)
    found = pipeline.run(updates, context)
    assert updates.seen == asked
    assert not not_revealed(pipeline.needs, frozenset({"sum", *asked}))
    context, held = Context(f=2, previous=vector, root=vector), ClearUpdates([rows])
    whole = pipeline.run(held, context, pipeline.gram(held, context))
    assert np.allclose(found.aggregate, whole.aggregate, rtol=0, atol=2e-6 * np.abs(rows).max())
    assert np.allclose(found.weights, whole.weights, rtol=1e-5, atol=1e-9)
    context = Context(f=2, previous=vector, root=vector)
    sharded = pipeline.run(ShardedUpdates.of([rows[:, :4096], rows[:, 4096:]]), context)
    assert np.array_equal(sharded.aggregate, found.aggregate)


def test_chunks_of_scattered_rows_are_those_of_one_block():
    rows = rows_of(9)
    order = np.array([0, 3, 6, 1, 4, 7, 2, 5, 8])
    scattered = ClearUpdates([rows[order[:4]], rows[order[4:]]], np.argsort(order))
    assert np.array_equal(scattered.squares(), ClearUpdates([rows]).squares())
    weights = Combination(np.arange(9.0))
    assert np.array_equal(scattered.combine(weights), ClearUpdates([rows]).combine(weights))


def test_products_of_few_and_of_many_lines_agree():
    for lines in (*range(1, 3 * chunks.TILE), chunks.FEW, chunks.FEW + 1):
        rows = np.random.default_rng(lines).standard_normal((lines, 2345))
        assert np.allclose(ClearUpdates([rows]).gram().matrix, rows @ rows.T, rtol=1e-12, atol=1e-11)


def test_rows_on_the_cpu_import_no_torch():
    code = (
        "import sys, numpy as np; from fedrobust.aggregation import Pipeline, NNM, Krum, Median\n"
        "rows = np.random.default_rng(0).standard_normal((9, 50_000))\n"
        "for rule in (Krum(), Median()): Pipeline([NNM(), rule]).aggregate(rows)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
