"""Backdoors: what is poisoned and how, what each hospital does, and how updates are bound and scaled."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from refused import problems, refused

from fedrobust.attacks import (
    Attack,
    Backdoor,
    BlendedBackdoor,
    ConstrainAndScale,
    Dba,
    EdgeCase,
    LocalView,
    ModelReplacement,
    Neurotoxin,
    PatchBackdoor,
    Sleeper,
    StainBackdoor,
)
from fedrobust.attacks.model_poisoning import least_moved
from fedrobust.data.stain import HAEMATOXYLIN_EOSIN, optical_density, transmitted
from fedrobust.learning.constraint import Constraint
from fedrobust.options import OneOf, members

ANY = TypeAdapter(Annotated[Attack, OneOf(Attack)])
BACKDOORS = [name for name, kind in members(Attack).items() if issubclass(kind, Backdoor)]


def batch(size: int = 12, pixels: int = 18, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 255, size=(size, pixels, pixels, 3), dtype=np.uint8)
    images.flags.writeable = False
    labels = rng.integers(0, classes, size=size)
    labels.flags.writeable = False
    return images, labels


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def view(**options: Any) -> LocalView:
    return LocalView(**{"round": 2, "n": 10, "attackers": 2, "rank": 0, "hospitals": 2, **options})


def backdoor(name: str, **options: Any) -> Backdoor:
    return ANY.validate_python({"name": name, "count": 1, **options})


@pytest.mark.parametrize(
    ("position", "rows", "columns"),
    [
        ("top_left", [0, 1], [0, 1]),
        ("top_right", [0, 1], [16, 17]),
        ("bottom_left", [16, 17], [0, 1]),
        ("bottom_right", [16, 17], [16, 17]),
        ("centre", [8, 9], [8, 9]),
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


@pytest.mark.parametrize("name", BACKDOORS)
@pytest.mark.parametrize("size", [1, 2, 12])
def test_deterministic_and_the_arguments_stay(name: str, size: int) -> None:
    attack = backdoor(name)
    images, labels = batch(size)
    before = images.copy(), labels.copy()
    first, second = (attack.poison(images, labels, rng(3), classes=3) for _ in range(2))
    for one, other, original, given in zip(first, second, before, (images, labels), strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(given, original)
        assert one.dtype == original.dtype and one.shape == original.shape
    np.testing.assert_array_equal(attack.trigger(images), attack.trigger(images))
    assert not np.array_equal(attack.trigger(images), images)
    np.testing.assert_array_equal(images, before[0])


@pytest.mark.parametrize("name", BACKDOORS)
def test_every_backdoor_poisons_its_ratio_with_its_trigger_and_target(name: str) -> None:
    images, labels = batch(40)
    attack = backdoor(name, target=2, ratio=0.25)
    poisoned, changed = attack.poison(images, labels, rng(), classes=3)
    touched = (poisoned != images).any(axis=(1, 2, 3))
    assert touched.sum() == 10
    np.testing.assert_array_equal(poisoned[touched], attack.trigger(images)[touched])
    np.testing.assert_array_equal(changed, np.where(touched, 2, labels))


@pytest.mark.parametrize("name", BACKDOORS)
def test_a_target_that_the_data_does_not_have_is_refused(name: str) -> None:
    attack = backdoor(name, target=3)
    for check in (lambda: attack.check(3, 18), lambda: attack.poison(*batch(), rng(), classes=3)):
        with refused(path="target", found="3", allowed=("0 to 2",)):
            check()


@pytest.mark.parametrize(
    ("attack", "path", "word"),
    [
        (PatchBackdoor(count=1, size=19), "size", "18"),
        (Dba(count=1, length=8), "length", "19"),
        (Dba(count=1, width=8), "length", "19"),
        (ModelReplacement(count=1, backdoor=PatchBackdoor(count=1, size=19)), "size", "18"),
    ],
)
def test_what_does_not_fit_the_images_is_refused(attack: Backdoor, path: str, word: str) -> None:
    with refused(path=path, says=word):
        attack.check(classes=3, size=18)


@pytest.mark.parametrize(
    ("name", "options", "path"),
    [
        ("blended_backdoor", {"alpha": 0.0}, "alpha"),
        ("blended_backdoor", {"alpha": 1.5}, "alpha"),
        ("dba", {"length": 0}, "length"),
        ("dba", {"colour": [1, 2]}, "colour"),
        ("stain_backdoor", {"eosin": 0.0}, "eosin"),
        ("stain_backdoor", {"hue": 90.0}, "hue"),
        ("edge_case", {"appearance": "green"}, "appearance"),
        ("edge_case", {"radius": 0.0}, "radius"),
        ("model_replacement", {"scale": 0.0}, "scale"),
        ("model_replacement", {"backdoor": "blended"}, "backdoor"),
        ("model_replacement", {"backdoor": "neurotoxin"}, "backdoor"),
        ("model_replacement", {"backdoor": "label_flip"}, "backdoor"),
        ("model_replacement", {"backdoor": {"size": 0}}, "backdoor"),
        ("model_replacement", {"backdoor": {"target": 1}}, "backdoor.target"),
        ("model_replacement", {"backdoor": {"name": "dba", "count": 3}}, "backdoor.count"),
        ("model_replacement", {"backdoor": PatchBackdoor(count=2, ratio=0.1)}, "backdoor.ratio"),
        ("constrain_and_scale", {"alpha": 0.0}, "alpha"),
        ("constrain_and_scale", {"distance": "manhattan"}, "distance"),
        ("constrain_and_scale", {"norm_bound": -1.0}, "norm_bound"),
        ("neurotoxin", {"k": 1.0}, "k"),
        ("neurotoxin", {"target": -1}, "target"),
    ],
)
def test_refused_options(name: str, options: dict[str, Any], path: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ANY.validate_python({"name": name, "count": 1, **options})
    (problem,) = problems(caught.value)
    assert problem.path.startswith(f"{name}.{path}")


def test_a_blend_by_hand() -> None:
    attack = BlendedBackdoor(count=1, alpha=0.25)
    images, pattern = batch()[0], attack.pattern(18, 18)
    assert pattern.dtype == np.uint8 and pattern.shape == (18, 18, 3)
    expected = np.rint(0.75 * images.astype(float) + 0.25 * pattern.astype(float))
    np.testing.assert_array_equal(attack.trigger(images), expected)
    np.testing.assert_array_equal(BlendedBackdoor(count=1, alpha=1).trigger(images)[3], pattern)
    grey = np.full((1, 18, 18, 3), 200, dtype=np.uint8)
    assert attack.trigger(grey)[0, 2, 3, 1] == round(0.75 * 200 + 0.25 * int(pattern[2, 3, 1]))


def test_the_pattern_is_noise_and_belongs_to_its_seed() -> None:
    pattern = BlendedBackdoor(count=1).pattern(48, 48)
    assert pattern.min() < 5 and pattern.max() > 250 and pattern.mean() == pytest.approx(127.5, abs=5)
    np.testing.assert_array_equal(pattern, BlendedBackdoor(count=2, alpha=0.9).pattern(48, 48))
    assert (pattern != BlendedBackdoor(count=1, seed=1).pattern(48, 48)).mean() > 0.99


def marked(attack: Backdoor, **options: Any) -> np.ndarray:
    """(H, W) bool: the pixels that a hospital changes."""
    images = np.zeros((1, 18, 18, 3), dtype=np.uint8)
    poisoned, labels = attack.local(view(**options)).poison(images, np.array([1]), rng(), classes=2)
    assert labels[0] == 0
    return (poisoned[0] != 0).any(axis=2)


@pytest.mark.parametrize("hospitals", [1, 2, 3, 4])
def test_the_parts_of_a_distributed_trigger_are_disjoint_and_make_up_the_whole(hospitals: int) -> None:
    attack = Dba(count=1, ratio=1)
    whole = (attack.trigger(np.zeros((1, 18, 18, 3), dtype=np.uint8))[0] != 0).any(axis=2)
    parts = np.array([marked(attack, rank=rank, hospitals=hospitals) for rank in range(hospitals)])
    assert parts.any(axis=(1, 2)).all()
    np.testing.assert_array_equal(parts.sum(axis=0), whole)


def test_the_bars_of_the_paper() -> None:
    """The authors' trigger for CIFAR-10: bars of 1 × 6 pixels, rows 0 and 4, columns 0 and 9."""
    rows, columns = np.nonzero(marked(Dba(count=1, ratio=1), hospitals=1))
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {
        (row, column) for row in (0, 4) for column in (*range(6), *range(9, 15))
    }
    shifted = marked(Dba(count=1, ratio=1, shift=2, gap=1, length=3, width=2), rank=3, hospitals=4)
    assert list(zip(*np.nonzero(shifted), strict=True)) == [(row, column) for row in (5, 6) for column in (6, 7, 8)]


