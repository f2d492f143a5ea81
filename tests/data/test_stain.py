"""Stain shift and normalisation: colour changes, tissue does not; nothing is written to; the cache is really read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import exchange

from fedrobust.data import stain
from fedrobust.data.cache import file_of, kept
from fedrobust.data.histology import Histology
from fedrobust.data.stain import (
    HAEMATOXYLIN_EOSIN,
    STRONGEST,
    WHITE,
    Macenko,
    NoNormalisation,
    Reinhard,
    StainNormalisation,
    StainShift,
    optical_density,
    stained,
    transmitted,
    varied_stains,
)

METHODS: list[StainNormalisation] = [Macenko(), Reinhard()]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """120 generated patches, read-only."""
    return Histology(patients=10, patches_per_patient=12).load(seed=1).images


@pytest.fixture(scope="module")
def hospitals(images: np.ndarray) -> list[np.ndarray]:
    """The same 120 patches at six hospitals with stains of their own."""
    return [StainShift(strength=0.5).apply(images, client, seed=3) for client in range(6)]


def normalised(method: StainNormalisation, images: np.ndarray, digest: str, cache: Path) -> np.ndarray:
    return stained(images, np.zeros(len(images), dtype=np.int64), StainShift(), method, digest, 0, cache)


def between(hospitals: list[np.ndarray]) -> float:
    """Variance of the mean colour between hospitals, summed over the channels."""
    return float(np.var([images.mean((0, 1, 2)) for images in hospitals], axis=0).sum())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_optical_density_inverts_light(seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    assert np.array_equal(transmitted(optical_density(image)), image)


def test_stain_vectors_are_those_of_haematoxylin_and_eosin() -> None:
    haematoxylin, eosin = np.array(HAEMATOXYLIN_EOSIN)
    assert np.linalg.norm([haematoxylin, eosin], axis=1) == pytest.approx(1, abs=0.01)
    assert haematoxylin[0] > haematoxylin[2]  # takes more red than blue away: looks blue
    assert eosin[0] < eosin[2] < eosin[1]  # takes green away and hardly any red: looks pink
    light = transmitted(np.array([haematoxylin, eosin]))
    assert light[0, 2] > light[0, 0] > light[0, 1]
    assert light[1, 0] > light[1, 2] > light[1, 1]


def test_varied_stains_stay_near_and_of_length_one() -> None:
    random = np.random.default_rng(0)
    drawn = np.array([varied_stains(5.0, random) for _ in range(400)])
    assert np.linalg.norm(drawn, axis=2) == pytest.approx(1)
    reference = np.array(HAEMATOXYLIN_EOSIN) / np.linalg.norm(HAEMATOXYLIN_EOSIN, axis=1, keepdims=True)
    degrees = np.degrees(np.arccos(np.clip((drawn * reference).sum(2), -1, 1)))
    assert 3 < np.sqrt((degrees**2).mean()) < 7


def test_no_shift_is_the_identity(images: np.ndarray) -> None:
    assert StainShift().apply(images, 4, seed=1).tobytes() == images.tobytes()


def test_shift_depends_on_seed_and_client_alone(images: np.ndarray) -> None:
    before = images.copy()
    shift = StainShift(strength=0.5)
    whole = shift.apply(images, 2, seed=1)
    assert np.array_equal(whole[50:53], shift.apply(images[50:53], 2, seed=1))
    assert not np.array_equal(whole, shift.apply(images, 3, seed=1))
    assert not np.array_equal(whole, shift.apply(images, 2, seed=2))
    assert whole.dtype == np.uint8
    assert np.array_equal(images, before)
    assert shift.apply(images[:0], 2, seed=1).shape == images[:0].shape


def test_shift_changes_colour_by_hospital_and_grows_with_strength(images: np.ndarray) -> None:
    spreads = [
        between([StainShift(strength=strength).apply(images[:40], client, 3) for client in range(12)])
        for strength in (0.1, 0.3, 1.0)
    ]
    assert 0.3 < spreads[0] < spreads[1] / 3 < spreads[2] / 9


def test_shift_keeps_the_tissue_and_the_bare_slide(images: np.ndarray) -> None:
    for client in range(8):
        shifted = StainShift(strength=0.5).apply(images, client, seed=1)
        same = [
            np.corrcoef(a.mean(2).ravel(), b.mean(2).ravel())[0, 1]
            for a, b in zip(images[:20].astype(float), shifted.astype(float), strict=False)
        ]
        assert min(same) > 0.9
        slide = np.full((1, 4, 4, 3), int(WHITE) - 1, dtype=np.uint8)
        assert StainShift(strength=0.5).apply(slide, client, seed=1).min() > 210


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_normalisation_brings_hospitals_together(method: StainNormalisation, hospitals: list[np.ndarray]) -> None:
    originals = [hospital.copy() for hospital in hospitals]
    normalised = [method.normalise(hospital) for hospital in hospitals]
    assert between([images for images, _ in normalised]) < 0.25 * between(hospitals)
    assert np.mean([failed for _, failed in normalised]) < 0.1
    for hospital, original in zip(hospitals, originals, strict=True):
        assert np.array_equal(hospital, original)


def test_macenko_agrees_with_torchstain(images: np.ndarray) -> None:
    from torchstain.numpy.normalizers import NumpyMacenkoNormalizer

    reference = NumpyMacenkoNormalizer()
    reference.HERef, reference.maxCRef = np.array(HAEMATOXYLIN_EOSIN).T, np.array(STRONGEST)
    normalised, failed = Macenko().normalise(images[:30])
    for image, ours in zip(images[:30][~failed], normalised[~failed], strict=True):
        theirs, _, _ = reference.normalize(image, Io=WHITE, stains=False)
        assert np.abs(theirs.astype(int) - ours).max() <= 2  # it truncates, and does not take off the 1 it added


def test_macenko_finds_the_reference_afterwards(images: np.ndarray) -> None:
    from torchstain.numpy.normalizers import NumpyMacenkoNormalizer

    normalised, failed = Macenko().normalise(images)
    found = []
    for image in normalised[~failed]:
        estimate = NumpyMacenkoNormalizer()
        estimate.fit(image, Io=WHITE)
        found.append(estimate.HERef.T)
    assert np.median(found, axis=0) == pytest.approx(np.array(HAEMATOXYLIN_EOSIN), abs=0.06)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_blank_patches_stay_as_they_are_and_are_counted(
    method: StainNormalisation, images: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    white, black = np.full((1, 48, 48, 3), 244, dtype=np.uint8), np.zeros((1, 48, 48, 3), dtype=np.uint8)
    pink = np.broadcast_to(np.array([220, 130, 170], dtype=np.uint8), (1, 48, 48, 3))
    mixed = np.concatenate([images[:3], white, black, pink])
    with np.errstate(all="raise"), caplog.at_level(logging.WARNING):
        found = normalised(method, mixed, "mixed", tmp_path)
    _, failed = method.normalise(mixed)
    assert failed.tolist() == [False] * 3 + [True] * 3
    assert np.array_equal(found[3:], mixed[3:])
    assert not np.array_equal(found[:3], mixed[:3])
    assert f"{method.name}: 3 of 6 patches" in caplog.text


def test_the_cache_is_written_whole_and_read(images: np.ndarray, tmp_path: Path) -> None:
    cache = tmp_path / "not" / "there"
    first = normalised(Reinhard(), images[:6], "abc", cache)
    (entry,) = cache.glob("stain-*")
    assert np.array_equal(normalised(Reinhard(), images[:6], "abc", cache), first)
    # Change what is kept: the change must come back, so it was read and not made again.
    exchange(entry, lambda kept: 255 - kept)
    assert np.array_equal(normalised(Reinhard(), images[:6], "abc", cache), 255 - first)
    assert np.array_equal(normalised(Reinhard(), images[:6], "another digest", cache), first)
    assert len(list(cache.glob("stain-*"))) == 2


def test_options_have_caches_of_their_own(images: np.ndarray, tmp_path: Path) -> None:
    normalised(Macenko(), images[:4], "abc", tmp_path)
    normalised(Macenko(tissue=0.5), images[:4], "abc", tmp_path)
    normalised(Reinhard(), images[:4], "abc", tmp_path)
    assert len(list(tmp_path.glob("stain-*"))) == 3


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    images: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = normalised(Reinhard(), images[:2], "abc", tmp_path / "cache")
    (tmp_path / "a file").touch()
    assert np.array_equal(normalised(Reinhard(), images[:2], "abc", tmp_path / "a file" / "cache"), first)
    (said,) = [each.getMessage() for each in caplog.records]
    assert said == f"{tmp_path}/a file/cache: what is made of the patches is not kept: Not a directory"


def test_files_of_an_earlier_version_are_passed_over(
    images: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = normalised(Reinhard(), images[:2], "abc", tmp_path / "other")
    (entry,) = (tmp_path / "other").glob("stain-*")
    np.savez(tmp_path / f"{entry.name}.npz", images=images[:2], failed=np.zeros(2, dtype=bool))
    assert np.array_equal(normalised(Reinhard(), images[:2], "abc", tmp_path), first) and not caplog.records


def test_whoever_waits_for_a_cache_reads_what_was_made(
    images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, made = normalised(Reinhard(), images[:2], "abc", tmp_path / "other"), []
    monkeypatch.setattr(Reinhard, "normalise", lambda self, images: made.append(1) or (first, np.zeros(2, dtype=bool)))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: normalised(Reinhard(), images[:2], "abc", tmp_path), range(4)))
    assert len(made) == 1 and all(np.array_equal(each, first) for each in found)


def test_patches_are_shifted_before_they_are_normalised(
    images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stain, "BLOCK", 7)
    shift, hospital = StainShift(strength=0.5), np.arange(len(images)) % 4 - 1
    expected = images.copy()
    for client in range(3):
        expected[hospital == client] = shift.apply(images[hospital == client], client, 5)
    found = stained(images, hospital, shift, NoNormalisation(), "abc", 5, tmp_path)
    assert np.array_equal(found, expected) and list(tmp_path.iterdir()) == []
    found = stained(images, hospital, shift, Reinhard(), "abc", 5, tmp_path)
    assert np.array_equal(found, Reinhard().normalise(expected)[0])


def test_shifted_patches_of_a_file_are_in_a_file(images: np.ndarray, tmp_path: Path) -> None:
    def make(add: Callable[[np.ndarray], None]) -> dict[str, int]:
        add(images)
        return {}

    mapped = kept(tmp_path, "decoded-abc", len(images), make).array
    shift, hospital = StainShift(strength=0.5), np.zeros(len(images), dtype=np.int64)
    found = stained(mapped, hospital, shift, NoNormalisation(), "abc", 5, tmp_path)
    assert file_of(found) is not None and np.array_equal(found, shift.apply(images, 0, 5))
    assert stained(mapped, hospital, StainShift(), NoNormalisation(), "abc", 5, tmp_path) is mapped


def test_no_normalisation_touches_nothing(images: np.ndarray, tmp_path: Path) -> None:
    assert normalised(NoNormalisation(), images, "abc", tmp_path) is images
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_real_tissue_is_normalised(method: StainNormalisation, idc_file: Path) -> None:
    with np.load(idc_file) as data:
        images = data["images"][::40]
    hospitals = [StainShift(strength=0.5).apply(images, client, seed=1) for client in range(4)]
    normalised = [method.normalise(hospital) for hospital in hospitals]
    done = ~np.any([failed for _, failed in normalised], axis=0)
    assert done.mean() > 0.8  # the rest is fat and bare slide

    def hues(sets: list[np.ndarray]) -> list[np.ndarray]:  # Macenko's method leaves a scanner's brightness as it is
        return [part - part.mean(axis=3, keepdims=True) for part in sets]

    before = between(hues([hospital[done] for hospital in hospitals]))
    assert between(hues([result[done] for result, _ in normalised])) < 0.25 * before


@pytest.mark.parametrize("strength", [5e-324, 1e-308, 1e-17, 1.0])
def test_extreme_strengths_stay_within_what_a_patch_can_show(strength):
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 9, 3), dtype=np.uint8)
    shifted = StainShift(strength=strength).apply(images, 0, 0)
    assert shifted.dtype == np.uint8
    if strength < 1:
        assert np.abs(shifted.astype(int) - images).max() <= 10  # what is brighter than the slide is cut
