"""Partitions: the division of the patches among hospitals.

Every partition defines how much of each label goes to each hospital (`shares`). Patches, or whole patients, are then
dealt out to come as near to that as whole numbers allow. Held-out patches follow the training patches of their
hospital.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fedrobust.data.patches import Outline
from fedrobust.data.split import allocate, sums_by, whole_numbers
from fedrobust.errors import DataError, Problem
from fedrobust.options import Options
from fedrobust.seeds import generator


class Partition(Options):
    """Base of every partition."""

    name: str
    unit: Literal["patient", "patch"] = "patch"
    """`patient` keeps every patient in one hospital; `patch` does not."""
    minimum: int = Field(default=10, ge=1)
    """Every hospital gets at least this many training patches."""

    label_blind: ClassVar[bool] = False
    """Whether labels are not looked at."""

    def shares(self, counts: np.ndarray, clients: int, rng: np.random.Generator) -> np.ndarray:
        """(clients, labels): the share of each label that each hospital should get; columns sum to 1.

        counts: (labels,) training patches with each label; one column for all if `label_blind`.
        clients: how many hospitals.
        rng: the source of random numbers.
        """
        return np.full((clients, len(counts)), 1 / clients)

    def assign(self, patches: Outline, indices: dict[str, np.ndarray], clients: int, seed: int) -> np.ndarray:
        """(N,) int64: the hospital 0..clients-1 of every patch, training and held out (-1: in no part).

        patches: N of them.
        indices: as `Split.indices` returns them.
        clients: how many hospitals.
        seed: the experiment's.

        Every hospital gets `minimum` training patches or more. Held-out patches go to hospitals with labels in the
        proportion of their training patches; every hospital gets a few of them if there are enough.

        Raises `DataError`, which says what to change, if that is impossible.
        """
        if self.unit == "patient" and patches.groups is None:
            other = "use another partition" if isinstance(self, ByGroup) else "use unit: patch"
            remedy = f"{patches.patients_from}; or {other}: patches of one patient may then be at several hospitals"
            raise self._refused("keeps patients whole, but patients are unknown here", remedy)
        rng = generator(seed, "partition")
        minimum = min(self.minimum, len(patches) + 1)  # large enough to be refused
        labels = np.eye(patches.classes)[patches.labels]
        columns = np.ones((len(patches), 1)) if self.label_blind else labels
        train = indices["train"]
        hospital = np.full(len(patches), -1, dtype=np.int64)
        regions = list(self._regions(patches, train, clients))
        for ids, here in regions:
            index = train[here[train]]
            shares = self.shares(columns[index].sum(axis=0), len(ids), rng)
            hospital[index] = ids[self._deal(patches, columns, index, shares, minimum, rng)]
        trained = sums_by(hospital[train], labels[train], clients)
        self._enough(trained.sum(axis=1), minimum, patches, train)
        # Held-out patches from a region without training patches go to all hospitals.
        elsewhere = ~np.any([here for _, here in regions], axis=0)
        for ids, here in [*regions, (np.arange(clients), elsewhere)]:
            shares = _following(trained[ids])
            for part in (name for name in indices if name != "train"):
                index = indices[part][here[indices[part]]]
                few = min(self.minimum, len(index) // (2 * len(ids)))
                hospital[index] = ids[self._deal(patches, labels, index, shares, few, rng)]
        return hospital

    def _regions(self, patches: Outline, train: np.ndarray, clients: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The ids (k,) of hospitals that divide among themselves the patches under a mask (N,)."""
        yield np.arange(clients), np.ones(len(patches), dtype=bool)

    def _deal(
        self,
        patches: Outline,
        columns: np.ndarray,
        index: np.ndarray,
        shares: np.ndarray,
        minimum: int,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """(n,) the bin 0..k-1 of each patch at `index`; columns (N, c) are one-hot, shares (k, c) are those of each
        column."""
        if len(index) == 0:
            return index
        wishes = shares * columns[index].sum(axis=0)
        if self.unit == "patient":
            assert patches.groups is not None
            names, patient = np.unique(patches.groups[index], return_inverse=True)
            return allocate(sums_by(patient, columns[index], len(names)), wishes, minimum, rng)[patient]
        counts = np.zeros(wishes.shape, dtype=np.int64)
        for column, wish in enumerate(wishes.T):
            counts[:, column] = whole_numbers(wish, round(wish.sum()), counts.sum(axis=1))
        _raise_to(minimum, counts, wishes)
        bins = np.empty(len(index), dtype=np.int64)
        for column, count in enumerate(counts.T):
            members = rng.permutation(np.flatnonzero(columns[index, column]))
            bins[members] = np.repeat(np.arange(len(count)), count)
        return bins

    def _enough(self, sizes: np.ndarray, minimum: int, patches: Outline, train: np.ndarray) -> None:
        least = int(sizes.argmin())
        if sizes[least] < minimum:
            have = f"{len(train)} training patches"
            if self.unit == "patient" and patches.groups is not None:
                have += f" of {len(np.unique(patches.groups[train]))} patients"
            reason = f"{have} do not give each of {len(sizes)} hospitals {self.minimum} or more"
            reason += f" (hospital {least} gets {sizes[least]:.0f})"
            raise self._refused(reason, "lower the number of clients or the partition's minimum")

    def _refused(self, reason: str, remedy: str) -> DataError:
        return DataError(Problem(f"{self.name}: {reason}", "partition", hint=remedy))


def _following(trained: np.ndarray) -> np.ndarray:
    """(k, labels) shares of each label, by training counts; a label without training patches is shared by size."""
    totals = trained.sum(axis=0)
    sizes = trained.sum(axis=1, keepdims=True) / trained.sum()
    return np.asarray(np.where(totals > 0, trained / np.maximum(totals, 1), sizes))


def _dirichlet(alpha: float, clients: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, clients): rows that add up to 1. An `alpha` above 1e100 counts as 1e100, because sums would overflow."""
    return rng.dirichlet(np.full(clients, min(alpha, 1e100)), size=draws)


def _of_sizes(shares: np.ndarray, counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The `shares` (k, labels) after which the k hospitals have patches in proportion to `sizes` (k,): rows and columns
    are scaled in turn until both fit (iterative proportional fitting, Deming and Stephan 1940).

    counts: (labels,) patches with each label.
    """
    # No share is so small that no scaling could make the sizes fit.
    held = np.maximum(shares, 1e-6) * counts
    wished = sizes / sizes.sum() * counts.sum()
    for _ in range(1000):
        held *= (wished / held.sum(axis=1))[:, None]
        held *= np.divide(counts, held.sum(axis=0), out=np.zeros(len(counts)), where=counts > 0)
        if np.allclose(held.sum(axis=1), wished, rtol=1e-3):
            break
    return np.where(counts > 0, held / np.maximum(counts, 1), 1 / len(sizes))


def _raise_to(minimum: int, counts: np.ndarray, wishes: np.ndarray) -> None:
    """Move patches, in place, until every bin of counts (k, c) has `minimum`, if there are enough in all.

    A bin with too few takes the labels that it should have most of, from the bin with most of them.
    """
    while True:
        sizes = counts.sum(axis=1)
        needy = int(sizes.argmin())
        givers = np.flatnonzero(sizes > minimum)
        if sizes[needy] >= minimum or len(givers) == 0:
            return
        wish = wishes[needy] / max(wishes[needy].sum(), 1e-300) * minimum - counts[needy]
        column = int(np.where(counts[givers].any(axis=0), wish, -np.inf).argmax())
        giver = givers[counts[givers, column].argmax()]
        counts[giver, column] -= 1
        counts[needy, column] += 1


class Iid(Partition):
    """Equal hospitals: the same number of patches and the same label mix everywhere."""

    name: Literal["iid"] = "iid"


class Dirichlet(Partition):
    """Label skew: each label is divided among hospitals by a Dirichlet draw (Yurochkin et al. 2019)."""

    name: Literal["dirichlet"] = "dirichlet"
    alpha: float = Field(default=0.5, gt=0)
    """Concentration: small is skewed (0.1: most hospitals see one label), large is nearly iid."""
    ratio: float | None = Field(default=None, ge=1)
    """How many times as many training patches the largest hospital has as the smallest. Hospital 0 is the largest, and
    each has the same multiple of the patches of the next; label mixes are drawn as without. null: sizes follow from the
    draws of the labels."""

    def shares(self, counts: np.ndarray, clients: int, rng: np.random.Generator) -> np.ndarray:
        drawn = _dirichlet(self.alpha, clients, len(counts), rng).T
        return drawn if self.ratio is None else _of_sizes(drawn, counts, np.geomspace(self.ratio, 1.0, clients))


class Shards(Partition):
    """Pathological label skew: patches sorted by label, cut into equal shards, dealt out (McMahan et al. 2017)."""

    name: Literal["shards"] = "shards"
    unit: Literal["patch"] = "patch"
    """Always patches: shards divide patients."""
    per_client: int = Field(default=2, ge=1)
    """Shards of one hospital: it has about as many labels, or fewer."""

    def shares(self, counts: np.ndarray, clients: int, rng: np.random.Generator) -> np.ndarray:
        shards = clients * self.per_client
        if shards > max(int(counts.sum()), clients):
            reason = f"{clients} hospitals with {self.per_client} shards each, but {int(counts.sum())} training patches"
            raise self._refused(reason, "lower per_client")
        # Shard s has the positions [s, s + 1) * total / shards of the patches in order of label.
        cuts = np.arange(shards + 1) * counts.sum() / shards
        ends = np.cumsum(counts)
        covered = np.minimum(cuts[1:, None], ends) - np.maximum(cuts[:-1, None], ends - counts)
        owner = rng.permutation(np.repeat(np.arange(clients), self.per_client))
        held = sums_by(owner, np.maximum(covered, 0), clients)
        return np.where(counts > 0, held / np.maximum(counts, 1), 1 / clients)


class Quantity(Partition):
    """Size skew: one Dirichlet draw over hospitals, the same label mix everywhere (Li et al. 2022, NIID-Bench)."""

    name: Literal["quantity"] = "quantity"
    alpha: float = Field(default=0.5, gt=0)
    """Concentration: small means few large hospitals and many small ones."""

    def shares(self, counts: np.ndarray, clients: int, rng: np.random.Generator) -> np.ndarray:
        return np.repeat(_dirichlet(self.alpha, clients, 1, rng).T, len(counts), axis=1)


class ByGroup(Partition):
    """Natural skew: whole patients, at random, to hospitals of about equal size."""

    name: Literal["by_group"] = "by_group"
    unit: Literal["patient"] = "patient"
    """Always whole patients."""
    label_blind: ClassVar[bool] = True


class ByCentre(Partition):
    """Real hospitals: the patches of one centre stay together; with more clients than centres, centres are divided."""

    name: Literal["by_centre"] = "by_centre"
    unit: Literal["patient", "patch"] = "patient"
    """Unit by which a centre is divided, if it is divided."""
    label_blind: ClassVar[bool] = True

    def _regions(self, patches: Outline, train: np.ndarray, clients: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if patches.centres is None:
            other = "iid or dirichlet" if patches.groups is None else "by_group, or another"
            raise self._refused("the centres of these data are unknown", f"use {other}")
        names, sizes = np.unique(patches.centres[train], return_counts=True)
        if clients < len(names):
            reason = f"the training patches come from {len(names)} centres ({', '.join(names)}), but "
            raise self._refused(f"{reason}there are {clients} clients", f"use {len(names)} or more")
        hospitals = np.ones(len(names), dtype=np.int64)
        for _ in range(clients - len(names)):
            hospitals[(sizes / hospitals).argmax()] += 1
        for name, ids in zip(names, np.split(np.arange(clients), hospitals.cumsum()[:-1]), strict=True):
            yield ids, patches.centres == name
