"""The coordinator's own patches: patients that no hospital has, labels in equal parts, many patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refused import refused

from fedrobust.data import Dirichlet, Histology, NoNormalisation, Root, Split, StainShift
from fedrobust.data.hospitals import Hospitals, divide
from fedrobust.data.patches import Patches
from fedrobust.errors import DataError
from fedrobust.experiment import Experiment

SOURCE = Histology(patients=40, patches_per_patient=10, size=16)


def made(cache: Path, root: Root | None = None, seed: int = 1) -> Hospitals:
    partition = Dirichlet(alpha=1.0, minimum=1)
    return divide(SOURCE, Split(), partition, StainShift(strength=0.5), NoNormalisation(), 4, seed, cache, root)


def test_patients_are_set_aside_for_the_coordinator_alone(tmp_path: Path) -> None:
    root = Root(patches=20, set_aside=0.2)
    hospitals, plain = made(tmp_path, root), made(tmp_path)
    groups, aside = hospitals.groups, hospitals.set_aside
    assert groups is not None and len(plain.set_aside) == 0
    elsewhere = np.concatenate(list(hospitals.indices.values()))
    assert not set(groups[aside]) & set(groups[elsewhere])
    assert sorted([*aside, *elsewhere]) == list(range(len(hospitals.labels)))
    assert 0.1 < len(aside) / len(plain.indices["train"]) < 0.3
    assert (hospitals.hospital[aside] == -1).all()
    for part in ("validation", "test"):  # what a model is tested on does not depend on it
        assert (hospitals.indices[part] == plain.indices[part]).all()
    own = hospitals.root_patches(root, 1)
    assert len(own.labels) == 20 and np.bincount(own.labels).tolist() == [10, 10]
    assert len(np.unique(own.patients)) == len(np.unique(groups[aside]))  # no patient is left out
    assert own.images.tobytes() == hospitals.images[hospitals.root(root, 1)].tobytes()
    assert set(hospitals.root(root, 1)) <= set(aside)


def test_another_seed_sets_other_patients_aside_and_the_same_seed_the_same(tmp_path: Path) -> None:
    root = Root(set_aside=0.2)
    first, again, other = (made(tmp_path, root, seed) for seed in (1, 1, 2))
    assert (first.set_aside == again.set_aside).all()
    assert first.groups is not None and other.groups is not None
    assert set(first.groups[first.set_aside]) != set(other.groups[other.set_aside])


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), min_size=1, max_size=60), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_labels_take_turns_and_within_a_label_patients_do(patches: list[tuple[int, int]], count: int) -> None:
    labels, patients = np.array(patches).T
    drawn = Root(patches=count, set_aside=0.5).drawn(np.arange(len(labels)), labels, patients, seed=3)
    assert len(set(drawn)) == len(drawn) == min(count, len(labels))
    there, taken = np.bincount(labels, minlength=3), np.bincount(labels[drawn], minlength=3)
    for one in range(3):
        for other in range(3):  # a label has fewer than another one only if it has no more
            assert taken[one] >= taken[other] - 1 or taken[one] == there[one]
        of_label, of_drawn = patients[labels == one], patients[drawn][labels[drawn] == one]
        assert len(set(of_drawn)) == min(len(of_drawn), len(set(of_label)))


def test_where_patients_are_unknown_patches_are_set_aside() -> None:
    patches = Patches(images=np.zeros((40, 8, 8, 3), np.uint8), labels=np.arange(40) % 2, label_names=("a", "b"))
    indices, aside = Root(set_aside=0.25).without_root(patches, {"train": np.arange(40)}, 1)
    assert len(aside) == 10 and np.bincount(patches.labels[aside]).tolist() == [5, 5]
    assert sorted([*indices["train"], *aside]) == list(range(40))


def test_a_single_patient_cannot_be_divided() -> None:
    images, groups = np.zeros((4, 8, 8, 3), np.uint8), np.array(["one"] * 4)
    patches = Patches(images=images, labels=np.arange(4) % 2, label_names=("a", "b"), groups=groups)
    with refused(DataError, path="set_aside", says="one patient"):
        Root(set_aside=0.25).without_root(patches, {"train": np.arange(4)}, 1)


def test_a_number_is_short_for_so_many_patches() -> None:
    short, long = ({"data": {"root": given}} for given in (50, {"patches": 50}))
    assert Experiment.model_validate(short) == Experiment.model_validate(long)
    assert Experiment.model_validate(short).digest() == Experiment.model_validate(long).digest()
    aside = Experiment.model_validate({"data": {"root": {"patches": 50, "set_aside": 0.1}}})
    assert aside.digest() != Experiment.model_validate(short).digest()
    assert Experiment.model_validate(aside.resolved()) == aside


@pytest.mark.parametrize("given", [0, True, "many", {"patches": 0}, {"set_aside": 1.0}, [1]])
def test_other_values_are_refused(given: object) -> None:
    with pytest.raises(ValueError, match="root"):
        Experiment.model_validate({"data": {"root": given}})
