"""From a source to hospitals: the parts put together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import exchange

from fedrobust.data import Dirichlet, Histology, NoNormalisation, Reinhard, Split, StainShift
from fedrobust.data.hospitals import Hospitals, divide


def made(cache: Path, clients: int = 4, alpha: float = 1.0) -> Hospitals:
    source = Histology(patients=12, patches_per_patient=20, size=24)
    return divide(
        source, Split(), Dirichlet(alpha=alpha, minimum=1), StainShift(strength=0.5), Reinhard(), clients, 1, cache
    )


@pytest.mark.slow
@pytest.mark.parametrize(("clients", "alpha"), [(6, 1.0), (4, 0.2)])
def test_a_cache_of_other_hospitals_is_not_used(tmp_path: Path, clients: int, alpha: float) -> None:
    made(tmp_path / "warm")
    after = made(tmp_path / "warm", clients, alpha)
    fresh = made(tmp_path / "fresh", clients, alpha)
    assert after.images.tobytes() == fresh.images.tobytes()


def test_every_hospital_has_what_the_counts_say(tmp_path: Path) -> None:
    hospitals = made(tmp_path)
    counts = hospitals.label_counts()
    assert counts.shape == (4, 2)
    assert counts.sum() == len(hospitals.indices["train"])
    for client in range(4):
        own = hospitals.training(client)
        assert counts[client].tolist() == np.bincount(hospitals.labels[own], minlength=2).tolist()
        assert hospitals.groups is not None
        assert hospitals.patient_counts()[client] == len(set(hospitals.groups[own]))  # type: ignore[index]
    test = hospitals.indices["test"]
    assert hospitals.tested_patients() == len(test) / 20  # each has twenty patches
    assert replace(hospitals, groups=None).tested_patients() is None


def test_the_digest_is_of_what_training_reads_after_the_cache(tmp_path: Path) -> None:
    fresh, cached = made(tmp_path), made(tmp_path)
    assert fresh.digest == cached.digest
    (entry,) = tmp_path.glob("stain-*")
    exchange(entry, lambda kept: 255 - kept)
    inverted = made(tmp_path)
    assert (inverted.images == 255 - fresh.images).all()  # nobody noticed, but
    assert inverted.digest != fresh.digest


def test_the_digest_of_patches_as_they_come_is_theirs(tmp_path: Path) -> None:
    source = Histology(patients=12, patches_per_patient=20, size=24)
    plain, stained, other = (
        divide(
            source, Split(), Dirichlet(minimum=1), StainShift(strength=strength), NoNormalisation(), 4, seed, tmp_path
        )
        for strength, seed in ((0.0, 1), (0.5, 1), (0.5, 2))
    )
    assert plain.digest == source.load(1).digest
    assert len({plain.digest, stained.digest, other.digest}) == 3
