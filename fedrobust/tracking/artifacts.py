"""What a run leaves besides its figures: the files of its folder, and its model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fedrobust.tracking.store import import_mlflow

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

NOT_ARTIFACTS = ("checkpoint.npz", "checkpoint.partial", "model")
"""Files that are not uploaded; the model is logged as a model."""
SMALL = ("audit.seal", "report.html")
"""Files that are sent even if MLflow has them in the same size, because a new seal and a new report belong together."""
REGISTERED = ("attack", "defence")
"""Tags of a run that its registered model gets, too, besides `run`, the run's name."""


def save_model(module: nn.Module, size: int, folder: Path) -> None:
    """Write `module` as an MLflow model: a traced graph with its signature, which loads without this package.

    module: the network; it takes any number n of patches, (n, 3, size, size) float32.
    size: height and width of the patches.
    folder: the new folder of the model.

    The example for tracing, which is saved with the model, is two grey patches: a single patch would fix n at one, and
    patients' patches do not belong there. If a network cannot be traced, a warning is logged and nothing is written,
    but the run goes on. No server is needed: `upload` and `sync` log the model later. `mlflow.pytorch.load_model` reads
    it back.
    """
    packed_model(module, size).write(folder)


@dataclass(frozen=True)
class PackedModel:
    """The files of an MLflow model in memory, so that an actor on another machine can make it."""

    files: Mapping[str, bytes]
    """Path below the model's folder → contents; none if the network could not be traced."""
    reason: str = ""
    """Why it could not."""

    def write(self, folder: Path) -> None:
        """Write the files into the new `folder`, or log a warning that there is no model."""
        if not self.files:
            weights = folder.parent / "checkpoint.npz"
            logger.warning("no model is kept, only its weights in %s: %s", weights, self.reason)
        for name, contents in self.files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(contents)


def packed_model(module: nn.Module, size: int) -> PackedModel:
    """Return `module` as the files of an MLflow model; see `save_model`, whose arguments these are."""
    import torch

    with TemporaryDirectory() as place:
        folder = Path(place) / "model"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of `torch.export`, about its own insides
                _trace(module.eval(), torch.zeros(2, 3, size, size), folder)
        except OSError:
            raise
        except Exception as error:  # tracing a network may raise anything
            return PackedModel({}, next(iter(str(error).splitlines()), type(error).__name__))
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return PackedModel(files)


def _trace(module: nn.Module, example: Tensor, folder: Path) -> None:
    """Write `module` as an MLflow model, and test it with other numbers of patches than the example has."""
    import_mlflow()
    import mlflow.pytorch
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    with torch.no_grad():
        arrays = example.numpy(), module(example).numpy()
    mlflow.pytorch.save_model(
        module,
        str(folder),
        signature=ModelSignature(*(Schema([TensorSpec(each.dtype, (-1, *each.shape[1:]))]) for each in arrays)),
        input_example=arrays[0],
        pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", f"mlflow=={mlflow.__version__}", "numpy"],
        serialization_format="pt2",
    )
    (file,) = folder.rglob("*.pt2")
    graph = torch.export.load(file).module()
    for count in (1, 3):
        with torch.no_grad():
            graph(example[:1].repeat(count, 1, 1, 1))


def upload(client: Any, run_id: str, folder: Path, again: bool = False, register: str | None = None) -> None:
    """Upload the files of a run's folder that its artifacts lack or have in a different size, and its model.

    run_id: MLflow's id of the run.
    client: an MLflow client.
    folder: the run's folder. Links in it are not followed, because their targets do not belong to the run.
    again: also upload files that the artifacts have in the same size.
    register: the name under which the model is registered, if any.
    """
    stored = {} if again else dict(stored_files(client, run_id))
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_symlink() or not path.is_file() or name.parts[0] in NOT_ARTIFACTS:
            continue
        if str(name) in SMALL or stored.get(str(name)) != path.stat().st_size:
            client.log_artifact(run_id, str(path), str(name.parent) if name.parent.parts else None)
    if (folder / "model" / "MLmodel").exists():
        _upload_model(client, run_id, folder / "model")
        if register is not None:
            _register(client, run_id, register)


def stored_files(client: Any, run_id: str, below: str | None = None) -> Iterator[tuple[str, int]]:
    """Yield path and size, in bytes, of each artifact of a run; `below`: only of those in this folder."""
    for found in client.list_artifacts(run_id, below):
        if found.is_dir:
            yield from stored_files(client, run_id, found.path)
        else:
            yield found.path, found.file_size


def _upload_model(client: Any, run_id: str, folder: Path) -> None:
    """Log the MLflow model in `folder` as the run's model, once."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model
    from ruamel.yaml import YAML

    run = client.get_run(run_id)
    if run.outputs is not None and run.outputs.model_outputs:
        return
    logged = client.create_logged_model(
        run.info.experiment_id, name="model", source_run_id=run_id, params=run.data.params, model_type="classifier"
    )
    described = Model.from_dict(YAML(typ="safe").load(folder / "MLmodel"))  # `load` would decode % in a path
    described.model_id, described.run_id, described.artifact_path = logged.model_id, run_id, logged.artifact_location
    described.save(str(folder / "MLmodel"))
    client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])


def _register(client: Any, run_id: str, name: str) -> None:
    """Make the run's model the latest version of the registered model `name`, once.

    MLflow reserves the alias `latest`: it always means the highest version.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    run = client.get_run(run_id)
    versions = client.search_model_versions(f"name = '{name}'")
    if any(version.run_id == run_id for version in versions):
        return
    logged = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    tags = {"run": run.info.run_name} | {key: run.data.tags[key] for key in REGISTERED if key in run.data.tags}
    # `models:/ID` would be looked up in the store that MLFLOW_TRACKING_URI names.
    source, waiting = logged.artifact_location, 0  # it is there already, so there is no need to wait
    client.create_model_version(name, source, run_id, tags, await_creation_for=waiting, model_id=logged.model_id)
