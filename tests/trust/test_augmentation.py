"""What a repair changes in patches: rectangles and stains, at random, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fedrobust.data.stain import HAEMATOXYLIN_EOSIN, optical_density, transmitted
from fedrobust.trust.augmentation import RESTAINED, Images, augmented, mirrored, pasted, restained, texture


def tissue(patches: int = 40, side: int = 24) -> Images:
    """Patches of random amounts of both stains."""
    amounts = np.random.default_rng(1).uniform(0.2, 1.2, size=(patches, side, side, 2))
    return transmitted(amounts @ np.array(HAEMATOXYLIN_EOSIN))


def mirrors(image: Images) -> list[Images]:
    return [image, image[::-1], image[:, ::-1], image[::-1, ::-1]]


def test_patches_are_changed_in_a_copy_and_not_all_are_stained_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    before = tissue(200)
    kept = before.copy()
    after = augmented(before, np.random.default_rng(0))
    assert (before == kept).all() and after.shape == before.shape and after.dtype == np.uint8
    assert (after != before).any(axis=(1, 2, 3)).all()
    assert (augmented(before, np.random.default_rng(0)) == after).all()
    assert not (augmented(before, np.random.default_rng(1)) == after).all()
    monkeypatch.setattr("fedrobust.trust.augmentation.pasted", lambda image, drawn: image)
    after = augmented(before, np.random.default_rng(0))
    same = [any((new == each).all() for each in mirrors(old)) for old, new in zip(before, after, strict=True)]
    assert 1 - np.mean(same) == pytest.approx(RESTAINED, abs=0.1)


def test_a_mirrored_patch_is_one_of_four() -> None:
    before = tissue()
    after = mirrored(before, np.random.default_rng(0))
    which = [[(new == each).all() for each in mirrors(old)].index(True) for old, new in zip(before, after, strict=True)]
    assert set(which) == {0, 1, 2, 3}


@pytest.mark.parametrize("change", [pasted, restained])
@pytest.mark.parametrize("side", [1, 2, 13, 96])
def test_one_patch_of_any_size_is_changed_in_a_copy(
    change: Callable[[Images, np.random.Generator], Images], side: int
) -> None:
    (before,) = tissue(1, side)
    kept, drawn = before.copy(), np.random.default_rng(0)
    after = [change(before, drawn) for _ in range(20)]
    assert (before == kept).all()
    assert all(each.shape == before.shape and each.dtype == np.uint8 for each in after)
    assert np.mean([(each != before).any() for each in after]) > 0.9


@pytest.mark.parametrize("side", [8, 13, 96])
def test_a_rectangle_is_no_longer_than_half_a_patch(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrobust.trust.augmentation.RECTANGLES", 1)
    image, drawn = np.full((side, side, 3), 77, dtype=np.uint8), np.random.default_rng(3)
    for _ in range(40):
        for line in np.nonzero((pasted(image, drawn) != 77).any(axis=2)):
            assert len(line) and np.ptp(line) < side // 2


def test_stains_are_paler_and_darker_together() -> None:
    (image,), drawn = tissue(1), np.random.default_rng(0)
    before = optical_density(image).mean()
    strength = np.array([optical_density(restained(image, drawn)).mean() / before for _ in range(200)])
    assert strength.min() < 0.35 and strength.max() > 1.7  # a faded edge case has about 0.35 of the density
    assert 0.25 < (strength < 0.6).mean() < 0.6


def test_textures_are_plain_or_have_squares_of_any_side() -> None:
    drawn = np.random.default_rng(0)
    found = [texture(12, 9, drawn) for _ in range(200)]
    assert all(each.shape == (12, 9, 3) and each.dtype == np.uint8 for each in found)
    colours = np.array([len(np.unique(each.reshape(-1, 3), axis=0)) for each in found])
    assert {1, 2, 108} <= set(colours)
    fine = [each for each, count in zip(found, colours, strict=True) if count == 2 and (each[0, 0] != each[0, 1]).any()]
    assert any((each[::2, ::2] == each[0, 0]).all() and (each[::2, 1::2] == each[0, 1]).all() for each in fine)
