"""Each rule and stage against its paper's formula, written on the rows in float64 for reading."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fedrobust.aggregation import (
    NNM,
    CenteredClipping,
    Clip,
    Context,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MultiKrum,
    Pipeline,
    TrimmedMean,
    capped_prior,
)
from fedrobust.aggregation.testing import INSTANCES
from fedrobust.updates import ClearUpdates


def distance(a, b):
    return np.sqrt(((a - b) ** 2).sum())


def lowest(scores, count):
    """Indices of the lowest scores; of equals (to 12 digits) the lower index."""
    return sorted(range(len(scores)), key=lambda i: (float(f"{scores[i]:.11e}"), i))[:count]


def mean(rows, f, prior):
    return sum(p * row for p, row in zip(prior, rows, strict=True))


def scores(rows, f):
    n = len(rows)
    found = []
    for i in range(n):
        others = sorted(distance(rows[i], rows[j]) ** 2 for j in range(n) if j != i)
        found.append(sum(others[: n - f - 2]))
    return found


def krum(rows, f, prior):
    return rows[lowest(scores(rows, f), 1)[0]]


def multi_krum(rows, f, prior, m=None):
    chosen = lowest(scores(rows, f), m or len(rows) - f)
    return sum(prior[i] * rows[i] for i in chosen) / sum(prior[i] for i in chosen)


def geometric_median(rows, f, prior, nu=1e-6):
    centre = mean(rows, f, prior)
    for _ in range(100_000):
        weights = np.array([p / max(nu, distance(centre, row)) for p, row in zip(prior, rows, strict=True)])
        new = weights @ rows / weights.sum()
        step, centre = distance(new, centre), new
        if step <= 1e-14 * (1 + np.abs(centre).max()):
            break
    return centre


def centered_clipping(rows, f, prior, tau=None, iterations=1, start=0.0):
    centre = start + np.zeros(rows.shape[1])
    for _ in range(iterations):
        lengths = [distance(row, centre) for row in rows]
        radius = np.median(lengths) if tau is None else tau
        step = np.zeros_like(centre)
        for p, row, length in zip(prior, rows, lengths, strict=True):
            step += p * (row - centre) * (min(1.0, radius / length) if length > 0 else 1.0)
        centre = centre + step
    return centre


def median(rows, f, prior):
    return np.median(rows, axis=0)


def trimmed_mean(rows, f, prior):
    return np.sort(rows, axis=0)[f : len(rows) - f].mean(axis=0)


def clip(rows, f, radius=None):
    norms = np.sqrt((rows**2).sum(axis=1))
    radius = np.median(norms) if radius is None else radius
    return np.array([row * min(1.0, radius / norm) if norm > 0 else row for row, norm in zip(rows, norms, strict=True)])


def nnm(rows, f):
    mixed = []
    for row in rows:
        nearest = lowest([distance(row, other) ** 2 for other in rows], len(rows) - f)
        mixed.append(rows[nearest].mean(axis=0))
    return np.array(mixed)


RULES: dict[str, tuple[list, Callable]] = {
    "mean": ([Mean()], mean),
    "krum": ([Krum()], krum),
    "multi_krum": ([MultiKrum()], multi_krum),
    "multi_krum of 2": ([MultiKrum(m=2)], lambda u, f, p: multi_krum(u, f, p, m=2)),
    "geometric_median": ([GeometricMedian()], geometric_median),
    "geometric_median, wide nu": ([GeometricMedian(nu=0.5)], lambda u, f, p: geometric_median(u, f, p, nu=0.5)),
    "centered_clipping": ([CenteredClipping()], centered_clipping),
    "centered_clipping, fixed": (
        [CenteredClipping(tau=2.0, iterations=3)],
        lambda u, f, p: centered_clipping(u, f, p, tau=2.0, iterations=3),
    ),
    "median": ([Median()], median),
    "trimmed_mean": ([TrimmedMean()], trimmed_mean),
    "clip, mean": ([Clip(), Mean()], lambda u, f, p: mean(clip(u, f), f, p)),
    "clip to 3, krum": ([Clip(radius=3.0), Krum()], lambda u, f, p: krum(clip(u, f, 3.0), f, p)),
    "nnm, krum": ([NNM(), Krum()], lambda u, f, p: krum(nnm(u, f), f, p)),
    "nnm, geometric_median": ([NNM(), GeometricMedian()], lambda u, f, p: geometric_median(nnm(u, f), f, p)),
    "nnm, trimmed_mean": ([NNM(), TrimmedMean()], lambda u, f, p: trimmed_mean(nnm(u, f), f, p)),
    "clip, nnm, centered_clipping": (
        [Clip(), NNM(), CenteredClipping(iterations=2)],
        lambda u, f, p: centered_clipping(nnm(clip(u, f), f), f, p, iterations=2),
    ),
    "clip, nnm, clip, median": (
        [Clip(), NNM(), Clip(), Median()],
        lambda u, f, p: median(clip(nnm(clip(u, f), f), f), f, p),
    ),
}


SHAPES = [(3, 1, 0), (4, 2, 0), (5, 3, 1), (9, 40, 3), (10, 700, 2), (23, 17, 10)]


@pytest.mark.parametrize("kind", INSTANCES)
@pytest.mark.parametrize("name", RULES)
def test_follows_its_formula(name, kind):
    parts, reference = RULES[name]
    for n, d, f in SHAPES:
        rows = INSTANCES[kind](np.random.default_rng(n), n, d, f)
        found = Pipeline(parts).aggregate(rows, f=f)
        expected = reference(rows, f, np.full(n, 1 / n))
        scale = max(1.0, np.abs(expected).max())
        assert np.abs(found - expected).max() <= 1e-8 * scale, (n, d, f)


@pytest.mark.parametrize("scale", [1e-3, 1e6, 1e12, 1e18])
def test_a_geometric_median_is_the_same_at_any_scale(scale):
    rows = np.random.default_rng(0).standard_normal((9, 60)) * np.geomspace(0.2, 5.0, 9)[:, None]
    found = Pipeline([GeometricMedian()]).aggregate(scale * rows) / scale
    np.testing.assert_allclose(found, geometric_median(rows, 0, np.full(9, 1 / 9)), atol=1e-5)


@pytest.mark.parametrize("name", [name for name, (parts, _) in RULES.items() if all(part.weighs for part in parts)])
def test_weighs_by_samples(name):
    parts, reference = RULES[name]
    rng = np.random.default_rng(5)
    samples = rng.integers(1, 100, 11)
    rows = rng.standard_normal((11, 30))
    expected = reference(rows, 3, capped_prior(samples, 11))
    assert np.allclose(Pipeline(parts).aggregate(rows, samples=samples, f=3), expected, rtol=0, atol=1e-8)
    if name != "nnm, krum":
        assert not np.allclose(expected, reference(rows, 3, np.full(11, 1 / 11)))


@pytest.mark.parametrize("common", [0.0, 1.0, 1e6])
def test_centered_clipping_starts_from_the_last_aggregate(common):
    rng = np.random.default_rng(1)
    shared = common * rng.standard_normal(50)
    rows, previous = shared + rng.standard_normal((9, 50)), shared + rng.standard_normal(50)
    for tau in (2.0, None):
        pipeline = Pipeline([CenteredClipping(tau=tau or "median", iterations=2)])
        expected = centered_clipping(rows, 2, np.full(9, 1 / 9), tau=tau, iterations=2, start=previous)
        found = pipeline.aggregate(rows, f=2, previous=previous)
        assert np.abs(found - expected).max() <= 1e-8 * max(1.0, common)
        result = pipeline.run(ClearUpdates([rows]), Context(f=2, previous=previous))
        assert np.allclose(result.aggregate, expected, rtol=1e-6)
        assert result.weights.sum() + result.anchors["momentum"] == pytest.approx(1.0)


def test_centered_clipping_after_stages_keeps_its_anchor():
    rng = np.random.default_rng(2)
    rows, previous = rng.standard_normal((9, 50)), rng.standard_normal(50)
    found = Pipeline([Clip(), NNM(), CenteredClipping(tau=1.5)]).aggregate(rows, f=2, previous=previous)
    expected = centered_clipping(nnm(clip(rows, 2), 2), 2, np.full(9, 1 / 9), tau=1.5, start=previous)
    assert np.allclose(found, expected, rtol=0, atol=1e-10)


def test_geometric_median_of_a_majority_of_equal_rows_is_that_row():
    rows = np.random.default_rng(3).standard_normal((9, 20))
    rows[:5] = rows[0]
    assert np.allclose(Pipeline([GeometricMedian()]).aggregate(rows, f=4), rows[0], rtol=0, atol=1e-5)


def test_krum_prefers_the_lower_index_of_equals():
    rows = np.array([[9.0], [1.0], [0.0], [1.0], [0.0]])
    assert Pipeline([Krum()]).combination(rows, f=1).weights.tolist() == [0, 1, 0, 0, 0]
    three = np.array([[5.0], [1.0], [0.0]])  # with one neighbour each, the nearest pair always ties
    assert Pipeline([Krum()]).combination(three, f=0).weights.tolist() == [0, 1, 0]
    assert Pipeline([MultiKrum(m=2)]).combination(rows, f=1).weights.tolist() == [0, 0.5, 0.5, 0, 0]
