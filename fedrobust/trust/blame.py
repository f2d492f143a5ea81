"""Each member's own anomaly score where only groups are seen: which clients explain the bad groups of all rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedrobust.updates import Floats

CERTAIN = 0.99
"""The largest score of a group that counts: with a score of 1, no other evidence could clear its members."""
RIDGE = 0.1
"""Pulls a client's blame to 0 where the data cannot separate it from the blame of others."""


def no_blame(clients: int) -> dict[str, Floats]:
    """The memory of `members_scores` before the first round, for so many `clients`."""
    return {"together": np.zeros((clients, clients)), "blame": np.zeros(clients)}


def members_scores(
    memory: Mapping[str, Floats],
    groups: Sequence[Sequence[int]],
    scores: Sequence[float] | Floats,
    forgetting: float = 0.9,
) -> tuple[dict[int, float], dict[str, Floats]]:
    """Each member's own score, from the scores of the groups in this round and in earlier ones; and the new memory.

    memory: the memory returned in the last round, or `no_blame`.
    groups: the client ids of each group's members.
    scores: one in [0, 1] for each group.
    forgetting: the weight of a round, relative to the next one.

    The model: a group is as good as all its members together, 1 − s_g = Π_{i∈g} (1 − q_i), so −log(1 − s_g) = Σ_{i∈g}
    z_i with z_i = −log(1 − q_i) ≥ 0. The z fit all groups of all rounds by non-negative least squares: a client that
    was once in a good group is cleared of the bad groups that other clients explain. A member's score is q_i, at most
    that of its group now.
    """
    from scipy.linalg import cholesky, solve_triangular
    from scipy.optimize import nnls

    clients = len(memory["blame"])
    seats = np.zeros((len(groups), clients))
    for row, group in enumerate(groups):
        seats[row, list(group)] = 1.0
    capped = -np.log1p(-np.clip(np.asarray(scores, dtype=np.float64), 0.0, CERTAIN))
    together = forgetting * memory["together"] + seats.T @ seats
    blame = forgetting * memory["blame"] + seats.T @ capped
    upper = cholesky(together + RIDGE * np.eye(clients))
    fitted, _ = nnls(upper, solve_triangular(upper, blame, trans="T"))
    own = -np.expm1(-fitted)
    found = {
        client: float(min(own[client], score)) for group, score in zip(groups, scores, strict=True) for client in group
    }
    return found, {"together": together, "blame": blame}
