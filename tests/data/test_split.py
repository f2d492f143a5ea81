from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refused import refused

from fedrobust.data import Patches, Split, refuse_leaks
from fedrobust.data.split import PATIENT, allocate, whole_numbers
from fedrobust.errors import DataError, ExperimentError


def made(groups, labels, centres=None, split=None, classes=None) -> Patches:
    labels = np.asarray(labels)
    return Patches(
        images=np.zeros((len(labels), 1, 1, 3), np.uint8),
        labels=labels,
        label_names=tuple(map(str, range(classes or labels.max() + 1))),
        groups=groups,
        centres=centres,
        split=split,
    )


def cohort(seed: int, patients: int, classes: int = 2) -> Patches:
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(patients), rng.integers(1, 60, patients))
    chance = rng.dirichlet(np.ones(classes), patients)
    return made(group, np.array([rng.choice(classes, p=chance[g]) for g in group]), classes=classes)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    patients=st.integers(30, 120),
    classes=st.integers(2, 4),
    validation=st.sampled_from([0.0, 0.1, 0.2]),
    test=st.sampled_from([0.2, 0.3]),
)
def test_by_patient_is_disjoint_complete_and_stratified(seed, patients, classes, validation, test):
    patches = cohort(seed, patients, classes)
    split = Split(validation=validation, test=test)
    indices = split.indices(patches, seed)
    assert list(indices) == ["train", "validation", "test"]
    together = np.concatenate(list(indices.values()))
    assert np.array_equal(np.sort(together), np.arange(len(patches)))
    sets = [set(patches.groups[index]) for index in indices.values()]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    overall = np.bincount(patches.labels, minlength=classes) / len(patches)
    for name, share in (("train", 1 - validation - test), ("validation", validation), ("test", test)):
        index = indices[name]
        assert index.dtype == np.int64 and (np.diff(index) > 0).all()
        assert len(index) / len(patches) == pytest.approx(share, abs=0.05)
        if share:
            mix = np.bincount(patches.labels[index], minlength=classes) / len(index)
            assert np.abs(mix - overall).max() < 0.2
    assert all(
        np.array_equal(a, b) for a, b in zip(indices.values(), split.indices(patches, seed).values(), strict=True)
    )


def test_many_patients_are_stratified_closely_and_sizes_do_not_sort_them():
    patches = cohort(1, 300)
    indices = Split().indices(patches, 0)
    shares = [patches.labels[index].mean() for index in indices.values()]
    assert np.ptp(shares) < 0.01
    sizes = [len(index) / len(set(patches.groups[index])) for index in indices.values()]
    assert max(sizes) / min(sizes) < 1.4


def test_seeds_give_different_divisions():
    patches = cohort(1, 100)
    first, second = (set(patches.groups[Split().indices(patches, seed)["test"]]) for seed in (0, 1))
    assert first != second


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), extra=st.integers(0, 30))
def test_a_rare_label_reaches_every_part_when_three_patients_have_it(seed, extra):
    rng = np.random.default_rng(seed)
    common = np.repeat(np.arange(20 + extra), 10)
    rare = np.repeat([100, 101, 102], 2)
    labels = np.concatenate([np.zeros(len(common), int), np.ones(len(rare), int)])
    order = rng.permutation(len(labels))
    patches = made(np.concatenate([common, rare])[order], labels[order])
    for index in Split().indices(patches, seed).values():
        assert set(patches.labels[index]) == {0, 1}


def test_two_patients_with_a_label_go_to_train_and_test():
    patches = made(np.repeat(np.arange(30), 5), np.repeat([0] * 28 + [1, 1], 5))
    indices = Split().indices(patches, 3)
    assert [1 in patches.labels[index] for index in indices.values()] == [True, False, True]


def test_every_centre_is_in_every_part():
    group = np.repeat(np.arange(60), 8)
    patches = made(group, np.arange(480) % 2, centres=(group % 5).astype(str))
    for index in Split().indices(patches, 0).values():
        assert len(set(patches.centres[index])) == 5


def test_as_few_patients_as_parts_fill_every_part():
    patches = made(np.repeat(["x", "y", "z"], 10), np.repeat([0, 1, 2], 10))
    assert all(len(index) == 10 for index in Split().indices(patches, 0).values())
    two = made(np.repeat(["x", "y"], 10), np.arange(20) % 2)
    with refused(DataError, path="split", says="2 patients", hint="use validation: 0"):
        Split().indices(two, 0)
    assert all(len(index) == 10 for index in Split(validation=0).indices(two, 0).values() if len(index))
    with refused(DataError, path="split", says="1 patients", hint="use data of more patients"):
        Split(validation=0).indices(made(np.repeat(["x"], 10), np.arange(10) % 2), 0)


