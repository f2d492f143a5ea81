"""Generated histology: it must look the same every time, and differ between classes by architecture, not by colour."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from fedrobust.data.cells import Nuclei, push_apart, stamp
from fedrobust.data.histology import TISSUES, Histology
from fedrobust.data.patches import Patches
from fedrobust.data.stain import optical_density
from fedrobust.errors import ExperimentError

SMALL = {"patients": 3, "patches_per_patient": 4, "size": 24}


@pytest.fixture(scope="module")
def patches() -> Patches:
    """1,200 patches of 40 patients at the default difficulty."""
    return Histology(patients=40, patches_per_patient=30).load(seed=5)


def held_out(patches: Patches, seed: int) -> np.ndarray:
    """(N,) bool: the patches of a random quarter of the patients."""
    patients = np.unique(patches.groups)
    chosen = np.random.default_rng(seed).permutation(patients)[: len(patients) // 4]
    return np.isin(patches.groups, chosen)


def linear_accuracy(features: np.ndarray, patches: Patches, seeds: int = 3) -> float:
    """Balanced accuracy of logistic regression on the features (N, F) of unseen patients, mean over splits."""
    scores = []
    for seed in range(seeds):
        test = held_out(patches, seed)
        scale = StandardScaler().fit(features[~test])
        model = LogisticRegression(C=100, class_weight="balanced", max_iter=2000)
        model.fit(scale.transform(features[~test]), patches.labels[~test])
        scores.append(balanced_accuracy_score(patches.labels[test], model.predict(scale.transform(features[test]))))
    return float(np.mean(scores))


def darkness(patches: Patches) -> np.ndarray:
    """(N, S, S): optical density in red, where nuclei are dark and eosin hardly absorbs."""
    return optical_density(patches.images)[..., 0]


def scales(patches: Patches) -> np.ndarray:
    """(N, 5): how the power of the nuclei's texture is spread over spatial frequencies, whatever its amount."""
    dark = darkness(patches)
    power = np.abs(np.fft.fft2(dark - dark.mean((1, 2), keepdims=True))) ** 2
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(dark.shape[1])] * 2))
    edges = [0.01, 0.05, 0.09, 0.14, 0.2, 0.3]
    bands = [power[:, (frequency >= a) & (frequency < b)].sum(1) for a, b in itertools.pairwise(edges)]
    return np.log(np.stack(bands, 1) / np.sum(bands, 0)[:, None])


def test_layout() -> None:
    patches = Histology(patients=6, patches_per_patient=5, size=24, classes=4, centres=4).load(seed=1)
    assert patches.images.shape == (30, 24, 24, 3)
    assert patches.images.dtype == np.uint8
    assert patches.label_names == ("benign", "malignant", "stroma", "lymphocytes")
    assert patches.groups is not None
    assert patches.centres is not None
    assert [int((patches.groups == patient).sum()) for patient in np.unique(patches.groups)] == [5] * 6
    assert len(np.unique(patches.centres)) == 4
    for patient in np.unique(patches.groups):
        assert len(set(patches.centres[patches.groups == patient])) == 1


def test_same_seed_same_bytes_in_another_process() -> None:
    here = Histology(**SMALL).load(seed=7).digest
    code = f"from fedrobust.data.histology import Histology; print(Histology(**{SMALL}).load(7).digest)"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert here == there
    assert here != Histology(**SMALL).load(seed=8).digest


def test_a_patient_does_not_depend_on_the_number_of_patients() -> None:
    few, many = Histology(**SMALL).load(seed=2), Histology(**{**SMALL, "patients": 5}).load(seed=2)
    assert np.array_equal(few.images, many.images[: len(few)])
    assert np.array_equal(few.labels, many.labels[: len(few)])


@pytest.mark.slow
def test_no_two_patches_are_equal(patches: Patches) -> None:
    assert len({image.tobytes() for image in patches.images}) == len(patches)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 4])
def test_classes_are_balanced_and_patients_mixed(classes: int) -> None:
    patches = Histology(patients=60, patches_per_patient=20, size=16, classes=classes).load(seed=3)
    shares = np.bincount(patches.labels, minlength=classes) / len(patches)
    assert np.abs(shares - 1 / classes).max() < 0.25 / classes
    mixed = [len(set(patches.labels[patches.groups == patient])) > 1 for patient in np.unique(patches.groups)]
    assert np.mean(mixed) > 0.9


def test_mean_colour_does_not_tell_the_class(patches: Patches) -> None:
    assert linear_accuracy(patches.images.mean((1, 2)), patches) <= 0.62


def test_amount_of_each_stain_does_not_tell_the_class(patches: Patches) -> None:
    density = optical_density(patches.images).mean((1, 2))
    benign, malignant = (density[patches.labels == label] for label in (0, 1))
    assert np.abs(benign.mean(0) - malignant.mean(0)).max() < 0.25 * density.std(0).min()


def test_texture_tells_the_class(patches: Patches) -> None:
    assert linear_accuracy(scales(patches), patches) >= 0.80


