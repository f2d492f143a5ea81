"""Train, validation and test: by patient, so that no patient is on two sides."""

from __future__ import annotations

import logging
from itertools import combinations
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from fedrobust.data.patches import PARTS, Outline
from fedrobust.errors import DataError, Problem
from fedrobust.options import Options, refusal
from fedrobust.seeds import generator

logger = logging.getLogger(__name__)

FAR = 0.1
"""If a part has a share of the patches that differs from what was asked for by more than this, it is reported."""


class Split(Options):
    """Divides the patches into train, validation and test; the same for every seed of the same value."""

    by: Literal["patient", "official", "patch"] = "patient"
    """`patient` keeps every patient in one part; `official` uses the data set's own division; `patch` divides patch by
    patch: patches of one patient are then in train and in test, and the figures are too good. It is refused if patients
    are known."""
    validation: float = Field(default=0.1, ge=0, lt=1)
    """Share of the patches for validation. If an official division has no validation part, this share of its training
    patches."""
    test: float = Field(default=0.2, gt=0, lt=1)
    """Share of the patches for the test; an official division has its own."""

    @model_validator(mode="after")
    def _something_is_left(self) -> Split:
        if self.validation + self.test >= 1:
            reason = "validation + test must be below 1, or nothing is left to train on"
            raise refusal(Problem(reason, found=f"{self.validation} + {self.test}"))
        return self

    def indices(self, patches: Outline, seed: int) -> dict[str, np.ndarray]:
        """Sorted int64 indices of "train", "validation" (may be empty) and "test"; every patch is in one of them.

        patches: to divide.
        seed: the experiment's.

        Label shares (and those of centres, where known) are kept as well as whole patients allow, and every part gets
        every label where that is possible.

        Raises `DataError` if the division is impossible or would leak.
        """
        rng = generator(seed, "split")
        everything = np.arange(len(patches))
        if self.by == "official":
            part = self._official(patches, rng)
        elif self.by == "patient":
            if patches.groups is None:
                official = () if patches.split is None else (OFFICIAL,)
                reason = "the patients of these data are unknown"
                raise _refused(reason, "patient", patches.patients_from, *official, LEAKS)
            part = _by_patient(patches, everything, self._shares(), rng)
        else:
            if patches.groups is not None:
                count = len(np.unique(patches.groups))
                raise _refused(f"would put the same patients ({count}) on both sides", "patch", PATIENT)
            part = _by_patch(patches, everything, self._shares(), rng)
        found = {name: np.flatnonzero(part == number) for number, name in enumerate(PARTS)}
        for name in ("train", "test"):
            if len(found[name]) == 0:
                raise DataError(Problem(f"no patches for {name}: {len(patches)} patches are too few", "split"))
        refuse_leaks(patches, found)
        if self.by == "patient":
            for note in doubts(patches, found, self._shares()):
                logger.warning("split: %s", note)
        return found

    def _shares(self) -> np.ndarray:
        return np.array([1 - self.validation - self.test, self.validation, self.test])

    def _official(self, patches: Outline, rng: np.random.Generator) -> np.ndarray:
        if patches.split is None:
            unknown = (f"{patches.patients_from}, and use by=patient", LEAKS)
            reason = "these data have no official division"
            raise _refused(reason, "official", *(unknown if patches.groups is None else (PATIENT,)))
        part = np.select([patches.split == name for name in PARTS], range(len(PARTS)))
        if self.validation > 0 and not (part == 1).any():
            train = np.flatnonzero(part == 0)
            part[train] = apart(patches, train, np.array([1 - self.validation, self.validation, 0]), rng)
        return part


PATIENT = "use data.split.by=patient"
OFFICIAL = "use data.split.by=official, the data set's own division"
LEAKS = "only if patches of one patient may be in train and in test, so that figures are too good: data.split.by=patch"


def _refused(reason: str, by: str, *remedies: str) -> DataError:
    """The best remedy comes first."""
    return DataError(Problem(reason, "split.by", by, hint="; or ".join(remedies)))