def test_by_patch_keeps_proportions_and_rare_labels():
    labels = np.concatenate([np.zeros(700, int), np.ones(297, int), [2, 2, 2]])
    patches = made(None, labels)
    indices = Split(by="patch").indices(patches, 0)
    assert [len(index) for index in indices.values()] == pytest.approx([700, 100, 200], abs=2)
    for index in indices.values():
        assert len(set(labels[index])) == 3
    assert not np.array_equal(indices["test"], Split(by="patch").indices(patches, 1)["test"])


def test_patients_known_or_unknown_decide_what_is_allowed():
    with refused(DataError, path="split.by", found="patch", hint=PATIENT, says="(4)"):
        Split(by="patch").indices(made(np.arange(20) % 4, np.arange(20) % 2), 0)
    with refused(DataError, path="split.by", found="official", hint=PATIENT):
        Split(by="official").indices(made(np.arange(20) % 4, np.arange(20) % 2), 0)


def test_official_is_kept_and_a_missing_validation_is_cut_from_train():
    part = np.repeat(["train", "validation", "test"], [60, 20, 20])
    patches = made(None, np.arange(100) % 2, split=part)
    indices = Split(by="official").indices(patches, 0)
    assert all((part[index] == name).all() and len(index) == (part == name).sum() for name, index in indices.items())

    part = np.repeat(["train", "test"], [80, 20])
    groups = np.repeat(np.arange(20), 5)
    patches = made(groups, np.arange(100) % 2, split=part)
    indices = Split(by="official", validation=0.25).indices(patches, 0)
    assert len(indices["validation"]) == pytest.approx(20, abs=5)
    assert not set(groups[indices["train"]]) & set(groups[indices["validation"]])
    assert np.array_equal(indices["test"], np.arange(80, 100))
    assert len(Split(by="official", validation=0.0).indices(patches, 0)["validation"]) == 0


def test_an_official_split_that_leaks_is_refused():
    patches = made(np.repeat(["p1", "p2", "p3", "p4"], 5), np.arange(20) % 2, split=["train"] * 12 + ["test"] * 8)
    with refused(DataError, path="split", says="p3 is in train (2 patches) and in test (3)"):
        Split(by="official", validation=0.0).indices(patches, 0)


def test_an_official_split_without_test_is_refused():
    with refused(DataError, path="split", says="for test"):
        Split(by="official").indices(made(None, np.arange(20) % 2, split=["train"] * 20), 0)


def test_refuse_leaks_finds_patients_and_patches():
    patches = made(np.array(list("aabbcc")), np.zeros(6, int))
    refuse_leaks(patches, {"train": np.array([0, 1, 2, 3]), "test": np.array([4, 5])})
    with refused(DataError, path="split", says="patient b is in train"):
        refuse_leaks(patches, {"train": np.array([0, 1, 2]), "test": np.array([3, 4, 5])})
    unknown = made(None, np.zeros(6, int))
    refuse_leaks(unknown, {"train": np.array([0, 1, 2]), "test": np.array([3, 4, 5])})
    with refused(DataError, path="split", says="patch 2 is in train and in test"):
        refuse_leaks(unknown, {"train": np.array([0, 1, 2]), "test": np.array([2, 3])})


@pytest.mark.parametrize(
    "values", [{"test": 0.0}, {"validation": 0.5, "test": 0.5}, {"validation": -0.1}, {"by": "case"}]
)
def test_impossible_shares_are_refused(values):
    with pytest.raises(ExperimentError):
        Split(**values)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20), st.integers(0, 500))
def test_whole_numbers_add_up_and_stay_within_one(weights, total):
    shares = np.array(weights) / max(sum(weights), 1) * total
    if sum(weights) == 0:
        return
    counts = whole_numbers(shares, total)
    assert counts.sum() == total
    assert (np.abs(counts - shares) < 1 + 1e-9).all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), bins=st.integers(1, 6))
def test_allocate_honours_the_minimum_before_the_targets(seed, bins):
    rng = np.random.default_rng(seed)
    counts = np.ones((bins * 3, 1))
    targets = np.zeros((bins, 1))
    targets[0] = len(counts)
    bin_of = allocate(counts, targets, 2, rng)
    sizes = np.bincount(bin_of, minlength=bins)
    assert sizes.min() == 2 or bins == 1
    assert sizes[0] == len(counts) - 2 * (bins - 1)
