"""LASA and DeepSight against their papers, on the rows."""

from __future__ import annotations

import math
import pickle
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refused import refused
from sklearn.cluster import HDBSCAN

from fedrobust.aggregation import LASA, Aggregation, Clip, Context, DeepSight, Layer, Pipeline, capped_prior
from fedrobust.aggregation.base import Rows
from fedrobust.aggregation.rules.layers import _digits, _last_figures, _layer_figures, _layer_means, magnitude_ranked
from fedrobust.aggregation.testing import INSTANCES, cases, check_rule
from fedrobust.updates import ClearUpdates, ShardedUpdates, shard_columns
from fedrobust.updates.interface import CHUNK_BYTES


def layout(d, classes=2):
    """A body, if there is room for one, and a linear layer of so many outputs."""
    features = max(1, (d // classes - 1) // 2)
    body = d - classes * features - classes
    return [*([("body", (body,))] if body else []), ("head.weight", (classes, features)), ("head.bias", (classes,))]


def parts(layers):
    ends = np.cumsum([math.prod(shape) for _, shape in layers]).tolist()
    return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]


def clipped(rows):
    norms = [np.sqrt((row**2).sum()) for row in rows]
    middle = np.median(norms)
    return np.array([row * min(1.0, middle / norm) if norm else row for row, norm in zip(rows, norms, strict=True)])


# -- LASA


def usual(values, radius):
    """Who is within so many standard deviations of the median; all, if there is no spread."""
    values = np.array(values)
    spread = np.sqrt(((values - values.mean()) ** 2).mean())
    if spread <= 1e-9 * np.abs(values).max():
        return set(range(len(values)))
    return {i for i, value in enumerate(values) if abs(value - np.median(values)) <= radius * spread * (1 + 1e-9)}


def lasa(rows, f, prior, layers, sparsity=0.3, lambda_n=1.0, lambda_s=1.0):
    n, d = rows.shape
    sparse = clipped(rows)
    for row, sizes in zip(sparse, np.abs(rows.astype(np.float32)), strict=True):
        least = sorted(sizes)[math.floor(sparsity * d + 1e-9)]
        row[sizes < least] = 0.0
    result = np.zeros(d)
    for part in parts(layers):
        norms, purities = [], []
        for row in sparse:
            signs = np.sign(row[part])
            norms.append(np.sqrt((row[part] ** 2).sum()))
            purities.append(0.5 * (1 + signs.sum() / np.abs(signs).sum()) if signs.any() else 0.5)
        kept = usual(norms, lambda_n) & usual(purities, lambda_s) or set(range(n))
        result[part] = sum(prior[i] * sparse[i][part] for i in kept) / sum(prior[i] for i in kept)
    return result


SHAPES = [(3, 1, 0), (4, 2, 0), (5, 3, 1), (9, 40, 3), (10, 700, 2), (23, 17, 10)]
LASA_OPTIONS = [{}, {"sparsity": 0.0}, {"sparsity": 0.9, "lambda_n": 2.0}, {"lambda_n": 0.4, "lambda_s": 0.7}]


@pytest.mark.parametrize("kind", INSTANCES)
@pytest.mark.parametrize("options", LASA_OPTIONS, ids=str)
def test_lasa_follows_its_formula(options, kind):
    for n, d, f in SHAPES:
        for layers in ([("all", (d,))], layout(d) if d >= 6 else [("one", (1,)), ("rest", (d - 1, 1))]):
            rows = INSTANCES[kind](np.random.default_rng(n), n, d, f)
            found = Pipeline([LASA(**options)]).aggregate(rows, f=f, layers=layers)
            expected = lasa(rows, f, np.full(n, 1 / n), layers, **options)
            assert np.abs(found - expected).max() <= 1e-8 * max(1.0, np.abs(expected).max()), (n, d, f)


def test_lasa_without_layers_takes_the_model_as_one():
    rows = np.random.default_rng(0).standard_normal((7, 60))
    found = Pipeline([LASA()]).aggregate(rows)
    assert np.array_equal(found, Pipeline([LASA()]).aggregate(rows, layers=[("all", (60,))]))
    assert not np.allclose(found, Pipeline([LASA()]).aggregate(rows, layers=layout(60)))


def test_lasa_weighs_by_samples():
    rng = np.random.default_rng(5)
    rows, samples, layers = rng.standard_normal((11, 30)), rng.integers(1, 100, 11), layout(30)
    expected = lasa(rows, 3, capped_prior(samples, 11), layers)
    found = Pipeline([LASA()]).aggregate(rows, samples=samples, f=3, layers=layers)
    assert np.allclose(found, expected, rtol=0, atol=1e-8)
    assert not np.allclose(expected, lasa(rows, 3, np.full(11, 1 / 11), layers))


@pytest.mark.parametrize("rule", [LASA(sparsity=0.95, lambda_n=3.0), LASA(sparsity=0.0)], ids=str)
def test_lasa_keeps_its_promises(rule):
    check_rule(rule)


def test_lasa_drops_a_layer_that_is_scaled_and_one_whose_signs_are_flipped():
    rng = np.random.default_rng(1)
    layers = [("one", (500,)), ("two", (500,)), ("three", (500,))]
    common = rng.standard_normal(1500) + 0.8
    rows = common + 0.1 * rng.standard_normal((9, 1500))
    rows[0, :500] *= 3.0
    rows[1, 500:1000] *= -1
    rule = LASA(lambda_n=2.0, lambda_s=2.0, sparsity=0.0)
    found, rows = Pipeline([rule]).aggregate(rows, f=2, layers=layers), clipped(rows)
    for part, others in ((slice(0, 500), rows[1:]), (slice(500, 1000), np.delete(rows, [0, 1], axis=0))):
        assert np.allclose(found[part], others[:, part].mean(axis=0), atol=1e-12)
    # in the third layer, the first row is what its clipping left, a third of the others' size
    assert np.allclose(found[1000:], rows[1:, 1000:].mean(axis=0), atol=1e-12)


def test_lasa_sets_small_coordinates_to_zero_and_keeps_ties():
    rows = np.tile([4.0, -1.0, 1.0, 0.5, 1.0, -3.0, 0.0, 0.1, 0.2, 0.3], (3, 1))
    for sparsity, zeros in (
        (0.3, [6, 7, 8]),
        (0.4, [6, 7, 8, 9]),
        (0.6, [3, 6, 7, 8, 9]),
        (0.8, [1, 2, 3, 4, 6, 7, 8, 9]),
    ):
        expected = rows[0].copy()
        expected[zeros] = 0.0
        assert np.allclose(Pipeline([LASA(sparsity=sparsity)]).aggregate(rows), expected, atol=1e-15)
    short = Pipeline([LASA(sparsity=0.29)]).aggregate(np.tile(np.arange(1.0, 101), (3, 1)))  # 0.29 · 100 is below 29
    assert np.count_nonzero(short) == 71


def test_a_layer_that_nobody_is_usual_in_is_the_mean_of_all():
    rows = np.array([[1.0], [3.0]])  # each one deviation off the median, the larger one clipped to it
    assert Pipeline([LASA(lambda_n=0.5, sparsity=0.0)]).aggregate(rows) == pytest.approx(1.5)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 6),
    d=st.integers(1, 300),
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(["float32", "float64", "whole", "wide"]),
    data=st.data(),
)
def test_magnitudes_by_rank(n, d, seed, kind, data):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d))
    if kind == "whole":
        rows = np.round(rows)
    elif kind == "wide":
        rows *= 10.0 ** rng.uniform(-50, 50, (n, d))
    rows = rows.astype(np.float32 if kind == "float32" else np.float64)
    rank = data.draw(st.integers(0, d - 1))
    found = magnitude_ranked(Rows(ClearUpdates([rows]), None, None), rank)
    with np.errstate(over="ignore", under="ignore"):
        expected = np.sort(np.abs(rows.astype(np.float32)), axis=1)[:, rank]
    assert np.array_equal(found.astype(np.int32).view(np.float32), expected)


