"""The coordinator's own patches: the root data set of FLTrust (Cao et al., NDSS 2021), of the referee and of the
repair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fedrobust.data.patches import Outline
from fedrobust.data.split import apart
from fedrobust.errors import DataError, Problem
from fedrobust.options import Options
from fedrobust.seeds import generator


@dataclass(frozen=True, eq=False)
class RootPatches:
    """The coordinator's own patches, as it gets them."""

    images: NDArray[np.uint8]
    """(m, S, S, 3)."""
    labels: NDArray[np.int64]
    """(m,)."""
    patients: NDArray[np.int64]
    """(m,) the number of the patient of each; all different if patients are unknown."""
    classes: int
    """How many labels the data have."""
    features: NDArray[np.floating] | None = None
    """(m, F) float32 or float16 of a frozen encoder, if the model is trained on these."""

    @property
    def labelled(self) -> int:
        """How many labels the patches have."""
        return len(np.unique(self.labels))


class Root(Options):
    """The coordinator's own patches. `root: 50` is short for `root: {patches: 50}`."""

    patches: int = Field(default=100, ge=1)
    """How many patches the coordinator has."""
    set_aside: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training patches, whole patients if they are known, that no hospital gets: the coordinator's patches
    are drawn from them, of as many patients as possible, and as many of each label. 0: the coordinator has patches that
    hospitals train on, too."""

    @model_validator(mode="before")
    @classmethod
    def _of_a_number(cls, given: Any) -> Any:
        return {"patches": given} if isinstance(given, int | str) and not isinstance(given, bool) else given

    def without_root(
        self, patches: Outline, indices: dict[str, np.ndarray], seed: int
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The parts of a split, with fewer training patches, and the positions of the patches that are set aside.

        patches: of the split.
        indices: part → positions, as `Split.indices` returns them.
        seed: the experiment's.

        Raises `DataError` if there are too few patients.
        """
        train = indices["train"]
        shares = np.array([1 - self.set_aside, 0.0, self.set_aside])
        whole = np.arange(len(train)) if patches.groups is None else patches.groups[train]
        if len(np.unique(whole)) < 2:
            raise DataError(Problem("one patient is left for training: nothing can be set aside", "set_aside"))
        part = apart(patches, train, shares, generator(seed, "root patients"))
        return indices | {"train": train[part == 0]}, train[part == 2]

    def drawn(self, pool: np.ndarray, labels: np.ndarray, groups: np.ndarray | None, seed: int) -> np.ndarray:
        """Sorted positions of the coordinator's patches among those that are set aside.

        pool: (n,) positions.
        labels: (N,) of all patches.
        groups: (N,) patient of each patch, or None.
        seed: the experiment's.

        Labels take turns, and within a label patients do.
        """
        order = generator(seed, "root").permutation(pool)
        patient = np.arange(len(order)) if groups is None else np.unique(groups[order], return_inverse=True)[1]
        turn = _rank(labels[order].astype(np.int64) * (int(patient.max(initial=0)) + 1) + patient)
        # First the first patch of every patient with this label, then the second one, and so on.
        place = np.empty(len(order), dtype=np.int64)
        for label in np.unique(labels[order]):
            own = np.flatnonzero(labels[order] == label)
            place[own[np.argsort(turn[own], kind="stable")]] = np.arange(len(own))
        return np.sort(order[np.argsort(place, kind="stable")[: self.patches]])


def _rank(keys: np.ndarray) -> np.ndarray:
    """(n,) how many earlier elements are equal to each."""
    order = np.argsort(keys, kind="stable")
    _, first, counts = np.unique(keys[order], return_index=True, return_counts=True)
    rank = np.empty(len(keys), dtype=np.int64)
    rank[order] = np.arange(len(keys)) - np.repeat(first, counts)
    return rank