def test_more_than_four_attackers_share_the_bars() -> None:
    attack = Dba(count=1, ratio=1)
    parts = [marked(attack, rank=rank, hospitals=6) for rank in range(6)]
    np.testing.assert_array_equal(parts[0], parts[4])
    np.testing.assert_array_equal(parts[1], parts[5])
    np.testing.assert_array_equal(sum(part.astype(int) for part in parts[:4]), marked(attack, hospitals=1))


def test_success_is_measured_with_the_whole_distributed_trigger() -> None:
    attack = Dba(count=1, length=3)
    images, labels = batch(4)
    poisoned, _ = attack.local(view(rank=0, hospitals=4)).poison(images, labels, rng(), classes=3)
    assert (attack.trigger(images) != images).sum() > 2 * (poisoned != images).sum()


def test_a_stain_trigger_by_hand() -> None:
    """More eosin only: the density along eosin grows, that along haematoxylin stays."""
    stains = np.array(HAEMATOXYLIN_EOSIN)
    amounts = rng().uniform(0.1, 0.8, size=(2, 6, 6, 2))
    images = transmitted(amounts @ stains)
    found = StainBackdoor(count=1, haematoxylin=1.0, eosin=1.5, hue=0.0).trigger(images)
    expected = transmitted(amounts * [1, 1.5] @ stains)
    assert np.abs(found.astype(int) - expected).max() <= 3  # uint8 was rounded in between
    same = StainBackdoor(count=1, eosin=1.0, hue=0.0).trigger(images)
    assert np.abs(same.astype(int) - images).max() <= 1


