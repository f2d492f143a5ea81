from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from refused import refused
from torchvision.transforms.v2 import functional

from fedrobust.data.batches import MEAN, STD, batches, to_tensor
from fedrobust.data.stacks import IGNORED, HospitalBatches, StackedPatches
from fedrobust.errors import DataError


@pytest.fixture
def patches() -> tuple[np.ndarray, np.ndarray]:
    """90 random patches whose label is their position; read-only, as they come out of the object store."""
    images = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(90)
    images.flags.writeable = labels.flags.writeable = False
    return images, labels


def run(patches, **changes):
    options = {"batch_size": 16, "steps": 6, "seed": 1, "round": 2, "client": 3, "augment": False} | changes
    indices = options.pop("indices", np.arange(10, 80))
    return list(batches(*patches, indices, **options))


def same(first, second) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


def test_to_tensor_is_the_usual_normalisation(patches):
    images, _ = patches
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = to_tensor(images)
    reference = torch.stack(
        [functional.to_dtype(functional.to_image(image.copy()), torch.float32, True) for image in images]
    )
    reference = functional.normalize(reference, list(MEAN), list(STD))
    assert tensor.dtype == torch.float32 and tensor.shape == (90, 3, 8, 8) and tensor.is_contiguous()
    torch.testing.assert_close(tensor, reference, rtol=1e-5, atol=1e-5)


def test_channels_last_changes_the_layout_only(patches):
    images, _ = patches
    last = to_tensor(images, channels_last=True)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, to_tensor(images))
    assert same(run(patches, channels_last=True, augment=True), run(patches, augment=True))


def test_to_tensor_never_writes_into_its_argument():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    before = images.copy()
    to_tensor(images).zero_()
    to_tensor(images[:, ::-1])
    assert np.array_equal(images, before)


def test_an_epoch_shows_every_patch_once_and_the_next_is_shuffled_anew(patches):
    stream = run(patches, steps=10)
    assert [len(labels) for _, labels in stream] == [16, 16, 16, 16, 6] * 2
    epochs = [torch.cat([labels for _, labels in stream[start : start + 5]]) for start in (0, 5)]
    assert all(sorted(epoch.tolist()) == list(range(10, 80)) for epoch in epochs)
    assert not torch.equal(*epochs)
    assert epochs[0].tolist() != list(range(10, 80))


def test_images_and_labels_stay_together(patches):
    for tensor, labels in run(patches):
        assert labels.dtype == torch.int64
        assert torch.equal(tensor, to_tensor(patches[0][labels.numpy()]))


def test_a_small_hospital_gives_all_it_has_in_each_batch(patches):
    for _, labels in run(patches, indices=np.array([5, 9, 2]), steps=4):
        assert sorted(labels.tolist()) == [2, 5, 9]


def test_the_same_place_gives_the_same_batches_and_another_place_others(patches):
    first = run(patches, augment=True)
    assert same(first, run(patches, augment=True))
    for change in ({"seed": 2}, {"round": 3}, {"client": 4}):
        other = run(patches, augment=True, **change)
        assert [labels.tolist() for _, labels in other] != [labels.tolist() for _, labels in first]
        # with one patch alone the order cannot differ, so this sees the flips and rotations
        lone = [run(patches, augment=True, indices=np.array([7]), steps=30, **place) for place in ({}, change)]
        assert not same(*lone)


def test_longer_streams_begin_like_shorter_ones(patches):
    assert same(run(patches, steps=9, augment=True)[:6], run(patches, augment=True))


