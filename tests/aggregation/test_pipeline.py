from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from refused import problems, refused

from fedrobust.aggregation import (
    NNM,
    Aggregation,
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
    resolve_f,
)
from fedrobust.errors import ExperimentError
from fedrobust.updates import ClearUpdates

# Of every kind; the properties of all rules are in test_properties.py.
ANY = [
    [Mean()],
    [Krum()],
    [CenteredClipping()],
    [TrimmedMean()],
    [Clip(), NNM(), GeometricMedian()],
    [NNM(), TrimmedMean()],
]


def name(parts):
    return "+".join(part.name for part in parts)


@pytest.mark.parametrize("parts", ANY, ids=name)
def test_arrays_and_tensors_of_every_type(parts):
    rows = np.random.default_rng(0).standard_normal((9, 700)).astype(np.float32)
    pipeline = Pipeline(parts)
    expected = pipeline.aggregate(rows)
    assert (expected.dtype, expected.shape) == (np.float32, (700,))
    tensor = pipeline.aggregate(torch.from_numpy(rows).requires_grad_())
    assert tensor.dtype == torch.float32
    assert not tensor.requires_grad
    assert np.array_equal(tensor.numpy(), expected)
    assert np.allclose(pipeline.aggregate(rows.astype(np.float64)), expected, rtol=0, atol=1e-5)
    short = torch.from_numpy(rows).bfloat16()
    found = pipeline.aggregate(short)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, pipeline.aggregate(short.float()).bfloat16())
    assert pipeline.aggregate(rows.astype(np.float16)).dtype == np.float16
    strided = np.asfortranarray(rows)
    assert np.array_equal(pipeline.aggregate(strided), expected)


@pytest.mark.parametrize("parts", ANY, ids=name)
def test_inputs_stay_as_they_are(parts):
    rows = np.random.default_rng(1).standard_normal((9, 700))
    rows[0] *= 1e6
    tensor, before, previous = torch.from_numpy(rows.copy()), rows.copy(), np.ones(700)
    Pipeline(parts).aggregate(rows, previous=previous)
    Pipeline(parts).aggregate(tensor)
    protocol = ClearUpdates([rows])
    gram = protocol.gram({"momentum": previous})
    copies = gram.matrix.copy(), gram.prior.copy(), gram.centred.products.copy()
    result = Pipeline(parts).run(protocol, Context(f=2, previous=previous), gram)
    assert np.array_equal(rows, before)
    assert np.array_equal(tensor.numpy(), before)
    assert np.array_equal(previous, np.ones(700))
    assert result.gram is gram
    for now, then in zip((gram.matrix, gram.prior, gram.centred.products), copies, strict=True):
        assert np.array_equal(now, then)
    rows.flags.writeable = False
    Pipeline(parts).aggregate(rows)


@pytest.mark.parametrize("parts", ANY, ids=name)
def test_run_gives_the_aggregate_and_the_weights_that_make_it(parts):
    rng = np.random.default_rng(2)
    rows, previous = rng.standard_normal((10, 300)).astype(np.float32), rng.standard_normal(300)
    pipeline, context = Pipeline(parts), Context(f=3, previous=previous)
    result = pipeline.run(ClearUpdates([rows[:4], rows[4:]]), context)
    assert result.aggregate.dtype == np.float32
    assert np.array_equal(result.aggregate, pipeline.aggregate(rows, f=3, previous=previous))
    asked = {"gram": np.ones((10, 10), dtype=bool), "norms": np.eye(10, dtype=bool)}  # the rest is not computed
    shown = next((asked[need] for need in asked if need in pipeline.needs), np.zeros((10, 10), dtype=bool))
    if "rows" not in pipeline.needs:
        assert np.array_equal(np.isfinite(result.gram.matrix), shown)
        assert np.allclose(result.gram.matrix[shown], (rows @ rows.T)[shown], atol=1e-3)
    if result.weights is None:
        assert isinstance(parts[-1], Median | TrimmedMean)
        with refused(says=parts[-1].name):
            pipeline.combination(rows)
    else:
        made = result.weights @ rows + result.anchors.get("momentum", 0.0) * previous
        assert np.allclose(result.aggregate, made, atol=1e-5)
        assert np.array_equal(pipeline.combination(rows, f=3, previous=previous).weights, result.weights)


def test_priors_given_to_the_gram_reach_the_rule():
    rows = np.random.default_rng(3).standard_normal((4, 20))
    protocol = ClearUpdates([rows])
    gram = protocol.gram().weighted(np.array([1.0, 2, 3, 4]))
    assert np.allclose(Pipeline([Mean()]).run(protocol, Context(f=0), gram).weights, [0.1, 0.2, 0.3, 0.4])


def test_sample_counts_are_capped_at_twice_the_median():
    assert np.allclose(capped_prior([10, 20, 30, 1_000_000, 1], 5), np.array([10, 20, 30, 40, 1]) / 101)
    assert np.allclose(capped_prior(None, 4), 0.25)
    for wrong in ([1, 2], [1, 2, 0], [1, 2, -3], [1, np.nan, 2]):
        with refused(path="samples", found=str(wrong), says="3"):
            capped_prior(wrong, 3)
    with refused(path="samples", says="krum"):
        Pipeline([NNM(), Krum()]).aggregate(np.ones((5, 2)), samples=[1, 2, 3, 4, 5])


