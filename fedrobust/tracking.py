"""The only room that knows MLflow. The journal is the truth; what MLflow shows is sent from it, each line once.

A metric's time stamp is the run's start plus the rounds' own seconds, so a journal line always becomes the same rows,
and MLflow stores a row that it already has only once. The tag `fedrobust.synced` counts the lines that have arrived and
is sent together with them. Therefore a run that is resumed, or replayed after the server was away, shows no step twice.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from fedrobust.errors import TrackingError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

Record = Mapping[str, Any]

logger = logging.getLogger(__name__)

SYNCED = "fedrobust.synced"
"""Tag: how many journal lines MLflow has."""
PAUSES = (1.0, 4.0)
"""Seconds between the attempts to reach a server that does not answer."""
BATCH = 900
"""Metrics in one request; MLflow takes up to 1,000 entries."""
LONGEST = 500
"""Characters of a parameter's value that every MLflow server accepts."""
PARENT = "mlflow.parentRunId"
"""Tag: the run that a run is nested below."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment, so that the UI shows it as one about training and not about language models."""
NOT_ARTIFACTS = ("checkpoint.npz", "checkpoint.partial", "model")
"""What stays in the run's folder; the model is logged as a model."""

_CLIENT_METRICS = {"reputation": "reputation", "anomaly": "anomaly", "weights": "weight"}


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or the sqlite database `mlruns/mlflow.db` below the working folder.

    Raises `TrackingError` for a plain folder: MLflow has given that kind of store up.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlruns/mlflow.db').absolute()}"
    if "://" not in uri or uri.startswith("file:"):
        raise TrackingError(
            f"MLFLOW_TRACKING_URI={uri} is a folder, which MLflow no longer writes to; "
            "unset it, or give a server (http://host:5000) or a database (sqlite:///mlruns/mlflow.db)"
        )
    return uri


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted paths and texts of at most `LONGEST` characters; a list of plain values stays one."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            value = dict(enumerate(value))
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = _shortened(value if isinstance(value, str) else json.dumps(value, default=str))
    return flat


def metrics(record: Record, width: int = 2) -> dict[str, float]:
    """The MLflow metrics of one journal record; client ids are padded to `width` digits, so that they sort.

    Figures that are not finite are left out: the journal writes null for them.
    """
    found: dict[str, Any] = {**record.get("metrics", {}), **record.get("detection", {})}
    for field, name in _CLIENT_METRICS.items():
        for client, value in (record.get(field) or {}).items():
            found[f"{name}/{int(client):0{width}d}"] = value
    for client, parts in (record.get("anomaly_parts") or {}).items():
        found |= {f"anomaly_{part}/{int(client):0{width}d}": value for part, value in parts.items()}
    if "quarantined" in record:
        found["defense/quarantined"] = len(record["quarantined"])
    for field in ("quarantined", "attacking"):
        # Of everyone who takes part, 0 included: a curve that only had ones would never come down.
        named = {int(client) for client in record.get(field) or ()}
        present = record["participants"] if field in record and "participants" in record else ()
        found |= {f"{field}/{int(client):0{width}d}": int(client) in named for client in present}
    losses = [loss for loss in (record.get("train_loss") or {}).values() if _finite(loss)]
    if losses:
        found["train/loss"] = sum(losses) / len(losses)
    for name, seconds in (record.get("seconds") or {}).items():
        found["round/seconds" if name == "round" else f"round/{name}_seconds"] = seconds
    if "upload_bytes" in record:
        found["round/upload_bytes"] = record["upload_bytes"]
    return {name: float(value) for name, value in found.items() if _finite(value)}