def test_another_process_gives_the_same_bits(patches):
    code = (
        "import hashlib, numpy as np\n"
        "from fedrobust.data.batches import batches\n"
        "images = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 3), dtype=np.uint8)\n"
        "digest = hashlib.sha256()\n"
        "for x, y in batches(images, np.arange(90), np.arange(10, 80), batch_size=16, steps=6, seed=1, round=2,"
        " client=3, augment=True):\n"
        "    digest.update(x.numpy().tobytes() + y.numpy().tobytes())\n"
        "print(digest.hexdigest())\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    here = hashlib.sha256()
    for x, y in run(patches, augment=True):
        here.update(x.numpy().tobytes() + y.numpy().tobytes())
    assert there.stdout.strip() == here.hexdigest()


def test_augmentation_uses_all_eight_flips_and_rotations_and_keeps_the_order(patches):
    images, _ = patches
    seen = set()
    for (plain, labels), (turned, _) in zip(run(patches, steps=10), run(patches, steps=10, augment=True), strict=True):
        for one, other, label in zip(plain, turned, labels, strict=True):
            assert torch.equal(one, to_tensor(images[label : label + 1])[0])
            eight = [torch.rot90(base, k, (1, 2)) for base in (one, one.flip(2)) for k in range(4)]
            found = [number for number, version in enumerate(eight) if torch.equal(version, other)]
            assert len(found) == 1
            seen.add(found[0])
    assert seen == set(range(8))


def test_poison_comes_after_the_augmentation_and_leaves_the_rest_alone(patches):
    images, labels = patches
    before = images.copy()

    def trigger(batch, label, rng):
        assert batch.dtype == np.uint8 and batch.shape[1:] == (8, 8, 3) and label.dtype == np.int64
        batch = batch.copy()
        batch[: len(batch) // 2, :2, :2] = 255
        rng.random(1000)
        return batch, np.where(np.arange(len(label)) < len(label) // 2, 0, label)

    clean = run(patches, augment=True)
    white = to_tensor(np.full((1, 2, 2, 3), 255, np.uint8))[0]
    for (x, y), (clean_x, clean_y) in zip(run(patches, augment=True, poison=trigger), clean, strict=True):
        half = len(y) // 2
        assert (y[:half] == 0).all() and torch.equal(y[half:], clean_y[half:])
        assert all(torch.equal(image[:, :2, :2], white) for image in x[:half])
        assert torch.equal(x[half:], clean_x[half:])
    assert np.array_equal(images, before) and np.array_equal(labels, np.arange(90))


def test_poison_draws_come_from_the_place_too(patches):
    def noise(batch, label, rng):
        return rng.integers(0, 256, batch.shape, dtype=np.uint8), label

    assert same(run(patches, poison=noise), run(patches, poison=noise))
    lone = {"poison": noise, "indices": np.array([7])}
    for change in ({"seed": 2}, {"round": 3}, {"client": 4}):
        assert not same(run(patches, **lone), run(patches, **lone | change))


def test_a_hospital_without_patches_is_an_error(patches):
    with refused(DataError, says="hospital 3"):
        run(patches, indices=np.array([], np.int64))


def test_a_stack_has_the_batches_of_each_hospital_to_the_bit(patches):
    """A poisoned one too, and hospitals that have fewer patches or steps than others."""
    images, labels = (each.copy() for each in patches)
    images.flags.writeable = False
    options = {"batch_size": 8, "seed": 3, "round": 2, "augment": True}

    def poison(batch, label, random):
        return 255 - batch, (label + random.integers(1, 3, size=len(label))) % 3

    shares = [
        HospitalBatches(client=4, indices=np.arange(20), steps=5),
        HospitalBatches(client=1, indices=np.arange(30, 36), steps=3, poison=poison),
        HospitalBatches(client=7, indices=np.arange(40, 53), steps=2),
    ]
    stacks = list(StackedPatches(images, labels).stacks(shares, **options))
    assert [len(stack) for stack, _ in stacks] == [3, 3, 2, 1, 1]
    assert [stack.shape[1] for stack, _ in stacks] == [8, 8, 6, 8, 8]
    for row, share in enumerate(shares):
        own = batches(
            images, labels, share.indices, steps=share.steps, client=share.client, poison=share.poison, **options
        )
        for step, (expected, marks) in enumerate(own):
            stack, found = stacks[step]
            assert torch.equal(stack[row, : len(expected)], expected)
            assert torch.equal(found[row, : len(expected)], marks)
            assert (found[row, len(expected) :] == IGNORED).all()