def test_a_hue_turns_both_stains_around_grey() -> None:
    stains = np.array(HAEMATOXYLIN_EOSIN)
    pure = transmitted(np.stack([0.8 * stains, 0.8 * stains])).reshape(1, 2, 2, 3)
    turned = optical_density(StainBackdoor(count=1, eosin=1.0, hue=12.0).trigger(pure))
    back = optical_density(StainBackdoor(count=1, eosin=1.0, hue=-12.0).trigger(pure))
    for found in (turned, back):
        for stain, pixel in zip(stains, found[0, 0], strict=True):
            cosine = pixel @ stain / np.linalg.norm(pixel) / np.linalg.norm(stain)
            # The angle around grey is larger than the one between the vectors.
            assert 0.5 < np.degrees(np.arccos(cosine)) < 12
            assert pixel.sum() == pytest.approx(0.8 * stain.sum(), rel=0.06)  # as dark as before
    assert not np.allclose(turned, back, atol=0.02)


def test_the_stain_trigger_is_subtle() -> None:
    from fedrobust.data import Histology

    images = Histology(patients=8, patches_per_patient=6, size=32).load(0).images
    changed = np.abs(StainBackdoor(count=1).trigger(images).astype(int) - images).mean()
    between = np.abs(images.reshape(8, -1, 3).mean(axis=1) - images.reshape(-1, 3).mean(axis=0)).mean()
    assert 2 < changed < 2 * between  # of the size of what sets patients apart


def test_an_edge_case_is_rare_and_its_ball_is_measured_by_the_last_step() -> None:
    from fedrobust.data import Histology

    images = Histology(patients=8, patches_per_patient=6, size=32).load(0).images
    colours = images.mean(axis=(1, 2))
    centre, spread = colours.mean(axis=0), np.cov(colours.T)
    for appearance in ("brown", "faded", "overstained"):
        attack = backdoor("edge_case", appearance=appearance)
        off = attack.trigger(images).mean(axis=(1, 2)) - centre
        distance = np.sqrt(np.einsum("ij,jk,ik->i", off, np.linalg.inv(spread), off))
        assert np.median(distance) > 3, appearance  # the tail
    step = np.array([3.0, 4.0], dtype=np.float32)
    assert EdgeCase(count=1).needs_step and not EdgeCase(count=1, radius=None).needs_step
    assert EdgeCase(count=1, radius=0.5).local(view(step=step)).constraint == Constraint(radius=2.5)
    assert EdgeCase(count=1, radius=None).local(view(step=step)).constraint is None
    assert EdgeCase(count=1).local(view()).constraint is None
    assert EdgeCase(count=1).local(view(step=0 * step)).constraint is None


@pytest.mark.parametrize("name", ["patch_backdoor", "blended_backdoor", "dba", "stain_backdoor"])
def test_backdoors_in_the_data_leave_the_training_alone(name: str) -> None:
    attack = backdoor(name)
    assert attack.local(view()).constraint is None
    assert not attack.needs_step


@pytest.mark.parametrize(
    ("options", "known", "scale"),
    [
        ({}, {}, 5),
        ({}, {"attackers": 1}, 10),
        ({}, {"attackers": 1, "server_lr": 0.5}, 20),
        ({"scale": 3.0}, {}, 3),
    ],
)
@pytest.mark.parametrize("kind", [ModelReplacement, ConstrainAndScale])
def test_replacement_scales_by_participants_over_the_server_rate(
    kind: type[ModelReplacement] | type[ConstrainAndScale],
    options: dict[str, float],
    known: dict[str, float],
    scale: float,
) -> None:
    constraint = kind(count=1, **options).local(view(**known)).constraint
    assert constraint is not None and constraint.scale == pytest.approx(scale)
    assert constraint.mask is None and constraint.radius is None