class Tracker:
    """Sends a run's records to MLflow from a thread of its own, and never makes the run wait or fail.

    `log` must be called once for every line of the journal, in the journal's order, after the line is committed.
    """

    def __init__(self, client: Any, run: Any, journal: Sequence[Record] = ()) -> None:
        self.run_id: str = run.info.run_id
        """MLflow's id of the run, and the name of the run's folder."""
        self.behind = False
        """The server went away: `sync` has to send the rest."""
        self._client = client
        self._feed = _Feed(client, run)
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._closing = threading.Event()
        for record in journal:
            self.log(record)
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        experiment: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        run_name: str | None = None,
        parent: str | None = None,
    ) -> Tracker:
        """Start a run in the MLflow experiment `experiment`; `params` as `flatten` makes them.

        `parent` is the id of a run of the same experiment that this one is nested below.

        Takes about three seconds the first time; safe to call from a thread beside other work. Raises `TrackingError`
        if the server or database cannot be used.
        """
        uri = tracking_uri()
        with _reaching(uri) as client:
            from mlflow.entities import Param

            shortened = {key: _shortened(value) for key, value in tags.items()}
            if parent is not None:
                shortened[PARENT] = parent
            run = client.create_run(_experiment_id(client, experiment, uri), run_name=run_name, tags=shortened)
            entries = [Param(key, _shortened(value)) for key, value in params.items()]
            for start in range(0, len(entries), 100):
                client.log_batch(run.info.run_id, params=entries[start : start + 100])
            return cls(client, run)

    @classmethod
    def resume(cls, run_id: str, journal: Sequence[Record]) -> Tracker:
        """Go on with a run whose committed records are `journal`; those that MLflow lacks are sent first.

        Raises `TrackingError` as `open` does, and if the store does not know the run.
        """
        with _reaching(tracking_uri(), run_id) as client:
            run = client.get_run(run_id)
            client.update_run(run_id, status="RUNNING")
            return cls(client, run, journal)

    def log(self, record: Record) -> None:
        """Have a journal record sent; returns at once."""
        self._put(partial(self._feed.send, record))

    def figures(self, figures: Mapping[str, float], run_id: str | None = None) -> None:
        """Have figures that belong to no round sent, for this run or for one below it; returns at once."""
        self._put(partial(_send_figures, self._client, run_id or self.run_id, dict(figures), int(1000 * time.time())))

    def upload(self, folder: Path, again: bool = False) -> None:
        """Have the files of the run's folder that MLflow lacks uploaded, a `model/` as a model; returns at once.

        `again` uploads those that it has in the same size, too.
        """
        self._put(partial(_upload, self._client, self.run_id, folder, again))

    def close(self, status: str = "FINISHED", timeout: float = 120.0) -> bool:
        """Send what is left, then set the run's final status; False if `sync` has to be called later."""
        self._put(partial(self._client.set_terminated, self.run_id, status))
        self._jobs.put(None)
        self._closing.set()
        self._thread.join(timeout)
        self.behind |= self._thread.is_alive()
        return not self.behind

    def _put(self, job: Callable[[], object]) -> None:
        if not self.behind:
            self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            error = self._attempt(job)
            if error is not None:
                self.behind = True
                logger.warning(
                    "MLflow does not answer (%s): the run goes on; when it is back: fedrobust sync %s",
                    _first_line(error),
                    self.run_id,
                )
                return

    def _attempt(self, job: Callable[[], object]) -> Exception | None:
        for pause in (*PAUSES, None):
            try:
                job()
                return None
            except Exception as error:  # whatever MLflow, a database driver or the network raises must not stop a run
                if pause is None:
                    return error
                self._closing.wait(pause)
        raise AssertionError("unreachable")


def sync(folder: Path, journal: Sequence[Record]) -> int:
    """Send MLflow what it lacks of the run in `folder`, whose name is the run's id; returns how many journal records.

    `journal` are the run's committed records. A run that has ended becomes FINISHED. Raises `TrackingError` if the
    server cannot be reached or does not know the run.
    """
    run_id = folder.name
    with _reaching(tracking_uri(), run_id) as client:
        run = client.get_run(run_id)
        feed = _Feed(client, run)
        missing = max(0, len(journal) - feed.sent)
        for record in journal:
            feed.send(record)
        _upload(client, run_id, folder)
        if journal and journal[-1]["kind"] == "end" and run.info.status != "FINISHED":
            client.set_terminated(run_id, "FINISHED")
        return missing


def save_model(module: nn.Module, example: np.ndarray, folder: Path) -> None:
    """Write `module` as an MLflow model: a traced graph with its signature, that loads without this package.

    `example` (n, 3, H, W) float32 needs n ≥ 2, so that the number of patches stays free. Needs no server: `upload`
    and `sync` log it when one is there. `mlflow.pytorch.load_model` reads it back.
    """
    _mlflow()
    import mlflow.pytorch
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    module = module.eval()
    with torch.no_grad():
        output = module(torch.from_numpy(example)).numpy()
    mlflow.pytorch.save_model(
        module,
        str(folder),
        signature=ModelSignature(
            *(Schema([TensorSpec(array.dtype, (-1, *array.shape[1:]))]) for array in (example, output))
        ),
        input_example=example,
        pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", f"mlflow=={mlflow.__version__}", "numpy"],
        serialization_format="pt2",
    )


