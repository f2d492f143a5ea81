"""Corrupted samples: every kind changes what it should, by its severity, and labels stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from refused import refused

from fedrobust.attacks import Artefacts, Backdoor
from fedrobust.data import Histology
from fedrobust.data.stain import optical_density

KINDS = ("pen", "blur", "fold", "stain", "bubble", "debris")
PATCHES = Histology(patients=6, patches_per_patient=8, size=40).load(0)
IMAGES, LABELS = PATCHES.images, PATCHES.labels


def corrupted(seed: int = 0, **options: Any) -> np.ndarray:
    attack = Artefacts.model_validate({"count": 1, **options})
    images, labels = attack.poison(IMAGES, LABELS, np.random.default_rng(seed), classes=2)
    np.testing.assert_array_equal(labels, LABELS)
    assert images.dtype == np.uint8 and images.shape == IMAGES.shape
    return images


def change(images: np.ndarray) -> np.ndarray:
    """Mean absolute change of each patch."""
    return np.abs(images.astype(int) - IMAGES).mean(axis=(1, 2, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_every_patch_gets_an_artefact_and_a_severe_one_changes_more(kind: str) -> None:
    by_severity = [change(corrupted(kinds=[kind], severity=severity)).mean() for severity in (0.1, 0.4, 1.0)]
    assert 0 < by_severity[0] < by_severity[1] < by_severity[2]
    assert by_severity[2] > 10
    assert (change(corrupted(kinds=[kind], severity=1.0)) > 0).mean() > 0.9  # a bubble may lie off the patch's middle


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_generator_gives_the_same_artefacts(kind: str) -> None:
    np.testing.assert_array_equal(corrupted(3, kinds=[kind]), corrupted(3, kinds=[kind]))
    if kind != "blur":
        assert not np.array_equal(corrupted(3, kinds=[kind]), corrupted(4, kinds=[kind]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pixels", [8, 33])
def test_read_only_batches_of_any_size(kind: str, pixels: int) -> None:
    images = np.ascontiguousarray(IMAGES[:3, :pixels, :pixels])
    before = images.copy()
    images.flags.writeable = False
    for size in (0, 1, 3):
        attack = Artefacts(count=1, kinds=(kind,))  # type: ignore[arg-type]
        found, _ = attack.poison(images[:size], LABELS[:size], np.random.default_rng(0), classes=2)
        assert found.shape == images[:size].shape
    np.testing.assert_array_equal(images, before)


def test_a_pen_a_fold_and_debris_only_take_light_away() -> None:
    for kind in ("pen", "fold", "debris"):
        assert (corrupted(kinds=[kind]).astype(int) - IMAGES).max() <= 1, kind


def test_blur_takes_detail_and_leaves_the_mean() -> None:
    blurred = corrupted(kinds=["blur"], severity=0.5)
    np.testing.assert_allclose(blurred.mean(axis=(1, 2)), IMAGES.mean(axis=(1, 2)), atol=4)
    detail = [np.abs(np.diff(images.astype(int), axis=2)).mean() for images in (IMAGES, blurred)]
    assert detail[1] < detail[0] / 3


def test_a_fold_is_a_band_of_more_tissue() -> None:
    gained = optical_density(corrupted(kinds=["fold"], severity=0.3)) - optical_density(IMAGES)
    touched = (gained.max(axis=3) > 0.1).mean(axis=(1, 2))
    assert 0.05 < np.median(touched) < 0.7


def test_a_bad_stain_changes_the_whole_patch() -> None:
    changed = (corrupted(kinds=["stain"], severity=1.0) != IMAGES).any(axis=3).mean(axis=(1, 2))
    assert changed.min() > 0.9


def test_a_bubble_is_paler_inside_and_dark_at_its_rim() -> None:
    found = corrupted(kinds=["bubble"], severity=1.0).astype(int) - IMAGES
    assert (found > 40).any(axis=(1, 2, 3)).mean() > 0.8
    assert (found < -40).any(axis=(1, 2, 3)).mean() > 0.8


def test_a_share_of_the_batch_and_all_kinds_by_default() -> None:
    assert (change(corrupted(ratio=0.25)) > 0).sum() == len(IMAGES) // 4
    assert Artefacts(count=1).kinds == KINDS
    assert not isinstance(Artefacts(count=1), Backdoor)


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"kinds": []}, "kinds"),
        ({"kinds": ["pen", "pen"]}, "kinds"),
        ({"kinds": ["coffee"]}, "kinds.0"),
        ({"severity": 0.0}, "severity"),
        ({"ratio": 1.5}, "ratio"),
    ],
)
def test_refused_options(options: dict[str, Any], path: str) -> None:
    with refused(ValidationError, path=path):
        Artefacts.model_validate({"count": 1, **options})