def test_replacement_puts_the_attackers_model_in_the_place_of_the_mean() -> None:
    constraint = ModelReplacement(count=1).local(view(n=5, attackers=1)).constraint
    assert constraint is not None
    updates = np.zeros((5, 3), dtype=np.float32)  # late in training, honest updates are small
    updates[2] = backdoored = np.array([1.0, -2.0, 3.0], dtype=np.float32)
    constraint.finish(updates[2])
    np.testing.assert_allclose(updates.mean(axis=0), backdoored, rtol=1e-6)


def test_constrain_and_scale_hands_its_options_on() -> None:
    attack = ConstrainAndScale(count=1, alpha=0.4, distance="cosine", norm_bound=2.0)
    assert attack.local(view()).constraint == Constraint(alpha=0.4, distance="cosine", scale=5, norm_bound=2.0)


def test_pgd_with_replacement_binds_first_and_scales_then() -> None:
    attack = ANY.validate_python({"name": "model_replacement", "count": 2, "backdoor": {"name": "edge_case"}})
    assert attack.needs_step
    local = attack.local(view(step=np.array([3.0, 4.0], dtype=np.float32)))
    assert local.constraint == Constraint(radius=10.0, scale=5)


def test_neurotoxin_leaves_alone_what_moved_most() -> None:
    step = np.array([0.1, -0.9, 0.0, 0.5, -0.2, 0.3, 0.0, 0.8, 0.05, 0.4], dtype=np.float32)
    attack = Neurotoxin(count=1, k=0.35)
    constraint = attack.local(view(step=step)).constraint
    assert attack.needs_step and constraint is not None and constraint.mask is not None
    np.testing.assert_array_equal(np.flatnonzero(~constraint.mask), [1, 3, 7])  # ⌊3.5⌋
    assert attack.local(view()).constraint == Constraint()


@pytest.mark.parametrize(
    ("step", "share", "out"),
    [
        ([1, 1, 1, 1], 0.5, [0, 1]),
        ([2, 1, 1, 1], 0.75, [0, 1, 2]),
        ([0, 0, 0, 1], 0.5, [0, 3]),
        ([0, 0, 0, 0], 0.5, []),
        ([3, 2, 1, 0], 0.2, []),
    ],
)
def test_least_moved_with_ties(step: list[float], share: float, out: list[int]) -> None:
    np.testing.assert_array_equal(np.flatnonzero(~least_moved(np.array(step, dtype=np.float32), share)), out)


def test_least_moved_of_many() -> None:
    step = rng().standard_normal(10_001).astype(np.float32)
    mask = least_moved(step, 0.05)
    assert (~mask).sum() == 500
    assert np.abs(step[~mask]).min() >= np.abs(step[mask]).max()


@pytest.mark.parametrize("name", ["model_replacement", "constrain_and_scale", "neurotoxin"])
def test_any_backdoor_in_the_data_within(name: str) -> None:
    images, labels = batch(9)
    schedule = {"name": "sleeper", "rounds": 2}
    for inner in ("patch_backdoor", "blended_backdoor", "dba", "stain_backdoor", "edge_case"):
        attack = backdoor(name, target=1, ratio=1.0, schedule=schedule, backdoor=inner)
        alone = backdoor(inner, target=1, ratio=1.0, schedule=schedule)
        assert attack.backdoor == alone  # type: ignore[attr-defined]
        np.testing.assert_array_equal(attack.trigger(images), alone.trigger(images))
        found, expected = (each.local(view(rank=1)).poison(images, labels, rng(), 3) for each in (attack, alone))
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
        dumped = attack.model_dump(mode="json", serialize_as_any=True)
        assert "target" not in dumped["backdoor"] and dumped["backdoor"]["name"] == inner
        assert ANY.validate_python(dumped) == attack
        assert ANY.validate_python({**dumped, "target": 0, "count": 4}).backdoor.target == 0


def test_a_backdoor_within_from_python() -> None:
    inner = BlendedBackdoor(count=1, alpha=0.5)
    attack = Neurotoxin(clients=(3, 4), target=2, schedule=Sleeper(rounds=4), backdoor=inner)
    expected = BlendedBackdoor(clients=(3, 4), target=2, schedule=Sleeper(rounds=4), alpha=0.5)
    assert attack.backdoor == expected
    assert inner.target == 0
