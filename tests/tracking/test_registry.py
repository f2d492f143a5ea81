"""The final model under a name of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tracked import journal, sync, write

from fedrobust import tracking
from fedrobust.records import RunStart
from fedrobust.tracking import Tracker


def test_every_run_is_a_version_once_and_latest_is_the_last(tmp_path: Path) -> None:
    import mlflow
    import torch
    from torch import nn

    client, images = mlflow.MlflowClient(tracking.tracking_uri()), np.ones((3, 3, 4, 4), dtype=np.float32)
    for number in (1, 2):
        torch.manual_seed(number)
        module = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
        tracker = Tracker.open("registered", {}, {"attack": "ipm", "defence": f"rule {number}"}, f"run {number}")
        folder = tmp_path / tracker.run_id
        write(folder, journal())
        tracking.save_model(module, 4, folder / "model")
        tracker.upload(folder, register="tumour model")
        tracker.upload(folder, register="tumour model")
        assert tracker.close()
        found = client.get_model_version_by_alias("tumour model", "latest")
        assert int(found.version) == number and found.run_id == tracker.run_id
        assert found.tags == {"run": f"run {number}", "attack": "ipm", "defence": f"rule {number}"}
        loaded = mlflow.pyfunc.load_model("models:/tumour model@latest")
        np.testing.assert_array_equal(loaded.predict(images), module(torch.from_numpy(images)).detach().numpy())
    assert len(client.search_model_versions("name = 'tumour model'")) == 2


def test_sync_registers_what_the_run_could_not(tmp_path: Path) -> None:
    import mlflow
    from torch import nn

    tracker = Tracker.open("late", {}, {})
    assert tracker.close()
    start, *records = journal()
    fields = json.loads(start.line())
    fields["experiment"].setdefault("tracking", {})["register"] = "late"
    write(tmp_path / tracker.run_id, [RunStart.of(fields), *records])
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    tracking.save_model(module, 4, tmp_path / tracker.run_id / "model")
    for _ in range(2):
        sync(tmp_path / tracker.run_id)
    (version,) = mlflow.MlflowClient(tracking.tracking_uri()).search_model_versions("name = 'late'")
    assert version.run_id == tracker.run_id


def test_a_run_without_a_model_registers_nothing(tmp_path: Path) -> None:
    import mlflow

    tracker = Tracker.open("bare", {}, {})
    write(tmp_path / tracker.run_id, journal())
    tracker.upload(tmp_path / tracker.run_id, register="bare")
    assert tracker.close()
    with pytest.raises(mlflow.MlflowException, match="not found"):
        mlflow.MlflowClient(tracking.tracking_uri()).get_registered_model("bare")