def test_sample_counts_are_capped_as_asked():
    counts = [10, 20, 30, 1_000_000, 1]
    assert np.allclose(capped_prior(counts, 5, 5.0), np.array([10, 20, 30, 100, 1]) / 161)
    assert np.allclose(capped_prior(counts, 5, None), np.array(counts) / 1_000_061)
    settings = Aggregation.model_validate({"rule": "mean", "weighting": "samples", "cap": None})
    assert np.array_equal(settings.prior(np.array(counts), 5), capped_prior(counts, 5, None))
    assert np.allclose(Aggregation().prior(np.array(counts), 5), 0.2)
    with refused(path="cap", says="weighting: samples"):
        Aggregation(cap=None)


@given(
    honest=st.lists(st.floats(1, 1e4), min_size=4, max_size=20),
    claims=st.lists(st.floats(1, 1e9), min_size=1, max_size=10),
)
def test_with_a_cap_that_follows_f_no_claim_holds_more_than_a_third_or_an_equal_share(honest, claims):
    f, n = min(len(claims), (len(honest) + 1) // 2), 0
    counts = np.array([*honest, *claims[:f]])
    n = len(counts)
    prior, bound = capped_prior(counts, n, "auto", f), max(1 / 3, f / n)
    assert prior[-f:].sum() <= bound + 1e-9 and np.sort(prior)[-f:].sum() <= bound + 1e-9
    assert np.all(np.diff(prior[np.argsort(counts, kind="stable")]) >= -1e-12)
    # No count is cut where the f largest hold no more than that anyway; else they hold all that they may.
    if np.sort(counts)[-f:].sum() <= bound * counts.sum():
        assert np.allclose(prior, counts / counts.sum())
    elif counts.max() > counts.min():
        assert np.sort(prior)[-f:].sum() == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("parts", ANY, ids=name)
def test_rows_that_are_not_finite_are_named(parts, value):
    rows = np.ones((9, 1000), dtype=np.float32)
    rows[3, 999] = rows[5, 0] = value
    for updates in (rows, torch.from_numpy(rows)):
        with refused(found="row 3, 5"):
            Pipeline(parts).aggregate(updates)


@pytest.mark.parametrize(
    ("f", "n", "rule", "stages", "expected"),
    [
        ("largest", 10, Krum(), (), 3),
        ("largest", 10, Median(), (), 4),
        ("largest", 11, TrimmedMean(), (), 5),
        ("largest", 10, Mean(), (), 4),
        ("largest", 3, MultiKrum(), (), 0),
        ("largest", 10, MultiKrum(m=8), (), 2),
        ("largest", 1, Mean(), (), 0),
        ("largest", 5, Krum(), (NNM(),), 1),
        (2, 10, Krum(), (), 2),
        (0, 10, Krum(), (), 0),
        (0.2, 10, Krum(), (), 2),
        (0.29, 100, Median(), (), 29),
        (0.3, 11, Median(), (), 3),
        (0.04, 10, Median(), (), 0),
        (0.05, 10, Median(), (), 1),  # as many as an attack of that fraction has
    ],
)
def test_declared_f(f, n, rule, stages, expected):
    assert resolve_f(f, n, rule, stages) == expected


@pytest.mark.parametrize(
    ("f", "n", "rule", "stages", "message"),
    [
        (4, 10, Krum(), (), "krum needs n ≥ 2f + 3: n = 10, f = 4; largest f here: 3"),
        (4, 10, MultiKrum(), (), "multi_krum needs n ≥ 2f + 3: n = 10, f = 4; largest f here: 3"),
        (3, 10, MultiKrum(m=8), (), "multi_krum needs m ≤ n − f: m = 8, n = 10, f = 3; largest f here: 2"),
        (5, 10, Median(), (), "median needs n ≥ 2f + 1: n = 10, f = 5; largest f here: 4"),
        (5, 10, Mean(), (), "mean needs n ≥ 2f + 1: n = 10, f = 5; largest f here: 4"),
        (5, 10, Mean(), (NNM(),), "nnm needs n ≥ 2f + 1: n = 10, f = 5; largest f here: 4"),
        (0.4, 10, Krum(), (), "krum needs n ≥ 2f + 3: n = 10, f = 4; largest f here: 3"),
        ("largest", 2, Krum(), (), "krum needs n ≥ 2f + 3: n = 2, f = 0; too few updates for any f"),
        ("largest", 0, Median(), (), "median needs n ≥ 2f + 1: n = 0, f = 0; too few updates for any f"),
    ],
)
def test_an_f_beyond_the_bound_is_refused(f, n, rule, stages, message):
    with pytest.raises(ExperimentError) as error:
        resolve_f(f, n, rule, stages)
    assert str(error.value) == message
    if n:
        with pytest.raises(ExperimentError):
            Pipeline([*stages, rule]).aggregate(np.ones((n, 2)), f=f)


def test_bounds_are_checked_for_a_context_too():
    with refused(message=Krum().bound(5, 2)):
        Pipeline([Krum()]).run(ClearUpdates([np.ones((5, 2))]), Context(f=2))


@pytest.mark.parametrize("parts", [[], [Clip()], [Krum(), Mean()], [Mean(), Clip()], [3]])
def test_a_pipeline_is_stages_and_one_rule(parts):
    with refused(found=", ".join(type(part).__name__ for part in parts) or "nothing"):
        Pipeline(parts)


def test_options_of_an_experiment():
    assert Aggregation() == Aggregation(stages=(), rule=Mean(), f="largest", weighting="uniform")
    read = Aggregation.model_validate(
        {"stages": ["clip", {"name": "nnm"}], "rule": {"name": "multi_krum", "m": 3}, "f": 0.2, "weighting": "samples"}
    )
    assert read.stages == (Clip(), NNM())
    assert read.rule == MultiKrum(m=3)
    assert read.pipeline().parts == (Clip(), NNM(), MultiKrum(m=3))
    assert Aggregation.model_validate(read.model_dump(serialize_as_any=True)) == read
    assert Aggregation.model_validate({"rule": "trimmed_mean", "f": 2}).byzantine_f(9) == 2


def test_f_of_an_experiment_falls_by_malformed_rows_and_not_by_absent_ones():
    for f in (3, 0.3):
        assert Aggregation(rule=Median(), f=f).byzantine_f(8, asked=10) == 3
        assert Aggregation(rule=Median(), f=f).byzantine_f(8, asked=10, malformed=2) == 1
        assert Aggregation(rule=Median(), f=f).byzantine_f(5, asked=10, malformed=5) == 0
        told = "median needs n ≥ 2f + 1: n = 6, f = 3; largest f here: 2"
        assert Aggregation(rule=Median(), f=f).refusal(6, asked=10) == told
        assert Aggregation(rule=Median(), f=f).refusal(6, asked=10, malformed=1) is None
    assert Aggregation(rule=Median()).byzantine_f(8, asked=10) == 3
    assert Aggregation(rule=Krum(), f=4).refusal(10) == "krum needs n ≥ 2f + 3: n = 10, f = 4; largest f here: 3"
    assert Aggregation(rule=Krum(), f=4).refusal(11) is None


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"rule": "krum", "weighting": "samples"}, {"path": "weighting", "says": "krum"}),
        ({"f": 0.5}, {"path": "f", "says": "(0, 0.5)"}),
        ({"f": 0.0}, {"path": "f", "says": "(0, 0.5)"}),
        ({"f": -1}, {"path": "f", "says": "≥ 0"}),
        ({"rule": "multikrum"}, {"path": "rule.name", "hint": "did you mean 'multi_krum'?"}),
        ({"rule": "nnm"}, {"path": "rule.name", "allows": "geometric_median"}),
        ({"stages": ["krum"]}, {"path": "stages.0.name", "allows": "clip"}),
        ({"rule": {"name": "krum", "m": 3}}, {"path": "rule.krum.m", "allowed": ("name",)}),
        ({"rule": {"name": "geometric_median", "nu": 0.0}}, {"path": "rule.geometric_median.nu", "found": "0.0"}),
    ],
)
def test_options_that_cannot_be(values, problem):
    with refused(ValidationError, **problem):
        Aggregation.model_validate(values)


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"f": "most"}, "f"),
        ({"f": True}, "f"),
        ({"rule": {"name": "centered_clipping", "tau": -1.0}}, "rule.centered_clipping.tau"),
        ({"stages": [{"name": "clip", "radius": "mean"}]}, "stages.0.clip.radius"),
    ],
)
def test_options_that_fit_none_of_several_types(values, path):
    with pytest.raises(ValidationError) as caught:
        Aggregation.model_validate(values)
    assert all(each.path.startswith(path) for each in problems(caught.value))


@pytest.mark.parametrize("f", [None, 2, "auto"])
def test_the_cap_of_claims_is_that_of_a_run(f):
    rows, samples = np.random.default_rng(0).standard_normal((9, 5)), np.array([1, 1, 1, 1, 1, 1, 1, 50, 900])
    pipeline = Pipeline([Mean()])

    def weights(**options):
        return pipeline.combination(rows, samples=samples, f=f, **options).weights

    np.testing.assert_allclose(weights(), weights(cap=2.0))
    np.testing.assert_allclose(weights(cap=None), samples / samples.sum())
    np.testing.assert_allclose(weights(cap=50), np.minimum(samples, 50) / np.minimum(samples, 50).sum())
    settings = Aggregation(rule=Mean(), weighting="samples", cap="auto", f="largest" if f is None else f)
    np.testing.assert_allclose(weights(cap="auto"), settings.prior(samples, 9))
    with pytest.raises(TypeError, match="unknown: caps"):
        weights(caps=3)
