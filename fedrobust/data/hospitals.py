"""From a source to hospitals: outline, split, partition, decode, stain, normalise; splits that would leak a patient are
refused before any image is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedrobust.data.cache import digest_of, keeping_in
from fedrobust.data.foreign import require_memory
from fedrobust.data.partition import Partition
from fedrobust.data.patches import Outline, Patches
from fedrobust.data.root import Root, RootPatches
from fedrobust.data.sources import Source, outline_of
from fedrobust.data.split import Split, refuse_leaks, refuse_one_label
from fedrobust.data.stain import StainNormalisation, StainShift, stained
from fedrobust.errors import inside
from fedrobust.seeds import generator


@dataclass(frozen=True, eq=False)
class Hospitals:
    """Every patch once, and the hospital that holds it. Each object equals only itself."""

    images: np.ndarray
    """(N, H, W, 3) uint8, stained and normalised as the hospital sees them."""
    labels: np.ndarray
    """(N,) int64."""
    hospital: np.ndarray
    """(N,) int64: the hospital of every patch, held-out ones too."""
    indices: dict[str, np.ndarray]
    """`train`, `validation`, `test`: positions of their patches."""
    label_names: tuple[str, ...]
    groups: np.ndarray | None
    clients: int
    digest: str
    """Digest of the data that training reads: the source's patches, and their images after stain and normalisation,
    from the cache or not."""
    notes: tuple[str, ...] = ()
    """`Patches.notes` of the source."""
    set_aside: np.ndarray = field(default_factory=partial(np.empty, 0, np.int64))
    """Positions of the patches that no hospital has, and the coordinator may draw its own from."""

    def training(self, client: int) -> np.ndarray:
        """Positions of the patches that hospital `client` trains on."""
        train = self.indices["train"]
        own: np.ndarray = train[self.hospital[train] == client]
        return own

    def root(self, root: Root, seed: int) -> np.ndarray:
        """Positions of the coordinator's own patches: of those that are set aside, else of all training patches (Cao et
        al., NDSS 2021, case I).
        """
        if root.set_aside:
            return root.drawn(self.set_aside, self.labels, self.groups, seed)
        train = self.indices["train"]
        drawn: np.ndarray = generator(seed, "root").choice(train, min(root.patches, len(train)), replace=False)
        return np.sort(drawn)

    def root_patches(self, root: Root, seed: int, features: np.ndarray | None = None) -> RootPatches:
        """The coordinator's own patches.

        features: (N, F) of all patches, if the model is trained on these.
        """
        own = self.root(root, seed)
        groups = np.arange(len(own)) if self.groups is None else np.unique(self.groups[own], return_inverse=True)[1]
        table = None if features is None else features[own]
        return RootPatches(self.images[own], self.labels[own], groups, len(self.label_names), table)

    def label_counts(self) -> np.ndarray:
        """(hospitals, labels) int64: training patches per hospital and label."""
        return label_counts(self.indices["train"], self.hospital, self.labels, self.clients, len(self.label_names))

    def tested(self) -> int:
        """How many labels occur in the test part: always guessing one of them gives a balanced accuracy of 1 over this
        number."""
        return len(np.unique(self.labels[self.indices["test"]]))

    def tested_patients(self) -> int | None:
        """How many patients have patches in the test part; None where patients are unknown."""
        return None if self.groups is None else len(np.unique(self.groups[self.indices["test"]]))

    def patient_counts(self) -> list[int] | None:
        """How many patients with training patches each hospital has; None where patients are unknown."""
        if self.groups is None:
            return None
        return [len(set(self.groups[self.training(client)])) for client in range(self.clients)]


def divide(
    source: Source,
    split: Split,
    partition: Partition,
    shift: StainShift,
    normalisation: StainNormalisation,
    clients: int,
    seed: int,
    cache: Path,
    root: Root | None = None,
) -> Hospitals:
    """Load the patches of a source and divide them among hospitals.

    source: of the patches.
    split: into train, validation and test.
    partition: among hospitals.
    shift: each hospital's own stain.
    normalisation: of stains.
    clients: how many hospitals.
    seed: the experiment's.
    cache: folder for decoded, shifted and normalised images.
    root: the coordinator's own patches; None: none are set aside.

    Raises `DataError` if files are missing or damaged, if a patient would be on two sides of the split, if only one
    label is left to train on or to test, or if a hospital would have no patches. What shows without pixels is raised
    before the first image is decoded.
    """
    with inside("source"):
        outline = outline_of(source, seed)
    indices, hospital = deal(outline, split, partition, clients, seed, root)
    with inside("source"), keeping_in(cache):
        patches = outline.decode()
    if len(patches) < len(outline):  # some images could not be used
        indices, hospital = deal(patches, split, partition, clients, seed, root)
    set_aside = indices.pop("root", np.empty(0, dtype=np.int64))
    images = stained(patches.images, hospital, shift, normalisation, patches.digest, seed, cache)
    read = _digest_read(patches, images)
    return Hospitals(
        images,
        patches.labels,
        hospital,
        indices,
        patches.label_names,
        patches.groups,
        clients,
        read,
        patches.notes,
        set_aside,
    )


def deal(
    outline: Outline, split: Split, partition: Partition, clients: int, seed: int, root: Root | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Divide patches, which need not be decoded, among the parts of the split and the hospitals.

    outline: of the patches.
    split, partition, clients, seed, root: as for `divide`.

    Returns the positions of each part, with `root` if patches are set aside, and the hospital (N,) of each patch, −1 of
    those that no hospital has. Raises `DataError` as `divide` does.
    """
    cells = len(outline) * outline.classes
    require_memory(f"{len(outline)} patches with {outline.classes} labels", 24 * cells, "are the labels ids?")
    indices = split.indices(outline, seed)
    refuse_leaks(outline, indices)
    aside = {}
    if root is not None and root.set_aside:
        with inside("root"):
            indices, own = root.without_root(outline, indices, seed)
        aside = {"root": own}
        refuse_leaks(outline, indices | aside)
    refuse_one_label(outline, indices)
    return indices | aside, partition.assign(outline, indices, clients, seed)


def label_counts(
    train: np.ndarray, hospital: np.ndarray, labels: np.ndarray, clients: int, classes: int
) -> NDArray[np.int64]:
    """(clients, classes) int64: training patches per hospital and label.

    train: positions of the training patches.
    hospital, labels: (N,) of each patch.
    clients, classes: how many hospitals and labels there are.
    """
    counts = np.zeros((clients, classes), dtype=np.int64)
    np.add.at(counts, (hospital[train], labels[train]), 1)
    return counts


def _digest_read(patches: Patches, images: np.ndarray) -> str:
    """A digest of the patches, and of the images that training gets instead of theirs.

    It is taken of the images themselves, so it changes if somebody writes to the cache.
    """
    if images is patches.images:
        return patches.digest
    return sha256(f"{patches.digest} {images.shape} {digest_of(images)}".encode()).hexdigest()
