"""Files and models of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tracked import journal, sync, write

from fedrobust import tracking
from fedrobust.tracking import Tracker
from fedrobust.tracking.artifacts import stored_files


def test_artifacts_and_model_are_uploaded_once(tmp_path: Path) -> None:
    import mlflow
    import torch
    from torch import nn

    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    tracker = Tracker.open("artifacts", {"seed": "1"}, {})
    folder = tmp_path / tracker.run_id
    write(folder, journal())
    (folder / "figures").mkdir()
    (folder / "figures" / "curves.png").write_bytes(b"png")
    (folder / "checkpoint.npz").write_bytes(b"large")
    (tmp_path / "another's").write_bytes(b"of nobody's business")
    (folder / "link.txt").symlink_to(tmp_path / "another's")
    (folder / "figures" / "linked").symlink_to(tmp_path)
    tracking.save_model(module, np.zeros((2, 3, 8, 8), dtype=np.float32), folder / "model")
    tracker.upload(folder)
    assert tracker.close()
    (folder / "report.html").write_text("<p>later</p>")
    (folder / "figures" / "curves.png").write_bytes(b"another")
    sync(folder)

    uri = tracking.tracking_uri()
    client = mlflow.MlflowClient(uri)
    stored = dict(stored_files(client, tracker.run_id))
    assert set(stored) == {"journal.jsonl", "report.html", "figures/curves.png"}
    assert stored["figures/curves.png"] == len("another")
    run = client.get_run(tracker.run_id)
    assert len(run.outputs.model_outputs) == 1
    logged = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert str(logged.status) == "READY" and logged.source_run_id == tracker.run_id and logged.params == {"seed": "1"}
    address = f"runs:/{tracker.run_id}/model"
    described = mlflow.models.get_model_info(address)
    assert described.signature.inputs.inputs[0].shape == (-1, 3, 8, 8) and described.run_id == tracker.run_id
    images = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    loaded = mlflow.pytorch.load_model(address)
    with torch.no_grad():
        assert torch.equal(loaded(torch.from_numpy(images)), module(torch.from_numpy(images)))
        found = mlflow.pyfunc.load_model(f"models:/{logged.model_id}").predict(images)
        np.testing.assert_array_equal(found, module(torch.from_numpy(images)).numpy())