def test_lasa_from_shards_and_in_narrow_chunks(monkeypatch):
    rows = np.random.default_rng(3).standard_normal((8, 20_000)).astype(np.float32)
    layers = tuple(Layer(f"layer {k}", (size,)) for k, size in enumerate((1, 6000, 0, 1, 9000, 4998)))
    context, pipeline = Context(f=2, layers=layers), Pipeline([LASA()])
    expected = pipeline.run(ClearUpdates([rows]), context).aggregate
    edge = shard_columns(20_000, 2)[0].stop
    found = pipeline.run(ShardedUpdates.of([rows[:, :edge], rows[:, edge:]]), context).aggregate
    assert np.array_equal(found, expected)
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 1)
    assert np.allclose(pipeline.run(ClearUpdates([rows]), context).aggregate, expected, rtol=1e-6, atol=1e-9)


def test_lasa_after_a_stage_sees_its_rows():
    rows = np.random.default_rng(4).standard_normal((7, 60))
    expected = lasa(clipped(rows), 2, np.full(7, 1 / 7), layout(60))
    assert np.allclose(Pipeline([Clip(), LASA()]).aggregate(rows, layers=layout(60)), expected, atol=1e-8)


# -- DeepSight


def partition(distances, smallest):
    """Clusters of HDBSCAN as sets; a row of no cluster is alone."""
    n = len(distances)
    labels = [-1] * n
    if n >= smallest:
        labels = HDBSCAN(min_cluster_size=smallest, metric="precomputed", copy=True).fit_predict(distances).tolist()
    return [{j for j in range(n) if j == i or (labels[i] >= 0 and labels[j] == labels[i])} for i in range(n)]


