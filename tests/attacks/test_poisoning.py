"""Poisoned batches: what is changed, and that nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedrobust.attacks import Backdoor, DataAttack, LabelFlip, PatchBackdoor
from fedrobust.errors import ExperimentError


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


@pytest.mark.parametrize(
    ("position", "rows", "columns"),
    [
        ("top_left", [0, 1], [0, 1]),
        ("top_right", [0, 1], [7, 8]),
        ("bottom_left", [7, 8], [0, 1]),
        ("bottom_right", [7, 8], [7, 8]),
        ("centre", [3, 4], [3, 4]),
    ],
)
def test_the_trigger_is_where_it_belongs(position: str, rows: list[int], columns: list[int]) -> None:
    images, _ = batch()
    triggered = PatchBackdoor(count=1, size=2, position=position, colour=(255, 0, 255)).trigger(images)
    expected = images.copy()
    for row in rows:
        for column in columns:
            expected[:, row, column] = (255, 0, 255)
    np.testing.assert_array_equal(triggered, expected)
    assert triggered.dtype == np.uint8


def test_a_checkerboard_alternates_the_colour_and_its_complement() -> None:
    backdoor = PatchBackdoor(count=1, size=2, position="top_left", colour=(255, 0, 200), pattern="checkerboard")
    square = backdoor.trigger(batch()[0])[4, :2, :2]
    np.testing.assert_array_equal(square, [[[255, 0, 200], [0, 255, 55]], [[0, 255, 55], [255, 0, 200]]])


def test_poisoned_images_carry_trigger_and_target_the_others_are_untouched() -> None:
    images, labels = batch(40)
    backdoor = PatchBackdoor(count=1, target=2, ratio=0.25)
    poisoned, changed = backdoor.poison(images, labels, rng(), classes=3)
    touched = (poisoned != images).any(axis=(1, 2, 3))
    assert touched.sum() == 10
    np.testing.assert_array_equal(poisoned[touched], backdoor.trigger(images)[touched])
    np.testing.assert_array_equal(changed, np.where(touched, 2, labels))
    assert (
        len(
            {
                tuple(np.flatnonzero((backdoor.poison(images, labels, rng(s), 3)[0] != images).any((1, 2, 3))))
                for s in range(5)
            }
        )
        == 5
    )


def test_a_small_ratio_of_a_small_batch_is_met_on_average() -> None:
    images, labels = batch(4, classes=2)
    backdoor = PatchBackdoor(count=1, target=2, ratio=0.1)
    generator = rng()
    counts = [(backdoor.poison(images, labels, generator, classes=3)[1] == 2).sum() for _ in range(2000)]
    assert set(counts) == {0, 1}
    assert np.mean(counts) == pytest.approx(0.4, abs=0.055)  # five standard errors


def test_a_ratio_of_one_poisons_all() -> None:
    images, labels = batch(5)
    assert (PatchBackdoor(count=1, target=1, ratio=1).poison(images, labels, rng(), classes=3)[1] == 1).all()


@pytest.mark.parametrize("attack", [LabelFlip(count=1), LabelFlip(count=1, pairs=((0, 1),)), PatchBackdoor(count=1)])
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
    ("attack", "message"),
    [
        (LabelFlip(count=1, pairs=((0, 3),)), "label_flip: pairs: no label 3; the labels are 0 to 2"),
        (PatchBackdoor(count=1, target=3), "patch_backdoor: target: no label 3; the labels are 0 to 2"),
        (PatchBackdoor(count=1, size=10), "patch_backdoor: size: a square of 10 pixels on images of 9"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(attack: DataAttack, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        attack.check(classes=3, size=9)
    with pytest.raises(ExperimentError, match=message):
        attack.poison(*batch(), rng(), classes=3)


def test_only_backdoors_define_a_success_rate() -> None:
    assert isinstance(PatchBackdoor(count=1), Backdoor)
    assert not isinstance(LabelFlip(count=1), Backdoor) and not hasattr(LabelFlip(count=1), "target")
