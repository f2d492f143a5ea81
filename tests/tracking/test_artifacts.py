"""Files and models of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tracked import ROUNDS, journal, sync, write

from fedrobust import tracking
from fedrobust.learning import models
from fedrobust.records import Checkpoint, write_checkpoint
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
    length = (folder / "journal.jsonl").stat().st_size
    write_checkpoint(folder, Checkpoint(ROUNDS, {"weights": np.ones(3, dtype=np.float32)}, offset=length))
    (tmp_path / "another's").write_bytes(b"of nobody's business")
    (folder / "link.txt").symlink_to(tmp_path / "another's")
    (folder / "figures" / "linked").symlink_to(tmp_path)
    tracking.save_model(module, 8, folder / "model")
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


def takes_any_batch(model: models.Model, size: int, folder: Path) -> None:
    """Save a network and load it both ways: each number of patches gives what the network itself gives."""
    import mlflow
    import torch

    network = model.build(3, size, 0).eval()
    tracking.save_model(network, size, folder)
    graph, function = mlflow.pytorch.load_model(str(folder)), mlflow.pyfunc.load_model(str(folder))
    (given,), (returned,) = (
        each.inputs for each in (function.metadata.signature.inputs, function.metadata.signature.outputs)
    )
    assert (given.shape, given.type, returned.shape) == ((-1, 3, size, size), np.dtype("float32"), (-1, 3))
    for count in (1, 2, 3, 7):
        images = np.random.default_rng(count).normal(size=(count, 3, size, size)).astype(np.float32)
        with torch.no_grad():
            expected = network(torch.from_numpy(images)).numpy()
            np.testing.assert_allclose(graph(torch.from_numpy(images)).numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(function.predict(images), expected, atol=1e-5)


@pytest.mark.parametrize(
    "model", [models.Cnn(channels=(4, 8)), models.Cnn(channels=(4,), hidden=4, norm="none", pool="flatten")]
)
def test_a_logged_model_takes_any_number_of_patches(model: models.Model, tmp_path: Path) -> None:
    takes_any_batch(model, 8, tmp_path / "model")


@pytest.mark.long
@pytest.mark.parametrize("batch_norm", ["group", "keep"])
@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "vit_tiny_patch16_224", "convnext_atto"])
def test_a_logged_network_of_timm_takes_any_number_of_patches(name: str, batch_norm: str, tmp_path: Path) -> None:
    model = models.Timm.model_validate({"model": name, "batch_norm": batch_norm})
    takes_any_batch(model, 64, tmp_path / "model")


def test_the_example_of_a_logged_model_is_nobodys_patch(tmp_path: Path) -> None:
    tracking.save_model(models.Cnn(channels=(4,)).build(2, 4, 0), 4, tmp_path / "model")
    examples = [json.loads(path.read_text()) for path in (tmp_path / "model").glob("*example*.json")]
    arrays = [np.array(each["inputs"] if isinstance(each, dict) else each) for each in examples]
    assert arrays and all(each.shape == (2, 3, 4, 4) and not each.any() for each in arrays)


@pytest.mark.parametrize("kind", ["a batch of two only", "asks its figures"])
def test_a_network_that_cannot_be_traced_for_any_batch_ends_nothing(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import torch
    from torch import nn

    class Odd(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if kind == "a batch of two only":
                return torch.cat([image.reshape(1, -1)[:, :2] for image in images])
            return images[:, 0, 0, :2] if images.sum() > 1 else images[:, 0, 1, :2]

    tracking.save_model(Odd(), 4, tmp_path / "run" / "model")
    (message,) = (each.getMessage() for each in caplog.records if each.name.startswith("fedrobust"))
    assert message.startswith(f"no model is kept, only its weights in {tmp_path}/run/checkpoint.npz: ")
    assert not (tmp_path / "run" / "model").exists()