@pytest.mark.slow
def test_difficulty_drifts_towards_the_other_class() -> None:
    easy, hard = (
        Histology(patients=24, patches_per_patient=25, difficulty=difficulty).load(seed=4) for difficulty in (0.0, 0.45)
    )
    assert linear_accuracy(scales(easy), easy) > linear_accuracy(scales(hard), hard) + 0.1


@pytest.mark.long
def test_four_classes_differ_by_texture_not_colour() -> None:
    patches = Histology(patients=40, patches_per_patient=25, classes=4, size=48).load(seed=6)
    assert linear_accuracy(patches.images.mean((1, 2)), patches) <= 0.36  # chance: 0.25
    assert linear_accuracy(scales(patches), patches) >= 0.60


def test_nuclei_are_blue_fibres_are_pink_and_the_slide_is_white(patches: Patches) -> None:
    red, green, blue = np.moveaxis(patches.images.reshape(-1, 3)[::7].astype(float), 1, 0)
    light = red + green + blue
    dark, pale = light < np.quantile(light, 0.03), light > np.quantile(light, 0.995)
    pink = (red > np.quantile(red, 0.5)) & ~pale
    assert blue[dark].mean() > red[dark].mean() > green[dark].mean()
    assert red[pink].mean() > blue[pink].mean() > green[pink].mean() + 15
    assert np.ptp([channel[pale].mean() for channel in (red, green, blue)]) < 15


def test_centres_stain_and_scan_differently() -> None:
    patches = Histology(patients=20, patches_per_patient=20, centres=2).load(seed=9)
    assert patches.centres is not None
    colour = patches.images.mean((1, 2))
    means = [colour[patches.centres == centre].mean(0) for centre in np.unique(patches.centres)]
    error = colour.std(0) / np.sqrt(len(colour) / 2)
    assert (np.abs(means[0] - means[1]) > 4 * error).any()


def test_the_field_of_view_does_not_depend_on_the_size() -> None:
    coarse, fine = (Histology(patients=2, patches_per_patient=8, size=size).load(seed=1) for size in (24, 48))
    shrunk = fine.images.reshape(16, 24, 2, 24, 2, 3).mean((2, 4))
    agreement = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(coarse.images.astype(float), shrunk, strict=True)
    ]
    assert np.median(agreement) > 0.8


@pytest.mark.parametrize(
    "wrong", [{"classes": 1}, {"classes": len(TISSUES) + 1}, {"size": 8}, {"difficulty": 0.5}, {"patients": 0}]
)
def test_options_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ExperimentError):
        Histology(**wrong)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_pushed_discs_overlap_less_and_unused_ones_stay(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    place, radius = random.uniform(0, 6, (count, 2)), random.uniform(0.5, 1.5, count)
    used = np.arange(count) > 0

    def overlap(where: np.ndarray) -> float:
        where, size = where[1:], radius[1:]
        distance = np.hypot(*(where[:, None] - where[None]).T)
        gap = (size[:, None] + size[None] - distance)[~np.eye(len(size), dtype=bool)]
        return float(np.maximum(gap, 0).sum())

    moved = push_apart(place, radius, used, steps=20)
    assert overlap(moved) <= overlap(place) + 1e-4
    assert np.allclose(moved[0], place[0])


def test_a_stamped_nucleus_covers_its_ellipse_and_stays_in_its_patch() -> None:
    one = {"long": 4.0, "short": 2.0, "angle": 0.0, "dark": 1.0, "vesicular": 0.0, "bend": 0.0}
    nuclei = Nuclei(
        np.array([1, 1]), np.array([24.0, 1.0]), np.array([24.0, 47.0]), *(np.full(2, v) for v in one.values())
    )
    absorbed = stamp(nuclei, patches=3, pixels=96)
    assert absorbed[[0, 2]].max() == 0
    inside = absorbed[1] > absorbed[1].max() / 2
    assert inside[40:56, 36:60].sum() / 4 == pytest.approx(np.pi * 4 * 2, rel=0.15)
    assert not inside[40:56, :36].any()


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_small_cnn_learns_it(seed: int) -> None:
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    patches = Histology().load(seed)
    test = held_out(patches, seed)
    blocks: list[nn.Module] = []
    for before, after in [(3, 16), (16, 32), (32, 64)]:
        blocks += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))
    pixels = torch.from_numpy(patches.images.copy()).permute(0, 3, 1, 2).float().div(255)
    pixels = (pixels - pixels.mean((0, 2, 3), keepdim=True)) / pixels.std((0, 2, 3), keepdim=True)
    labels = torch.from_numpy(patches.labels.copy())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=1500)
    random = np.random.default_rng(seed)
    for _ in range(1500):
        batch = random.choice(np.flatnonzero(~test), 32)
        images = torch.rot90(pixels[batch], int(random.integers(4)), (2, 3))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels[batch]).backward()
        optimizer.step()
        decay.step()
    with torch.no_grad():
        predicted = network(pixels[test]).argmax(1).numpy()
    # 0.93 to 0.94 with these 23,938 parameters when this was written.
    assert 0.85 <= balanced_accuracy_score(patches.labels[test], predicted) <= 0.97