def refuse_leaks(patches: Outline, indices: dict[str, np.ndarray]) -> None:
    """Check that no patch, and no patient where patients are known, is in more than one part.

    indices: part → positions.

    Raises `DataError` otherwise.
    """
    for (one, first), (other, second) in combinations(indices.items(), 2):
        twice = np.intersect1d(first, second)
        if len(twice):
            reason = f"patch {twice[0]} is in {one} and in {other} ({len(twice)} patches are)"
            raise DataError(Problem(reason, "split"))
        if patches.groups is None:
            continue
        crossing = np.intersect1d(patches.groups[first], patches.groups[second])
        if len(crossing):
            patient = crossing[0]
            counts = [int((patches.groups[part] == patient).sum()) for part in (first, second)]
            reason = f"patient {patient} is in {one} ({counts[0]} patches) and in {other} ({counts[1]})"
            hint = f"{len(crossing)} patients cross: use split.by: patient"
            raise DataError(Problem(reason, "split", hint=hint))


def doubts(patches: Outline, indices: dict[str, np.ndarray], shares: np.ndarray) -> list[str]:
    """What a user should look at in a division by patient.

    indices: part → positions.
    shares: (3,) of the patches that were asked for, in the order of `PARTS`.
    """
    assert patches.groups is not None
    found, sizes = [], np.array([len(indices[part]) for part in PARTS])
    patients = [len(np.unique(patches.groups[indices[part]])) for part in PARTS]
    if np.abs(sizes / len(patches) - shares).max() > FAR:
        parts = zip(PARTS, sizes, patients, shares, strict=True)
        listed = ", ".join(
            f"{part} has {size} of {len(patches)} patches ({count} patients) where {share:.2g} was asked for"
            for part, size, count, share in parts
        )
        kinds = "every label" if patches.centres is None else "every label and every centre"
        found.append(f"{listed}: patients stay whole, and {kinds} comes to every part first; more patients come nearer")
    if sum(patients) == len(patches) > 1:
        found.append(
            f"every one of the {len(patches)} patches has a patient of its own: is that so, or do the ids name patches?"
        )
    return found


def refuse_one_label(patches: Outline, indices: dict[str, np.ndarray]) -> None:
    """Check that training and test have more than one label each; logs the labels that a part lacks.

    indices: part → positions.

    Raises `DataError` otherwise.
    """
    counts = {
        part: np.bincount(patches.labels[index], minlength=patches.classes)
        for part, index in indices.items()
        if len(index)
    }
    lacking = {part: np.flatnonzero(count == 0) for part, count in counts.items()}
    if not any(len(labels) for labels in lacking.values()):
        return
    listed = "; ".join(f"{part}: {_listed(count, patches.label_names)}" for part, count in counts.items())
    everywhere = np.flatnonzero(np.bincount(patches.labels))
    if len(everywhere) == 1:
        name = patches.label_names[everywhere[0]]
        reason = f"all {len(patches)} patches are '{name}': there is nothing to tell apart"
        raise DataError(Problem(reason, "labels"))
    for part in ("train", "test"):
        if np.count_nonzero(counts[part]) == 1:
            name = patches.label_names[counts[part].argmax()]
            told = f"all {counts[part].sum()} patches for {part} are '{name}'"
            raise DataError(Problem(f"{told} ({listed})", "split", hint="use other shares, another split or more data"))
    told = "; ".join(
        f"{part} has no patch of {_some([repr(patches.label_names[label]) for label in labels])}"
        for part, labels in lacking.items()
        if len(labels)
    )
    logger.warning(
        "split: %s (%s): balanced accuracy, AUROC and chance are those of the labels that occur", told, listed
    )


def _listed(counts: np.ndarray, names: tuple[str, ...]) -> str:
    return _some([f"{count} {name}" for count, name in zip(counts, names, strict=True)])


def _some(words: list[str], most: int = 20) -> str:
    return ", ".join([*words[:most], f"and {len(words) - most} more"] if len(words) > most else words)


def _strata(patches: Outline, indices: np.ndarray) -> np.ndarray:
    """(n, columns) float64 indicators of what should be spread evenly: each label, and each centre where known."""
    columns = [patches.labels[indices, None] == np.arange(patches.classes)]
    if patches.centres is not None:
        columns.append(patches.centres[indices, None] == np.unique(patches.centres))
    return np.concatenate(columns, axis=1).astype(np.float64)


