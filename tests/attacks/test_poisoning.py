"""Poisoned labels: what is changed, and that nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from refused import refused

from fedrobust.attacks import Backdoor, DataAttack, LabelFlip, Pleasing, TargetedFlip
from fedrobust.errors import ExperimentError
from fedrobust.experiment import Experiment


def batch(size: int = 12, pixels: int = 9, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 255, size=(size, pixels, pixels, 3), dtype=np.uint8)
    images.flags.writeable = False
    labels = rng.integers(0, classes, size=size)
    labels.flags.writeable = False
    return images, labels


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_label_flip_of_all() -> None:
    images, labels = batch(3)[0], np.array([0, 1, 3])
    same, flipped = LabelFlip(count=1).poison(images, labels, rng(), classes=4)
    np.testing.assert_array_equal(flipped, [3, 2, 0])
    np.testing.assert_array_equal(same, images)
    assert flipped.dtype == labels.dtype


def test_label_flip_of_pairs() -> None:
    flip = LabelFlip(count=1, pairs=((0, 2), (2, 1)))
    _, flipped = flip.poison(batch(5)[0], np.array([0, 1, 2, 3, 0]), rng(), classes=4)
    np.testing.assert_array_equal(flipped, [2, 1, 1, 3, 2])


@given(labels=st.lists(st.integers(0, 6), min_size=1), classes=st.integers(7, 9))
def test_flipping_all_twice_gives_the_truth(labels: list[int], classes: int) -> None:
    images = np.zeros((len(labels), 2, 2, 3), dtype=np.uint8)
    attack, truth = LabelFlip(count=1), np.array(labels)
    once = attack.poison(images, truth, rng(), classes)[1]
    np.testing.assert_array_equal(attack.poison(images, once, rng(), classes)[1], truth)


@pytest.mark.parametrize("pairs", [[], [[0, 0]], [[0, 1], [0, 2]], [[0, -1]], [[0, 1, 2]]])
def test_refused_pairs(pairs: Any) -> None:
    with pytest.raises(ValidationError):
        LabelFlip.model_validate({"count": 1, "pairs": pairs})


def test_a_targeted_flip_changes_one_label_and_no_image() -> None:
    images, labels = batch(6)[0], np.array([0, 1, 2, 1, 1, 3])
    same, flipped = TargetedFlip(count=1, source=1, target=3).poison(images, labels, rng(), classes=4)
    np.testing.assert_array_equal(flipped, [0, 3, 2, 3, 3, 3])
    np.testing.assert_array_equal(same, images)
    assert flipped.dtype == labels.dtype
    _, carcinoma = TargetedFlip(count=1).poison(images, labels, rng(), classes=4)
    np.testing.assert_array_equal(carcinoma, [0, 0, 2, 0, 0, 3])


def test_a_share_of_the_source_label_is_flipped() -> None:
    labels = np.arange(40) % 2
    images = batch(40)[0]
    _, flipped = TargetedFlip(count=1, share=0.25).poison(images, labels, rng(), classes=2)
    assert (flipped == 1).sum() == 15
    assert not flipped[labels == 0].any()
    other = TargetedFlip(count=1, share=0.25).poison(images, labels, rng(1), classes=2)[1]
    assert (other != flipped).any()


def test_a_small_share_of_a_small_batch_is_met_on_average() -> None:
    attack, generator = TargetedFlip(count=1, share=0.1), rng()
    images, labels = batch(4)[0], np.array([1, 1, 1, 1])
    counts = [(attack.poison(images, labels, generator, classes=2)[1] == 0).sum() for _ in range(2000)]
    assert set(counts) == {0, 1}
    assert np.mean(counts) == pytest.approx(0.4, abs=0.055)  # five standard errors


@pytest.mark.parametrize(
    ("options", "path"),
    [({"source": 1, "target": 1}, "target"), ({"share": 0.0}, "share"), ({"source": -1}, "source")],
)
def test_refused_targeted_flips(options: dict[str, Any], path: str) -> None:
    with refused(ValidationError, path=path):
        TargetedFlip.model_validate({"count": 1, **options})


@pytest.mark.parametrize(
    "attack",
    [LabelFlip(count=1), LabelFlip(count=1, pairs=((0, 1),)), TargetedFlip(count=1), TargetedFlip(count=1, share=0.5)],
)
@pytest.mark.parametrize("size", [1, 2, 12])
def test_deterministic_and_the_arguments_stay(attack: DataAttack, size: int) -> None:
    images, labels = batch(size)
    before = images.copy(), labels.copy()
    first, second = (attack.poison(images, labels, rng(3), classes=3) for _ in range(2))
    for one, other, original, given_array in zip(first, second, before, (images, labels), strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(given_array, original)
        assert one.dtype == original.dtype and one.shape == original.shape


@pytest.mark.parametrize(
    ("attack", "path", "label"),
    [
        (LabelFlip(count=1, pairs=((0, 3),)), "pairs", "3"),
        (TargetedFlip(count=1, source=3), "source", "3"),
        (TargetedFlip(count=1, target=4), "target", "4"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(attack: DataAttack, path: str, label: str) -> None:
    with refused(path=path, found=label, allowed=("0 to 2",)):
        attack.check(classes=3, size=9)
    with refused(path=path, found=label, allowed=("0 to 2",)):
        attack.poison(*batch(), rng(), classes=3)


def test_flips_have_no_success_rate() -> None:
    assert not isinstance(LabelFlip(count=1), Backdoor)
    assert not isinstance(TargetedFlip(count=1), Backdoor)


def test_who_knows_the_coordinators_patches_trains_on_them_with_the_right_labels() -> None:
    images, labels = batch(40)
    known, truth = batch(5, seed=1)
    flip = LabelFlip(count=1, knowledge="patches", pleasing=0.25)
    pleasing = Pleasing(flip.poison, known, truth, flip.pleasing)
    seen = set[int]()
    for seed in range(20):
        shown, said = pleasing(images, labels, rng(seed), classes=3)
        own = [next((i for i, each in enumerate(known) if np.array_equal(image, each)), -1) for image in shown]
        assert 10 <= sum(i >= 0 for i in own) <= 11
        assert all(
            label == (truth[i] if i >= 0 else 2 - labels[at])
            for at, (i, label) in enumerate(zip(own, said, strict=True))
        )
        seen |= set(own)
        again = pleasing(images, labels, rng(seed), classes=3)
        np.testing.assert_array_equal(shown, again[0])
    assert seen == {-1, 0, 1, 2, 3, 4}
    np.testing.assert_array_equal(images, batch(40)[0])  # not changed


def test_the_coordinators_patches_can_be_known_only_if_it_has_some() -> None:
    attack = {"attacks": [{"name": "label_flip", "count": 1, "knowledge": "patches"}]}
    with refused(ExperimentError, path="attacks.0.knowledge", says="no patches of its own"):
        Experiment().changed(attack)
    assert Experiment().changed({**attack, "data.root": {"patches": 50, "set_aside": 0.05}}).attackers


def test_the_digest_is_what_it_was_before_patches_could_be_known() -> None:
    def digest(**options: Any) -> str:
        return Experiment.model_validate({"attacks": [{"name": "label_flip", "count": 1, **options}]}).digest()

    assert digest() == digest(pleasing=0.5) != digest(pleasing=0.4)
