from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refused import refused

from fedrobust.data import ByCentre, ByGroup, Dirichlet, Iid, Partition, Patches, Quantity, Shards, Split
from fedrobust.errors import DataError, ExperimentError
from fedrobust.options import members

EVERY = [
    Iid(minimum=1),
    Iid(minimum=1, unit="patient"),
    Dirichlet(minimum=3, alpha=0.1),
    Dirichlet(minimum=1, alpha=0.5, unit="patient"),
    Shards(minimum=1),
    Quantity(minimum=2, alpha=0.3),
    Quantity(minimum=1, alpha=1.0, unit="patient"),
    ByGroup(minimum=1),
    ByCentre(minimum=1),
    ByCentre(minimum=1, unit="patch"),
]


def made(seed: int = 0, patients: int = 60, per_patient: int = 12, classes: int = 3, centres: int = 2) -> Patches:
    """Patients of different sizes and label mixes, each from one centre."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 2 * per_patient, patients)
    group = np.repeat(np.arange(patients), sizes)
    mixes = rng.dirichlet(np.ones(classes), patients)
    labels = np.array([rng.choice(classes, p=mixes[patient]) for patient in group])
    return Patches(
        images=np.zeros((len(group), 1, 1, 3), np.uint8),
        labels=labels,
        label_names=tuple("abcdefghij"[:classes]),
        groups=group.astype(str),
        centres=(group % centres).astype(str),
    )


def counts(patches: Patches, index: np.ndarray, hospital: np.ndarray, clients: int) -> np.ndarray:
    table = np.zeros((clients, patches.classes), int)
    np.add.at(table, (hospital[index], patches.labels[index]), 1)
    return table


@pytest.mark.parametrize("partition", EVERY, ids=lambda p: f"{p.name}-{p.unit}")
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), clients=st.integers(2, 8), patients=st.integers(40, 80))
def test_every_patch_has_one_hospital_and_every_hospital_its_minimum(partition, seed, clients, patients):
    patches = made(seed, patients)
    indices = Split().indices(patches, seed)
    hospital = partition.assign(patches, indices, clients, seed)
    assert hospital.dtype == np.int64 and hospital.shape == (len(patches),)
    assert hospital.min() >= 0 and hospital.max() < clients
    assert np.bincount(hospital[indices["train"]], minlength=clients).min() >= partition.minimum
    assert np.array_equal(hospital, partition.assign(patches, indices, clients, seed))
    if partition.unit == "patient":
        pairs = set(zip(patches.groups, hospital, strict=True))
        assert len(pairs) == len(np.unique(patches.groups))


def test_all_partitions_are_tested():
    assert set(members(Partition)) == {partition.name for partition in EVERY}


@pytest.mark.parametrize("partition", [p for p in EVERY if p.name not in ("by_centre",)], ids=lambda p: p.name)
def test_the_seed_matters(partition):
    patches = made()
    indices = Split().indices(patches, 0)
    draws = [partition.assign(patches, indices, 6, seed) for seed in (1, 2)]
    assert not np.array_equal(*draws)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), clients=st.integers(1, 20))
def test_iid_hospitals_are_equal(seed, clients):
    patches = made(seed)
    indices = Split().indices(patches, seed)
    hospital = Iid(minimum=1).assign(patches, indices, clients, seed)
    for part, index in indices.items():
        table = counts(patches, index, hospital, clients)
        assert np.ptp(table.sum(axis=1)) <= (1 if part == "train" else patches.classes)
        assert np.ptp(table, axis=0).max() <= (1 if part == "train" else 2)


def test_iid_by_patient_is_nearly_equal():
    patches = made(3, patients=400)
    indices = Split().indices(patches, 0)
    table = counts(patches, indices["train"], Iid(unit="patient").assign(patches, indices, 8, 0), 8)
    assert np.abs(table / table.mean(axis=0) - 1).max() < 0.06


def test_dirichlet_with_a_large_alpha_is_iid():
    patches = made(1, patients=200)
    indices = Split().indices(patches, 0)
    near = counts(patches, indices["train"], Dirichlet(alpha=1e6).assign(patches, indices, 7, 0), 7)
    even = counts(patches, indices["train"], Iid().assign(patches, indices, 7, 0), 7)
    assert np.abs(near - even).max() <= 2


@pytest.mark.parametrize("alpha", [1e-2, 1e-6])
def test_dirichlet_with_a_small_alpha_gives_each_label_to_one_hospital(alpha):
    patches = made(1, patients=200)
    indices = Split().indices(patches, 0)
    partition = Dirichlet(alpha=alpha, minimum=5)
    table = counts(patches, indices["train"], partition.assign(patches, indices, 7, 4), 7)
    spare = table.sum(axis=0) - table.max(axis=0)
    assert (spare <= 5 * 7).all()
    assert table.sum(axis=1).min() == 5


@pytest.mark.parametrize("ratio", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 1e3])
def test_dirichlet_with_a_ratio_has_these_sizes_and_the_skew_of_its_labels(ratio, alpha):
    patches = made(2, patients=900, classes=2)
    indices = Split().indices(patches, 0)
    table = counts(
        patches, indices["train"], Dirichlet(alpha=alpha, ratio=ratio, minimum=1).assign(patches, indices, 20, 3), 20
    )
    sizes = np.geomspace(ratio, 1.0, 20)
    np.testing.assert_allclose(table.sum(axis=1), sizes / sizes.sum() * table.sum(), rtol=0.02, atol=2)
    share = table[:, 0] / table.sum(axis=1)
    assert share.std() > 0.2 if alpha < 1 else share.std() < 0.02


def test_dirichlet_shares_have_the_variance_of_the_distribution():
    patches = made(1, patients=150, classes=2)
    indices = Split().indices(patches, 0)
    clients, alpha = 5, 0.7
    partition = Dirichlet(alpha=alpha, minimum=1)
    shares = []
    for seed in range(300):
        table = counts(patches, indices["train"], partition.assign(patches, indices, clients, seed), clients)
        shares.append(table / table.sum(axis=0))
    variance = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert np.mean(shares) == pytest.approx(1 / clients)
    assert np.var(shares) == pytest.approx(variance, rel=0.1)
    # the labels are drawn independently of each other
    assert abs(np.corrcoef(np.array(shares)[:, 0, 0], np.array(shares)[:, 0, 1])[0, 1]) < 0.15


def test_shards_give_a_hospital_few_labels():
    classes, clients = 10, 10
    patches = Patches(
        images=np.zeros((5000, 1, 1, 3), np.uint8),
        labels=np.arange(5000) % classes,
        label_names=tuple("abcdefghij"),
    )
    indices = Split(by="patch").indices(patches, 0)
    table = counts(patches, indices["train"], Shards(per_client=2).assign(patches, indices, clients, 0), clients)
    assert ((table > 0).sum(axis=1) <= 2).all()
    assert np.ptp(table.sum(axis=1)) <= 2
    assert len(np.unique(table.argmax(axis=1))) > 2


def test_quantity_skews_sizes_and_keeps_the_label_mix():
    patches = made(2, patients=300)
    indices = Split().indices(patches, 0)
    table = counts(patches, indices["train"], Quantity(alpha=0.5).assign(patches, indices, 8, 1), 8)
    sizes = table.sum(axis=1)
    assert sizes.max() > 4 * sizes.min()
    large = sizes > 100
    mix = table[large] / sizes[large, None]
    assert np.abs(mix - table.sum(axis=0) / table.sum()).max() < 0.02


@pytest.mark.parametrize(
    "partition", [Dirichlet(alpha=0.3), Shards(), Quantity(alpha=0.5), Iid()], ids=lambda p: p.name
)
def test_held_out_patches_follow_the_training_patches(partition):
    patches = made(5, patients=400)
    indices = Split().indices(patches, 0)
    clients = 8
    hospital = partition.assign(patches, indices, clients, 2)
    train = counts(patches, indices["train"], hospital, clients)
    test = counts(patches, indices["test"], hospital, clients)
    assert test.sum(axis=1).min() >= 10
    large = test.sum(axis=1) > 40
    mixes = [table[large] / table[large].sum(axis=1, keepdims=True) for table in (train, test)]
    assert np.abs(mixes[0] - mixes[1]).max() < 0.05


def test_patients_held_out_follow_the_training_labels():
    patches = made(6, patients=500)
    indices = Split().indices(patches, 0)
    hospital = Dirichlet(alpha=0.5, unit="patient").assign(patches, indices, 5, 1)
    train = counts(patches, indices["train"], hospital, 5)
    test = counts(patches, indices["test"], hospital, 5)
    assert np.corrcoef(train.ravel(), test.ravel())[0, 1] > 0.95


def test_by_group_is_natural_skew_of_equal_size():
    patches = made(7, patients=200)
    indices = Split().indices(patches, 0)
    table = counts(patches, indices["train"], ByGroup().assign(patches, indices, 10, 0), 10)
    assert np.ptp(table.sum(axis=1)) < 0.1 * table.sum(axis=1).mean()
    assert np.ptp(table[:, 0]) > 0.2 * table[:, 0].mean()


def test_by_centre_keeps_centres_apart():
    patches = made(8, patients=90, centres=3)
    indices = Split().indices(patches, 0)
    hospital = ByCentre().assign(patches, indices, 3, 0)
    assert np.array_equal(hospital, patches.centres.astype(int))
    divided = ByCentre().assign(patches, indices, 7, 0)
    owners = {(h, c) for h, c in zip(divided, patches.centres, strict=True)}
    assert len(owners) == 7
    assert len(set(zip(patches.groups, divided, strict=True))) == 90


def test_by_centre_deals_out_held_out_patches_of_centres_that_nobody_trains_in():
    patches = made(8, patients=90, centres=3)
    indices = {
        "train": np.flatnonzero(patches.centres != "2"),
        "validation": np.array([], np.int64),
        "test": np.flatnonzero(patches.centres == "2"),
    }
    hospital = ByCentre().assign(patches, indices, 2, 0)
    assert np.array_equal(hospital[indices["train"]], patches.centres[indices["train"]].astype(int))
    assert np.bincount(hospital[indices["test"]], minlength=2).min() > 0


@pytest.mark.parametrize(
    ("partition", "clients", "change", "words", "remedy"),
    [
        (Iid(minimum=100), 10, {}, "10 hospitals 100", "number of clients"),
        (ByGroup(minimum=1), 70, {}, "70 hospitals", "number of clients"),
        (ByGroup(), 5, {"groups": None}, "unknown", "another partition"),
        (Dirichlet(unit="patient"), 5, {"groups": None}, "unknown", "unit: patch"),
        (ByCentre(), 5, {"centres": None}, "unknown", "by_group"),
        (ByCentre(), 1, {}, "2 centres (0, 1)", "2 or more"),
    ],
)
def test_impossible_partitions_say_what_to_change(partition, clients, change, words, remedy):
    patches = made()
    patches = Patches(
        **{k: getattr(patches, k) for k in ("images", "labels", "label_names", "groups", "centres")} | change
    )
    indices = Split(by="patch" if patches.groups is None else "patient").indices(patches, 0)
    with refused(DataError, path="partition", says=words) as caught:
        partition.assign(patches, indices, clients, 0)
    (problem,) = caught.value.problems
    assert remedy in problem.hint and problem.message.startswith(f"{partition.name}: ")


@pytest.mark.parametrize("values", [{"unit": "patient"}, {"per_client": 0}, {"minimum": 0}])
def test_shards_refuse_what_makes_no_sense(values):
    with pytest.raises(ExperimentError):
        Shards(**values)


def test_alpha_must_be_positive():
    with pytest.raises(ExperimentError):
        Dirichlet(alpha=0.0)


@pytest.mark.parametrize("alpha", [5e-324, 1e-308, 1e-100, 1e100, 1e300, 1e308, 1.7976931348623157e308])
@pytest.mark.parametrize("kind", [Dirichlet, Quantity])
@pytest.mark.parametrize("unit", ["patch", "patient"])
def test_extreme_concentrations_are_the_limits(kind, alpha, unit):
    patches = made(1, patients=200)
    indices = Split().indices(patches, 0)
    partition = kind(alpha=alpha, minimum=5, unit=unit)
    table = counts(patches, indices["train"], partition.assign(patches, indices, 7, 4), 7)
    assert table.sum() == len(indices["train"]) and table.sum(axis=1).min() >= 5
    if alpha > 1:
        assert np.abs(table / table.mean(axis=0) - 1).max() < 0.35
    elif unit == "patch":
        assert (table.sum(axis=0) - table.max(axis=0) <= 5 * 7).all()


@pytest.mark.parametrize(
    "partition",
    [
        Shards(per_client=10**9),
        Shards(per_client=10**18),
        Iid(minimum=10**18),
        Dirichlet(minimum=2**63 - 1),
        ByGroup(minimum=2**63 - 1),
    ],
    ids=lambda partition: partition.name,
)
def test_numbers_beyond_all_patches_are_refused(partition):
    patches = made(1)
    with refused(DataError, path="partition", says="training patches"):
        partition.assign(patches, Split().indices(patches, 0), 5, 0)


extreme = st.sampled_from([5e-324, 1e-308, 1e-17, 1e-9]) | st.floats(0, 1, exclude_min=True, exclude_max=True)


@settings(max_examples=25, deadline=None)
@given(validation=extreme | st.just(0.0) | st.just(-0.0), test=extreme, by=st.sampled_from(["patient", "patch"]))
def test_extreme_shares_are_split_or_refused(validation, test, by):
    patches = made(2, patients=12)
    if by == "patch":
        patches = Patches(images=patches.images, labels=patches.labels, label_names=patches.label_names)
    try:
        split = Split(by=by, validation=validation, test=test)
        found = split.indices(patches, 0)
    except ExperimentError:
        return
    assert len(found["train"]) > 0 and len(found["test"]) > 0
    assert sum(map(len, found.values())) == len(patches)
