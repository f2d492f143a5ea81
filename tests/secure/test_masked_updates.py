"""Masked sums as the coordinator sees them: one mean, or the means of groups."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fedrobust.aggregation import (
    AFA,
    NNM,
    Combination,
    Context,
    FoolsGold,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MultiKrum,
    Pipeline,
    TrimmedMean,
)
from fedrobust.errors import ExperimentError
from fedrobust.secure.masked_updates import (
    GroupedUpdates,
    MaskedSum,
    draw_groups,
    groups_refusal,
)
from fedrobust.secure.masking_client import MaskingClient
from fedrobust.secure.masking_server import MaskingServer, OpenedSum
from fedrobust.secure.masking_terms import MaskingError, Terms
from fedrobust.secure.messages import run_id
from fedrobust.updates import ClearUpdates, NotRevealed

D = 30


def opened(mean=(1.0, 2.0), weight=4.0, survivors=(0, 1, 3, 4), dropped=(2,)):
    return OpenedSum(np.array(mean, dtype=np.float32), weight, survivors, dropped)


# One sum


def test_a_masked_sum_gives_the_mean_and_nothing_else():
    protocol = MaskedSum(opened())
    result = Pipeline([Mean()]).run(protocol, Context(f=0))
    np.testing.assert_array_equal(result.aggregate, [1.0, 2.0])
    assert (protocol.n, protocol.d) == (4, 2)
    assert protocol.finite_rows().all()
    assert protocol.subset(np.ones(4, dtype=bool)) is protocol
    assert protocol.remembered(()) == {}
    one_hot = Combination(np.array([1.0, 0, 0, 0]))
    calls = [
        protocol.gram,
        lambda: protocol.combine(one_hot),
        lambda: protocol.combine(Combination(protocol.prior, {"momentum": 1.0})),
        lambda: protocol.subset(np.array([0, 1])),
        lambda: protocol.remembered(("last",)),
        lambda: protocol.total(lambda rows, columns: None),
    ]
    for call in calls:
        with pytest.raises(NotRevealed, match="only sum"):
            call()


@pytest.mark.parametrize("rule", [Krum(), GeometricMedian(), Median()])
def test_robust_rules_are_refused_on_a_sum(rule):
    with pytest.raises(NotRevealed, match=f"{rule.name} needs (gram|norms|rows)"):
        Pipeline([rule]).decide(MaskedSum(opened()), Context(f=1), None)


# Drawing


@pytest.mark.parametrize(("n", "size"), [(20, 3), (21, 3), (23, 5), (3, 3), (7, 4)])
def test_groups_share_all_clients_out(n, size):
    clients = [10 * i for i in range(n)]
    groups = draw_groups(clients, size, seed=1, round=2)
    assert sorted(client for group in groups for client in group) == clients
    assert len(groups) == n // size
    assert min(map(len, groups)) >= size
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    assert groups == draw_groups(clients[::-1], size, seed=1, round=2)


def test_groups_are_drawn_anew_and_everybody_meets_everybody():
    drawn = [draw_groups(range(12), 3, seed=5, round=round_) for round_ in range(400)]
    assert drawn[0] != drawn[1]
    assert drawn[0] != draw_groups(range(12), 3, seed=6, round=0)
    met = Counter(other for groups in drawn for group in groups if 0 in group for other in group)
    assert set(met) == set(range(12))
    assert all(45 < met[other] < 105 for other in range(1, 12))  # 400 · 2 / 11 ≈ 73, ± 4 standard deviations


@pytest.mark.parametrize(("n", "size"), [(10, 2), (10, 0), (2, 3)])
def test_groups_that_hide_nobody_are_refused(n, size):
    with pytest.raises(ExperimentError, match="groups need 3 members"):
        draw_groups(range(n), size, 0, 0)


# The bound


@pytest.mark.parametrize(
    ("rule", "stages", "size", "largest"),
    [
        (Median(), (), 3, 3),  # 7 groups of 21 clients: 7 ≥ 2 · 3 + 1
        (Median(), (), 5, 1),  # 4 groups
        (Median(), (), 7, 1),  # 3 groups
        (Krum(), (), 3, 2),  # 7 ≥ 2 · 2 + 3
        (Krum(), (), 4, 1),  # 5 ≥ 2 · 1 + 3
        (TrimmedMean(), (NNM(),), 3, 3),
    ],
)
def test_as_many_malicious_clients_as_the_rule_bears_groups(rule, stages, size, largest):
    assert groups_refusal(rule, stages, 21, size, largest) is None
    reason = groups_refusal(rule, stages, 21, size, largest + 1)
    assert f"{largest + 1} malicious clients can spoil {largest + 1} of {21 // size} groups of {size}" in reason
    assert f"largest f here: {largest}" in reason


@pytest.mark.parametrize("rule", [FoolsGold(), AFA()])
def test_rules_that_remember_clients_are_refused_over_groups(rule):
    assert "remembers clients" in groups_refusal(rule, (), 60, 3, 1)


# Rows


def masked_groups(updates, groups, round_, gone=(), counts=None):
    """Each group's round of masks; groups that fail are left out."""
    terms = Terms(
        run_id("groups"), round_, updates.shape[1], 5.0, largest_count=None if counts is None else 100.0, threshold=0.5
    )
    found = []
    for group in groups:
        clients, server = {i: MaskingClient(terms, i) for i in group}, MaskingServer(terms, group)
        try:
            for client in clients.values():
                server.receive(client.keys())
            directory = server.directory()
            for client in clients.values():
                server.receive(client.shares(directory))
            deliveries = server.deliveries()
            for i in set(group) - set(gone):
                server.receive(clients[i].masked(deliveries[i], updates[i], None if counts is None else counts[i]))
            survivors = server.survivors()
            for i in set(group) - set(gone):
                server.receive(clients[i].unmask(survivors))
            found.append(server.open())
        except MaskingError:
            continue
    return found