def deepsight(rows, f, prior, layers, tolerated=1 / 3, smallest=2):
    n, classes = len(rows), layers[-1][1][0]
    *_, weight, bias = parts(layers)
    shares, biases = [], []
    for row in rows:
        energy = np.abs(row[weight].reshape(classes, -1)).sum(axis=1) + np.abs(row[bias])
        shares.append(energy**2 / (energy**2).sum() if energy.any() else energy)
        biases.append(row[bias] / np.sqrt((row[bias] ** 2).sum()) if row[bias].any() else row[bias])
    exceedings = [(share > max(0.01, 1 / classes) * share.max() * (1 + 1e-12)).sum() for share in shares]
    boundary = np.median(exceedings) / 2
    suspects = {i for i in range(n) if exceedings[i] <= boundary and exceedings[i] < np.median(exceedings)}
    energies, angles = np.zeros((n, n)), np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            energies[i, j] = np.sqrt(((shares[i] - shares[j]) ** 2).sum())
            angles[i, j] = 1 - biases[i] @ biases[j] if i != j else 0.0
    by_energy = partition(energies.round(12), smallest)
    by_angle = partition(np.clip(angles, 0, 2).round(12), smallest)
    clusters = [a & b for a, b in zip(by_energy, by_angle, strict=True)]
    kept = [i for i in range(n) if len(clusters[i] & suspects) < tolerated * len(clusters[i])]
    if not kept:
        return np.zeros(rows.shape[1])
    return sum(prior[i] * clipped(rows)[i] for i in kept) / sum(prior[i] for i in kept)


DEEP = [(3, 6, 2, 0), (4, 9, 3, 0), (5, 12, 2, 1), (9, 40, 4, 3), (10, 700, 10, 2), (23, 130, 5, 10)]


