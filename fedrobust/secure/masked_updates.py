"""What masked sums show the coordinator: one mean over all clients, or a mean for each of small random groups.

In groups, robust rules work on the groups' means. One malicious client spoils the whole row of its group, so there must
be more groups than there would have to be rows of single clients. The groups are drawn anew in each round: a client's
reputation comes from the groups that it was in over the rounds. The same holds for its secret: within a round its
update is hidden among those of its group. But as far as updates of successive rounds are alike, the means of many
rounds' groups determine what the updates of each single client have in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrobust.aggregation import AnyRule, Combination, Gram, Rule, Stage, resolve_f
from fedrobust.errors import ExperimentError
from fedrobust.secure.masking_server import OpenedSum
from fedrobust.seeds import generator
from fedrobust.updates import ClearUpdates, Floats, NotRevealed, Updates

Groups = Sequence[Sequence[int]]
"""The members of each group, by client id."""

SMALLEST = 3
"""Fewest members of a group: in a group of two, each can compute the other's update from the mean."""


def draw_groups(clients: Sequence[int], size: int, seed: int, round: int) -> tuple[tuple[int, ...], ...]:
    """Divide the clients into random groups of `size`; some have one or more members above it if it does not divide
    their number.

    The groups depend on the seed and the round, not on the order of `clients`.

    Raises `ExperimentError` for a size below three.
    """
    if size < SMALLEST or len(clients) < size:
        raise ExperimentError(
            f"groups need {SMALLEST} members at least, and as many clients: found {size} of {len(clients)} clients"
        )
    shuffled = generator(seed, "groups", round).permutation(np.array(sorted(clients)))
    cut = np.array_split(shuffled, len(clients) // size)
    return tuple(tuple(sorted(group.tolist())) for group in cut)


def remembers(rule: AnyRule) -> str | None:
    """Why a rule that remembers clients cannot work on groups; None for other rules."""
    if rule.per_client or (isinstance(rule, Rule) and rule.histories):
        return f"{rule.name} remembers clients; a group of masked updates is no single client's"
    return None


def groups_refusal(rule: AnyRule, stages: Sequence[Stage], clients: int, size: int, f: int) -> str | None:
    """Why a defence cannot tolerate this many malicious clients in groups; None if it can.

    Each malicious client may be in a group of its own, so f of the ⌊clients / size⌋ rows can be bad. The rule and the
    stages must tolerate f among so many rows. A rule that remembers clients is refused, because no row belongs to one
    client.

    clients: in a round.
    size: of a group.
    f: malicious clients.
    """
    if reason := remembers(rule):
        return reason
    groups = clients // size
    try:
        resolve_f(f, groups, rule, stages)
    except ExperimentError as error:
        return f"{f} malicious clients can spoil {min(f, groups)} of {groups} groups of {size}: {error}"
    return None


class MaskedSum(Updates):
    """The mean that a round of masks has opened: no row, no product of rows, no other combination.

    `prior` is uniform. Where sample counts are hidden weights, the mean is weighted by them, and nobody knows them.
    """

    reveals = frozenset({"sum"})

    def __init__(self, opened: OpenedSum) -> None:
        self._opened = opened
        self.n, self.d = len(opened.survivors), len(opened.mean)
        self.prior: Floats = np.full(self.n, 1.0 / self.n)

    def gram(self, anchors: Mapping[str, np.ndarray] | None = None, histories: Sequence[str] = ()) -> Gram:
        """Raises `NotRevealed`."""
        raise self._not_revealed()

    def combine(self, combination: Combination) -> NDArray[np.float32]:
        """The mean (d,) float32.

        combination: its weights must be the prior.

        Raises `NotRevealed` otherwise.
        """
        if not np.array_equal(combination.weights, self.prior) or any(combination.anchors.values()):
            raise self._not_revealed()
        return self._opened.mean

    def finite_rows(self) -> NDArray[np.bool_]:
        """(n,) all True: elements of a ring are finite."""
        return np.ones(self.n, dtype=np.bool_)

    def subset(self, keep: NDArray[Any]) -> MaskedSum:
        """The same updates.

        keep: a mask (n,) or indices, of all rows.

        Raises `NotRevealed` if a row is missing in it.
        """
        if not np.array_equal(np.arange(self.n)[keep], np.arange(self.n)):
            raise self._not_revealed()
        return self

    def remembered(self, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Empty, if `names` is empty. Raises `NotRevealed` otherwise."""
        if names:
            raise self._not_revealed()
        return {}


class GroupedUpdates(ClearUpdates):
    """The groups' means in the clear: row i is that of the clients `groups[i]`.

    groups: the members whose updates are in each mean, without those that dropped out.
    rows: (m, d) float32, the means.
    weights: (m,) the sums of the members' weights, which become the prior.
    """

    groups: Groups

    def __init__(self, rows: NDArray[np.float32], groups: Groups, weights: Sequence[float] | Floats) -> None:
        super().__init__([rows], prior=weights)
        self.groups = tuple(tuple(group) for group in groups)
        if len(self.groups) != self.n:
            raise ValueError(f"{self.n} rows of {len(self.groups)} groups")

    @classmethod
    def of(cls, opened: Sequence[OpenedSum]) -> GroupedUpdates:
        """The updates from opened sums.

        opened: one for each group; the caller leaves out groups whose round of masks failed.
        """
        if not opened:
            raise ExperimentError("no group has opened its mean")
        rows = np.stack([group.mean for group in opened])
        return cls(rows, [group.survivors for group in opened], [group.weight for group in opened])

    def subset(self, keep: NDArray[Any]) -> GroupedUpdates:
        """The same updates without the groups that are not in `keep`, a mask (m,) or indices."""
        kept = np.arange(self.n)[keep]
        return GroupedUpdates(self.blocks[0][kept], [self.groups[row] for row in kept], self.prior[kept])

    def gram(self, anchors: Mapping[str, np.ndarray] | None = None, histories: Sequence[str] = ()) -> Gram:
        """The Gram matrix of the groups' means.

        anchors: public vectors (d,) by name.
        histories: must be empty, as histories belong to clients.

        Raises `NotRevealed` otherwise.
        """
        if histories:
            raise NotRevealed("groups are drawn anew in each round: there is no history of a client")
        return super().gram(anchors)

    def remembered(self, names: Sequence[str], factors: Floats | None = None) -> dict[str, NDArray[np.float32]]:
        """Empty, if `names` is empty. Raises `NotRevealed` otherwise."""
        if names:
            raise NotRevealed("groups are drawn anew in each round: there is no history of a client")
        return {}
