"""Rows in the span of lines: a defence must make of them what it makes of the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest

from fedrobust.aggregation import Context, Pipeline, RowRule, Rule, Stage
from fedrobust.aggregation.testing.cases import layout
from fedrobust.options import members
from fedrobust.updates import ClearUpdates, Span

N, L, D = 9, 12, 300
PARTS = members(Rule, RowRule)


def lines_and_mixing(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    lines = (rng.standard_normal((L, D)) + rng.standard_normal(D)).astype(np.float32)
    mixing = np.eye(N, L)
    mixing[:2] = 0.2 * rng.standard_normal((2, L))
    return lines, mixing


@pytest.mark.parametrize("name", sorted(PARTS))
@pytest.mark.parametrize("stages", [(), ("clip", "nnm")])
def test_every_rule_makes_the_same_of_the_rows_and_of_their_span(name: str, stages: tuple[str, ...]) -> None:
    known = members(Stage)
    pipeline = Pipeline([*(known[stage]() for stage in stages), PARTS[name]()])  # type: ignore[list-item]
    lines, mixing = lines_and_mixing(1)
    rows, clients = mixing @ lines.astype(np.float64), np.array([0, 1, 2, 3, 5, 6, 7, 8, 12])
    rng, prior = np.random.default_rng(2), np.full(N, 1 / N)
    past = {name: rng.standard_normal((10, D)).astype(np.float32) for name in pipeline.histories}
    root, previous = rows.mean(0) + rng.standard_normal(D), rows.mean(0)
    context = [
        Context(f=1, clients=clients, root=root, previous=previous, step=previous, layers=layout(D)) for _ in range(2)
    ]
    kept = np.arange(N) != 4
    held = ClearUpdates([rows], prior=prior, histories=past, clients=clients)
    spanned = Span([lines], past, clients).rows(mixing, prior)
    found = []
    for protocol, own in zip((held, spanned), context, strict=True):
        gram = pipeline.gram(protocol, own)
        found.append(pipeline.carry_out(pipeline.decide(protocol, own, gram, kept), protocol))
    scale = np.linalg.norm(rows, axis=1).max()
    assert np.linalg.norm(found[0].aggregate - found[1].aggregate) <= 2e-5 * scale
    if found[0].weights is not None:
        assert found[0].weights[4] == 0  # who is kept out has no weight
        assert np.allclose(found[0].weights, found[1].weights, atol=1e-4)


def test_products_distances_and_subsets_are_those_of_the_rows() -> None:
    lines, mixing = lines_and_mixing(3)
    rows, clients = mixing @ lines.astype(np.float64), np.arange(N) + 1
    rng, prior = np.random.default_rng(4), np.linspace(1, 2, N)
    past = {"sum": rng.standard_normal((N, D)).astype(np.float32)}  # the last client is new
    anchors = {"root": rng.standard_normal(D)}
    span = Span([lines], past, clients)
    left = np.array([0, 2, 5, 8])
    for protocol, chosen in ((span.rows(mixing, prior), np.arange(N)), (span.rows(mixing, prior).subset(left), left)):
        gram = protocol.gram(anchors, ("sum",))
        expected = ClearUpdates([rows[chosen]], prior=prior[chosen], histories=past, clients=clients[chosen])
        wanted = expected.gram(anchors, ("sum",))
        assert np.allclose(gram.matrix, wanted.matrix, rtol=1e-9)
        assert np.allclose(gram.prior, wanted.prior)
        assert np.allclose(gram.distances_squared(), wanted.distances_squared(), rtol=1e-9, atol=1e-6)
        assert np.allclose(gram.anchors["root"].products, wanted.anchors["root"].products, atol=1e-6)
        for field in ("matrix", "cross"):
            assert np.allclose(getattr(gram.histories["sum"], field), getattr(wanted.histories["sum"], field))
    protocol = span.rows(mixing, prior)
    found = Pipeline([members(Rule)["mean"]()]).decide(protocol, Context(f=0), protocol.gram()).decided  # type: ignore[list-item]
    point = rng.random(L)
    expected_square = np.sum((prior / prior.sum() @ rows - point @ lines) ** 2)
    assert protocol.squared_distance(found, point) == pytest.approx(expected_square, rel=1e-6)  # type: ignore[arg-type]


def test_coefficients_that_are_not_finite_make_rows_that_are_not() -> None:
    lines, mixing = lines_and_mixing(5)
    mixing[1, 3] = np.nan
    rows = Span([lines], {}, np.arange(N)).rows(mixing, np.ones(N))
    assert rows.finite_rows().tolist() == [True, False] + [True] * (N - 2)