def test_rows_are_the_means_of_their_groups():
    rng = np.random.default_rng(3)
    updates, counts = rng.standard_normal((14, D)).astype(np.float32) / 3, rng.integers(1, 100, 14).astype(float)
    groups = draw_groups(range(14), 4, seed=1, round=0)
    gone = (groups[0][1],)
    protocol = GroupedUpdates.of(masked_groups(updates, groups, 0, gone, counts))
    members = [[i for i in group if i not in gone] for group in groups]
    assert protocol.groups == tuple(map(tuple, members))
    means = np.array([np.average(updates[group], axis=0, weights=counts[group]) for group in members])
    total = np.array([counts[group].sum() for group in members])
    np.testing.assert_allclose(protocol.prior, total / total.sum(), rtol=1e-6)
    for parts in ([Mean()], [GeometricMedian()], [Median()], [NNM(), MultiKrum()]):
        ours = Pipeline(parts).run(protocol, Context(f=0)).aggregate
        theirs = Pipeline(parts).run(ClearUpdates([means], prior=total), Context(f=0)).aggregate
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    # The mean over the groups is the mean over the clients.
    rest = [i for i in range(14) if i not in gone]
    everybody = np.average(updates[rest], axis=0, weights=counts[rest])
    np.testing.assert_allclose(Pipeline([Mean()]).run(protocol, Context(f=0)).aggregate, everybody, rtol=0, atol=1e-6)


def test_a_group_below_its_threshold_is_left_out():
    updates, groups = np.ones((12, D), dtype=np.float32) / 9, draw_groups(range(12), 4, seed=1, round=0)
    found = masked_groups(updates, groups, 0, gone=groups[1][:2])
    assert GroupedUpdates.of(found).groups == (groups[0], groups[2])
    with pytest.raises(ExperimentError, match="no group"):
        GroupedUpdates.of([])


def test_a_subset_keeps_groups_with_their_rows():
    rows = np.arange(12, dtype=np.float32).reshape(4, 3) + 1
    protocol = GroupedUpdates(rows, [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11)], [1, 1, 2, 4])
    part = protocol.subset(np.array([True, False, True, False]))
    assert part.groups == ((0, 1, 2), (6, 7, 8))
    np.testing.assert_allclose(part.prior, [1 / 3, 2 / 3])
    np.testing.assert_allclose(part.gram().matrix, rows[[0, 2]] @ rows[[0, 2]].T)
    with pytest.raises(ValueError, match="4 rows of 1 groups"):
        GroupedUpdates(rows, [(0, 1, 2)], [1, 1, 1, 1])


def test_groups_have_no_histories():
    protocol = GroupedUpdates(np.ones((3, 4), dtype=np.float32), [(0,), (1,), (2,)], [1, 1, 1])
    assert protocol.remembered(()) == {}
    for call in (lambda: protocol.gram(histories=("sum",)), lambda: protocol.remembered(("sum",))):
        with pytest.raises(NotRevealed, match="drawn anew"):
            call()


def test_within_the_bound_the_median_over_groups_withstands_what_the_mean_does_not():
    rng = np.random.default_rng(0)
    updates = (1 + 0.1 * rng.standard_normal((21, D))).astype(np.float32) / 6
    honest = updates[3:].mean(axis=0)
    updates[:3] = -5 / np.sqrt(D)  # as long as the clip allows
    groups = draw_groups(range(21), 3, seed=2, round=0)
    protocol = GroupedUpdates.of(masked_groups(updates, groups, 0))
    assert groups_refusal(Median(), (), 21, 3, 3) is None
    median = Pipeline([Median()]).run(protocol, Context(f=3)).aggregate
    mean = Pipeline([Mean()]).run(protocol, Context(f=0)).aggregate
    assert np.linalg.norm(median - honest) < 0.15 * np.linalg.norm(honest) < np.linalg.norm(mean - honest)