@pytest.mark.parametrize("kind", INSTANCES)
@pytest.mark.parametrize("options", [{}, {"tolerated": 0.5, "smallest": 3}], ids=str)
def test_deepsight_follows_its_formula(options, kind):
    for n, d, classes, f in DEEP:
        rows, layers = INSTANCES[kind](np.random.default_rng(n), n, d, f), layout(d, classes)
        rows[1 : 1 + n // 3, -classes - 1 :] *= 0.01  # with suspects
        found = Pipeline([DeepSight(**options)]).aggregate(rows, f=f, layers=layers)
        expected = deepsight(rows, f, np.full(n, 1 / n), layers, **options)
        assert np.abs(found - expected).max() <= 1e-8 * max(1.0, np.abs(expected).max()), (n, d, f)


def last_layers(one_sided, n=12, classes=10, features=20, body=30):
    """Rows of which some train one output more than the others, alike: row → (that output, what the others get)."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((n, classes, features)) * rng.uniform(0.7, 1.3, (n, classes, 1))
    bias = rng.standard_normal(classes) + 0.5 * rng.standard_normal((n, classes))
    for i, (target, others) in one_sided.items():
        energy = np.where(np.arange(classes) == target, 1.0, others)
        weight[i] = np.sign(weight[i]) * energy[:, None]
        bias[i] = energy + 1e-6 * rng.standard_normal(classes)
    rows = np.concatenate([rng.standard_normal((n, body)), weight.reshape(n, -1), bias], axis=1)
    return rows, [("body", (body,)), ("weight", (classes, features)), ("bias", (classes,))]


BELOW, ABOVE = 0.31, 0.32
"""Energies whose squares are a little below and above a tenth of the largest, the limit for ten outputs."""


def test_deepsight_drops_rows_that_train_one_output_alone():
    rows, layers = last_layers(dict.fromkeys([0, 5, 6], (3, 0.05)))
    found = Pipeline([DeepSight()]).combination(rows, layers=layers).weights
    assert (found[[0, 5, 6]] == 0).all()
    norms = np.linalg.norm(rows, axis=1)
    others = np.delete(np.arange(12), [0, 5, 6])
    assert np.allclose(found[others], np.minimum(1, np.median(norms) / norms[others]) / 9)


def test_deepsight_drops_who_is_like_the_suspects():
    rows, layers = last_layers({7: (3, ABOVE)})
    assert (Pipeline([DeepSight()]).combination(rows, layers=layers).weights > 0).all()
    rows, layers = last_layers({0: (3, BELOW), 5: (3, BELOW), 6: (3, BELOW), 7: (3, ABOVE)})
    found = Pipeline([DeepSight()]).combination(rows, layers=layers).weights
    assert np.flatnonzero(found == 0).tolist() == [0, 5, 6, 7]


def test_deepsight_keeps_who_is_like_many_others():
    rows, layers = last_layers({0: (3, BELOW)} | dict.fromkeys([1, 2, 3], (3, ABOVE)))
    assert (Pipeline([DeepSight()]).combination(rows, layers=layers).weights > 0).all()
    stricter = Pipeline([DeepSight(tolerated=0.25)]).combination(rows, layers=layers).weights
    assert np.flatnonzero(stricter == 0).tolist() == [0, 1, 2, 3]


def test_deepsight_that_drops_every_cluster_says_so():
    rows, layers = last_layers({0: (3, BELOW), 1: (3, ABOVE), 2: (6, BELOW), 3: (6, ABOVE), 4: (6, ABOVE)}, n=5)
    found = Pipeline([DeepSight()]).combination(rows, layers=layers)
    assert found.weights.tolist() == [0] * 5
    assert found.notes == ("deepsight dropped every cluster: the aggregate is zero",)
    assert np.array_equal(Pipeline([DeepSight()]).aggregate(rows, layers=layers), np.zeros(rows.shape[1]))


def test_deepsight_suspects_nobody_where_the_last_layer_is_frozen():
    rows, layers = last_layers({})
    rows[:, 30:] = 0.0
    assert (Pipeline([DeepSight()]).combination(rows, layers=layers).weights > 0).all()


def test_deepsight_weighs_by_samples():
    rows, layers = last_layers(dict.fromkeys([0, 5, 6], (3, 0.05)))
    samples = np.random.default_rng(5).integers(1, 100, 12)
    expected = deepsight(rows, 3, capped_prior(samples, 12), layers)
    found = Pipeline([DeepSight()]).aggregate(rows, samples=samples, f=3, layers=layers)
    assert np.allclose(found, expected, rtol=0, atol=1e-8)
    assert not np.allclose(expected, deepsight(rows, 3, np.full(12, 1 / 12), layers))


@pytest.mark.parametrize("smallest", [2, 3])
def test_deepsight_keeps_its_promises(smallest, monkeypatch):
    monkeypatch.setattr(cases, "layout", lambda d: tuple(Layer(*layer) for layer in layout(d)))
    check_rule(DeepSight(smallest=smallest), shapes=((4, 6, 0), (5, 9, 1), (9, 40, 3), (12, 130, 5)))


def test_deepsight_from_shards_and_in_narrow_chunks(monkeypatch):
    rows, layers = last_layers(dict.fromkeys([0, 5, 6], (3, 0.05)), classes=9, features=1200, body=1000)
    rows = rows.astype(np.float32)
    d = rows.shape[1]
    context, pipeline = Context(f=3, layers=tuple(Layer(*layer) for layer in layers)), Pipeline([DeepSight()])
    expected = pipeline.run(ClearUpdates([rows]), context)
    edge = shard_columns(d, 2)[0].stop
    found = pipeline.run(ShardedUpdates.of([rows[:, :edge], rows[:, edge:]]), context)
    assert np.array_equal(found.aggregate, expected.aggregate)
    measure = partial(_last_figures, weight=1000, bias=d - 9, classes=9)
    sums = np.abs(rows[:, 1000:-9].astype(np.float64)).reshape(12, 9, 1200).sum(axis=2)
    for _ in range(2):
        figures = ClearUpdates([rows]).total(measure)
        assert np.allclose(figures[0], sums, rtol=1e-12)
        assert np.array_equal(figures[1], rows[:, -9:])
        assert np.allclose(pipeline.run(ClearUpdates([rows]), context).weights, expected.weights, rtol=1e-12)
        monkeypatch.setitem(CHUNK_BYTES, "cpu", 1)


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ([], "none"),
        ([("bias", (20,))], "bias (20,)"),
        ([("weight", (4, 4)), ("scale", (4, 1))], "weight (4, 4), scale (4, 1)"),
        ([("weight", (1, 19)), ("bias", (1,))], "weight (1, 19), bias (1,)"),
        ([("scale", (10,)), ("bias", (10,))], "scale (10,), bias (10,)"),
        ([("weight", (5, 3)), ("bias", (5,)), ("extra", (0,))], "bias (5,), extra (0,)"),
    ],
)
def test_deepsight_says_which_layers_it_needs(layers, found):
    rows = np.random.default_rng(0).standard_normal((5, 20))
    with refused(path="layers", found=found, says="deepsight"):
        Pipeline([DeepSight()]).aggregate(rows, layers=layers)


def test_layers_that_do_not_add_up_are_refused():
    rows = np.random.default_rng(0).standard_normal((5, 20))
    for rule in (LASA(), DeepSight()):
        with refused(path="layers", says="15"):
            Pipeline([rule]).aggregate(rows, layers=[("weight", (3, 4)), ("bias", (3,))])


def test_deepsight_takes_the_weight_of_a_convolution():
    rows = np.random.default_rng(0).standard_normal((7, 44))
    flat = Pipeline([DeepSight()]).aggregate(rows, layers=[("weight", (4, 10)), ("bias", (4,))])
    assert np.array_equal(Pipeline([DeepSight()]).aggregate(rows, layers=[("w", (4, 10, 1, 1)), ("b", (4,))]), flat)


# -- both


def test_what_is_sent_pickles_small():
    least, edges = np.zeros(50, dtype=np.int64), np.zeros(100, dtype=np.int64)
    for measure in (
        partial(_digits, leading=least, shift=8),
        partial(_layer_figures, least=least, edges=edges),
        partial(_last_figures, weight=1, bias=5, classes=2),
    ):
        assert len(pickle.dumps(measure)) < 3000
    reduction = partial(_layer_means, least=least, edges=edges, weights=np.zeros((99, 50)))
    assert len(pickle.dumps(reduction)) < 99 * 50 * 8 + 3000


def test_options():
    read = Aggregation.model_validate({"rule": {"name": "lasa", "sparsity": 0.5}, "weighting": "samples"})
    assert read.rule == LASA(sparsity=0.5)
    assert Aggregation.model_validate({"rule": "deepsight"}).rule == DeepSight()
    for rule in (LASA(), DeepSight()):
        assert rule.bound(8, 4) == f"{rule.name} needs n ≥ 2f + 1: n = 8, f = 4"
        assert rule.bound(9, 4) is None
    for kind, wrong in (
        (LASA, {"sparsity": 1.0}),
        (LASA, {"lambda_n": 0.0}),
        (LASA, {"lambda_s": -1.0}),
        (DeepSight, {"tolerated": 0.0}),
        (DeepSight, {"smallest": 1}),
    ):
        with refused(path=next(iter(wrong))):
            kind(**wrong)