def apart(patches: Outline, indices: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) the part 0, 1 or 2 of each index: whole patients where they are known.

    patches: of which some are divided.
    indices: (n,) their positions.
    shares: (3,) of the patches; parts without a share get nothing.
    rng: the source of random numbers.

    Raises `DataError` if there are fewer patients than parts.
    """
    divide = _by_patch if patches.groups is None else _by_patient
    return divide(patches, indices, shares, rng)


def _by_patient(patches: Outline, indices: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) the part of each index, whole patients."""
    assert patches.groups is not None
    names, patient = np.unique(patches.groups[indices], return_inverse=True)
    wanted = np.flatnonzero(shares)
    if len(names) < len(wanted):
        reason = f"{len(names)} patients cannot fill {len(wanted)} parts"
        hint = "use validation: 0" if len(names) > 1 and shares[1] > 0 else "use data of more patients"
        raise DataError(Problem(reason, "split", hint=hint))
    strata = _strata(patches, indices)
    # The last column counts patients, so that small ones do not gather in the small parts.
    counts = np.column_stack([sums_by(patient, strata, len(names)), np.ones(len(names))])
    targets = shares[wanted, None] * counts.sum(axis=0)
    # A label that cannot be in all parts is needed first for training, then for the test.
    part = allocate(counts, targets, 1, rng, presence=np.array([4.0, 1.0, 2.0])[wanted])
    return np.asarray(wanted[part[patient]])


def _by_patch(patches: Outline, indices: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) the part of each index; every combination of label and centre is divided by itself."""
    _, stratum = np.unique(_strata(patches, indices), axis=0, return_inverse=True)
    part = np.zeros(len(indices), dtype=np.int64)
    for number in range(stratum.max() + 1):
        members = rng.permutation(np.flatnonzero(stratum == number))
        counts = whole_numbers(shares * len(members), len(members))
        for index in (2, 1):  # a rare label is needed first for training, then for the test
            if shares[index] > 0 and counts[index] == 0 and counts[0] > 1:
                counts += np.eye(3, dtype=np.int64)[index] - np.eye(3, dtype=np.int64)[0]
        part[members] = np.repeat(np.arange(3), counts)
    return part


def sums_by(group: np.ndarray, values: np.ndarray, groups: int) -> np.ndarray:
    """(groups, columns): the sums of the rows of each group.

    group: (n,) numbers 0..groups-1.
    values: (n, columns).
    groups: how many.
    """
    return np.stack([np.bincount(group, column, groups) for column in values.T], axis=1)


def whole_numbers(shares: np.ndarray, total: int, ties: np.ndarray | None = None) -> np.ndarray:
    """Whole numbers near `shares` that add up to `total`: largest remainders, then smallest `ties`.

    shares: they add up to `total`.
    ties: decide between equal remainders.
    """
    counts = np.floor(shares).astype(np.int64)
    order = np.lexsort((np.arange(len(shares)) if ties is None else ties, counts - shares))
    counts[order[: total - counts.sum()]] += 1
    return np.asarray(counts)


def allocate(
    counts: np.ndarray,
    targets: np.ndarray,
    minimum: int,
    rng: np.random.Generator,
    presence: np.ndarray | None = None,
) -> np.ndarray:
    """Assign whole groups to bins so that the sums in the bins come near the targets: (groups,) the bin of each.

    counts: (groups, columns) what each group has.
    targets: (bins, columns) what each bin should have.
    minimum: the first concern is that every bin has so many in all.
    rng: groups are assigned in random order; then each is moved for as long as a move helps.
    presence: (bins,) the second concern is that no bin lacks a column; a lack weighs as much as this.

    The third concern is the squared distance to the targets, relative to them.
    """
    size = counts.sum(axis=1)
    bins = len(targets)
    # An absolute term keeps a tiny target from ruling the rest.
    scale = 1 / (targets + counts.mean(axis=0) + 1e-9)
    lacks = np.zeros(targets.shape) if presence is None else presence[:, None] * (counts.sum(axis=0) > 0)
    heavy = 1e3 * (1 + counts.sum())

    def cost(held: np.ndarray, total: np.ndarray) -> np.ndarray:
        spread = (scale * (held - targets) ** 2).sum(axis=1)
        missing = (lacks * (held <= 0)).sum(axis=1)
        return np.asarray(spread + heavy * missing + 1e3 * heavy * np.maximum(minimum - total, 0))

    held, total = np.zeros(targets.shape), np.zeros(bins)
    bin_of = np.full(len(counts), -1)
    for _ in range(20):
        moved = False
        for group in rng.permutation(len(counts)):
            before = bin_of[group]
            if before >= 0:
                held[before] -= counts[group]
                total[before] -= size[group]
            change = cost(held + counts[group], total + size[group]) - cost(held, total)
            best = int(np.argmin(change))
            if before >= 0 and change[before] <= change[best] + 1e-9 * abs(change[best]):
                best = int(before)
            moved |= best != before
            bin_of[group] = best
            held[best] += counts[group]
            total[best] += size[group]
        if not moved:
            break
    return bin_of
