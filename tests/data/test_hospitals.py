"""From a source to hospitals: the parts put together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedrobust.data import Dirichlet, Histology, Reinhard, Split, StainShift
from fedrobust.data.hospitals import Hospitals, divide


def made(cache: Path, clients: int = 4, alpha: float = 1.0) -> Hospitals:
    source = Histology(patients=12, patches_per_patient=20, size=24)
    return divide(
        source, Split(), Dirichlet(alpha=alpha, minimum=1), StainShift(strength=0.5), Reinhard(), clients, 1, cache
    )


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