class _Feed:
    """Sends the journal of one run line by line, skipping the lines that MLflow has."""

    def __init__(self, client: Any, run: Any) -> None:
        self.sent = int(run.data.tags.get(SYNCED, 0))
        self._client, self._run_id = client, run.info.run_id
        self._time, self._line, self._width = run.info.start_time, 0, 2

    def send(self, record: Record) -> None:
        """Send the next line. May be called again for a line that failed: nothing moves on before all has arrived."""
        from mlflow.entities import Metric, RunTag

        clients = record.get("clients")
        width = max(2, len(str(clients - 1))) if isinstance(clients, int) else self._width
        time = self._time + int(1000 * ((record.get("seconds") or {}).get("round") or 0))
        if self._line >= self.sent:
            step = record.get("round", 0)
            rows = [Metric(name, value, time, step) for name, value in metrics(record, width).items()]
            while len(rows) > BATCH:
                self._client.log_batch(self._run_id, metrics=rows[:BATCH])
                rows = rows[BATCH:]
            self._client.log_batch(self._run_id, metrics=rows, tags=[RunTag(SYNCED, str(self._line + 1))])
        self._time, self._width, self._line = time, width, self._line + 1


def _mlflow() -> Any:
    """Import MLflow: no telemetry, and no minutes of patience with a server that is down, unless the user says so."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    import mlflow

    for name in ("alembic", "mlflow.store.db", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


@contextmanager
def _reaching(uri: str, run_id: str | None = None) -> Iterator[Any]:
    """An MLflow client for `uri`; whatever fails in the block becomes a `TrackingError` of one line."""
    try:
        mlflow = _mlflow()
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        yield mlflow.MlflowClient(uri)
    except TrackingError:
        raise
    except Exception as error:
        if run_id and getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            raise TrackingError(
                f"run {run_id} is not in {_public(uri)}; "
                "set MLFLOW_TRACKING_URI to the store that the run was started with"
            ) from error
        raise TrackingError(
            f"MLflow at {_public(uri)} cannot be used: {_first_line(error)}; "
            "start the server, or unset MLFLOW_TRACKING_URI to track in mlruns/mlflow.db"
        ) from error


def _experiment_id(client: Any, name: str, uri: str) -> str:
    """The id of the MLflow experiment, made if need be; artifacts lie beside a sqlite database."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
        location = (database.absolute().parent / "artifacts").as_uri() if database else None
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=KIND))
        except MlflowException:  # another process was quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"the MLflow experiment '{name}' has been deleted; "
            f"choose another tracking.experiment, or: mlflow experiments restore -x {found.experiment_id}"
        )
    return str(found.experiment_id)


def _send_figures(client: Any, run_id: str, figures: Mapping[str, float], now: int) -> None:
    from mlflow.entities import Metric

    rows = [Metric(name, float(value), now, 0) for name, value in figures.items() if _finite(value)]
    for start in range(0, len(rows), BATCH):
        client.log_batch(run_id, metrics=rows[start : start + BATCH])


def _upload(client: Any, run_id: str, folder: Path, again: bool = False) -> None:
    """Upload the files of a run's folder that its artifacts lack or hold in another size, and its model."""
    stored = {} if again else dict(_artifacts(client, run_id))
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] not in NOT_ARTIFACTS and stored.get(str(name)) != path.stat().st_size:
            client.log_artifact(run_id, str(path), str(name.parent) if name.parent.parts else None)
    if (folder / "model" / "MLmodel").exists():
        _upload_model(client, run_id, folder / "model")


def _artifacts(client: Any, run_id: str, below: str | None = None) -> Iterator[tuple[str, int]]:
    """Path and size of each artifact of a run."""
    for found in client.list_artifacts(run_id, below):
        if found.is_dir:
            yield from _artifacts(client, run_id, found.path)
        else:
            yield found.path, found.file_size


def _upload_model(client: Any, run_id: str, folder: Path) -> None:
    """Log the MLflow model in `folder` as the run's model, once."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    run = client.get_run(run_id)
    if run.outputs is not None and run.outputs.model_outputs:
        return
    logged = client.create_logged_model(
        run.info.experiment_id, name="model", source_run_id=run_id, params=run.data.params, model_type="classifier"
    )
    described = Model.load(str(folder))
    described.model_id, described.run_id, described.artifact_path = logged.model_id, run_id, logged.artifact_location
    described.save(str(folder / "MLmodel"))
    client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return _public(lines[0]) if lines else type(error).__name__


def _public(text: str) -> str:
    """`text` without the user name and password of an address."""
    return re.sub(r"://[^/@\s]*@", "://", text)
