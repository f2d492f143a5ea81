"""One run from start to end: data, actors, rounds, journal, tracking, report."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fedrobust.attacks import DataAttack, draw_attackers
from fedrobust.data.hospitals import Hospitals, divide
from fedrobust.errors import ExperimentError, FedRobustError
from fedrobust.experiment import Experiment
from fedrobust.experiment_file import dump, load
from fedrobust.federation.journal import Checkpoint, Journal, Record, read_journal
from fedrobust.federation.pool import Pool, ray_session
from fedrobust.federation.rounds import Federation, Hook, Outcome
from fedrobust.report import save_partition, write_report
from fedrobust.tracking import Tracker, flatten, save_model

RUNS = Path("mlruns/runs")
"""Where each run keeps its folder, below the working folder."""
CACHE = Path("mlruns/cache")
"""Where normalised patches are kept."""


@dataclass(frozen=True)
class Result:
    """What a run leaves: its figures per round, the final ones, and the model."""

    run_id: str
    name: str
    folder: Path
    rounds: list[dict[str, Any]]
    """The journal's records of the rounds, in order, each with its evaluation's `metrics` where there was one."""
    final: dict[str, Any]
    """The last figures under their MLflow names, and `model_sha256`, the digest of the state dict."""
    state_dict: dict[str, Any]
    attackers: dict[int, str]
    """The truth of the simulation: malicious hospital → name of its attack."""
    suspected: list[int]
    """Hospitals whose reputation was below the threshold at the end."""


def run(
    experiment: Experiment,
    resume: str | None = None,
    hooks: Sequence[Hook] = (),
    say: Callable[[str], None] = lambda what: None,
) -> Result:
    """Run an experiment and record it.

    resume: id of a run of the same experiment that stopped; it ends with the bits that it would have ended with.
    hooks: called with every committed record of the journal.
    say: told what is being done, for a progress bar.

    Raises `ExperimentError` (nothing has been started or written), `TrackingError`, `FederationError`.
    """
    folder = None if resume is None else _resumable(resume, experiment)
    say("reading the data")
    hospitals = _hospitals(experiment)
    say("starting actors")
    with ThreadPoolExecutor(1) as beside:
        tracking = beside.submit(_open_tracker, experiment, hospitals, folder)
        with (
            ray_session(),
            Pool(experiment.workers, experiment.federation.participants()) as pool,
            pool.lease() as team,
        ):
            tracker: Tracker = tracking.result()
            status = "FAILED"
            try:
                federation = Federation(experiment, hospitals, team)
                folder = folder or _new_folder(tracker.run_id, experiment, hospitals)
                result = _recorded(federation, folder, tracker, hooks, say, fresh=resume is None)
                status = "FINISHED"
            except FedRobustError as error:
                raise type(error)(f"{error}; go on with: --resume {tracker.run_id}") from error
            except KeyboardInterrupt:
                status = "KILLED"
                raise
            finally:
                say("sending the rest to MLflow")
                tracker.close(status)
    return result


def find_run(run: str) -> Path:
    """The folder of the run with this id, or the only one whose id begins with it. Raises `ExperimentError`."""
    found = sorted(RUNS.glob(f"{run}*")) if run.isalnum() else []
    if len(found) == 1:
        return found[0]
    if found:
        raise ExperimentError(f"run '{run}': {len(found)} runs in {RUNS} begin so; give more of the id")
    raise ExperimentError(f"run '{run}': no such run in {RUNS}; ids are the names of the folders there")


def run_name(experiment: Experiment) -> str:
    """What sets the run apart from its neighbours in a list: defence, attacks, partition, seed, experiment."""
    if experiment.tracking.run_name:
        return experiment.tracking.run_name
    tags = _tags(experiment)
    # The defence first: lists cut long names off at the end.
    return f"{tags['defence']} | {tags['attack']} | {tags['partition']} | seed {experiment.seed} | {experiment.name}"


def _resumable(resume: str, experiment: Experiment) -> Path:
    folder = find_run(resume)
    before = load(folder / "experiment.yaml")
    if before.digest() != experiment.digest():
        old, new = flatten(before.resolved()), flatten(experiment.resolved())
        keys = [
            k for k in sorted(old | new) if old.get(k) != new.get(k) and k.split(".")[0] not in ("workers", "tracking")
        ]
        changes = ", ".join(f"{key} was {old.get(key)}, is {new.get(key)}" for key in keys)
        raise ExperimentError(f"run {folder.name} cannot be resumed with another experiment: {changes}")
    if any(record["kind"] == "end" for record in read_journal(folder)):
        raise ExperimentError(f"run {folder.name} has ended; there is nothing to resume")
    return folder


def _hospitals(experiment: Experiment) -> Hospitals:
    data, clients = experiment.data, experiment.federation.clients
    stain = data.stain_shift, data.stain_normalisation
    with _placed("data.source"):
        data.source.check()
    with _placed("data"):
        hospitals = divide(data.source, data.split, data.partition, *stain, clients, experiment.seed, CACHE)
    for index, attack in enumerate(experiment.attacks):
        if isinstance(attack, DataAttack):
            with _placed(f"attacks.{index}"):
                attack.check(len(hospitals.label_names), hospitals.images.shape[1])
    return hospitals


@contextmanager
def _placed(path: str) -> Iterator[None]:
    """Put the dotted path before the errors of what the block checks."""
    try:
        yield
    except ExperimentError as error:
        raise type(error)(f"{path}: {error}") from error


def _open_tracker(experiment: Experiment, hospitals: Hospitals, folder: Path | None) -> Tracker:
    if folder is not None:
        # What was written after the last commit is about to be cut off; it must not be sent.
        journal, _ = Journal.reopen(folder)
        journal.close()
        return Tracker.resume(folder.name, read_journal(folder))
    tags = _tags(experiment) | {"data_digest": hospitals.digest}
    return Tracker.open(experiment.tracking.experiment, flatten(experiment.resolved()), tags, run_name(experiment))


def _new_folder(run_id: str, experiment: Experiment, hospitals: Hospitals) -> Path:
    folder = RUNS / run_id
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text(dump(experiment), encoding="utf-8")
    attackers = draw_attackers(experiment.attacks, experiment.federation.clients, experiment.seed)
    save_partition(
        folder,
        hospitals.label_counts(),
        hospitals.label_names,
        {client: experiment.attacks[index].name for client, index in attackers.items()},
        hospitals.patient_counts(),
    )
    return folder


def _recorded(
    federation: Federation,
    folder: Path,
    tracker: Tracker,
    hooks: Sequence[Hook],
    say: Callable[[str], None],
    fresh: bool,
) -> Result:
    """Run the rounds with every record in the journal, in MLflow and in the hooks; then write the report."""
    experiment, hospitals = federation.experiment, federation.hospitals
    began = time.perf_counter()
    if fresh:
        journal = Journal(folder)
        weights = federation.hosts.initial_weights()
        checkpoint = Checkpoint(0, {"weights": weights})
        start = _start(experiment, hospitals, folder.name, len(weights))
        journal.commit([start], checkpoint)
        tracker.log(start)
    else:
        journal, checkpoint = Journal.reopen(folder)
    say("training")
    outcome = federation.run(journal, checkpoint, [tracker.log, *hooks])
    say("writing the report")
    state_dict = federation.hosts.state_dict(outcome.weights)
    before = read_journal(folder)
    final = _final(before, outcome, state_dict) | {"seconds": time.perf_counter() - began}
    end = {
        "kind": "end",
        "round": experiment.federation.rounds,
        "final": final,
        "misread": _misread(hospitals, outcome),
    }
    last = Checkpoint(experiment.federation.rounds, {"weights": outcome.weights})
    journal.commit([outcome.evaluation, end], last)
    journal.close()
    for record in (outcome.evaluation, end):
        for hook in (tracker.log, *hooks):
            hook(record)
    write_report(folder, hospitals.images)
    if experiment.tracking.model:
        save_model(_network(experiment, hospitals, state_dict), _example(hospitals), folder / "model")
    tracker.upload(folder)
    records = read_journal(folder)
    attackers = {int(client): attack for client, attack in records[0]["attackers"].items()}
    return Result(
        folder.name, run_name(experiment), folder, _rounds(records), final, state_dict, attackers, final["suspected"]
    )


def _start(experiment: Experiment, hospitals: Hospitals, run_id: str, parameters: int) -> Record:
    drawn = draw_attackers(experiment.attacks, experiment.federation.clients, experiment.seed)
    return {
        "kind": "start",
        "run": run_id,
        "name": run_name(experiment),
        "experiment": experiment.resolved(),
        "clients": experiment.federation.clients,
        "label_names": list(hospitals.label_names),
        "attackers": {str(client): experiment.attacks[index].name for client, index in drawn.items()},
        "hospital_labels": hospitals.label_counts().tolist(),
        "parameters": parameters,
        "digest": hospitals.digest,
    }


def _final(records: list[Record], outcome: Outcome, state_dict: dict[str, Any]) -> dict[str, Any]:
    last = [record for record in records if record["kind"] == "round"][-1]
    digest = sha256()
    for name, value in state_dict.items():
        digest.update(name.encode() + value.numpy().tobytes())
    return {
        **outcome.evaluation["metrics"],
        **last["detection"],
        "suspected": last["suspected"],
        "model_sha256": digest.hexdigest(),
    }


def _misread(hospitals: Hospitals, outcome: Outcome, most: int = 24) -> dict[str, list[Any]]:
    """The test patches that the final model is most certain about, and wrong."""
    test = hospitals.indices["test"]
    truth, predicted = hospitals.labels[test], outcome.probabilities.argmax(1)
    confidence = outcome.probabilities.max(1)
    wrong = np.flatnonzero(predicted != truth)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    return {
        "indices": test[worst].tolist(),
        "truth": truth[worst].tolist(),
        "predicted": predicted[worst].tolist(),
        "confidence": confidence[worst].tolist(),
    }


def _rounds(records: list[Record]) -> list[dict[str, Any]]:
    metrics = {record["round"]: record["metrics"] for record in records if record["kind"] == "evaluation"}
    return [
        record | ({"metrics": metrics[record["round"]]} if record["round"] in metrics else {})
        for record in records
        if record["kind"] == "round"
    ]


def _network(experiment: Experiment, hospitals: Hospitals, state_dict: dict[str, Any]) -> Any:
    network = experiment.learning.model.build(len(hospitals.label_names), hospitals.images.shape[1], experiment.seed)
    network.load_state_dict(state_dict)
    return network


def _example(hospitals: Hospitals) -> np.ndarray:
    from fedrobust.data.batches import to_tensor

    return np.ascontiguousarray(to_tensor(hospitals.images[hospitals.indices["test"][:2]]).numpy())


def _tags(experiment: Experiment) -> dict[str, str]:
    """What a person filters runs by."""
    sizes = [
        f"{attack.name} {attack.attackers(experiment.federation.clients)}/{experiment.federation.clients}"
        for attack in experiment.attacks
    ]
    stages = [*experiment.aggregation.stages, experiment.aggregation.rule]
    partition = experiment.data.partition
    alpha = getattr(partition, "alpha", None)
    return {
        "experiment": experiment.name,
        "attack": " + ".join(sizes) or "none",
        "defence": " + ".join(stage.name for stage in stages),
        "partition": f"{partition.name}{'' if alpha is None else f' {alpha:g}'}",
        "unit": partition.unit,
        "protocol": experiment.privacy.name,
        "source": experiment.data.source.name,
        "seed": str(experiment.seed),
        "deterministic": str(experiment.federation.deadline is None).lower(),
        "git_commit": _commit(),
    }


def _commit() -> str:
    """The commit of the code that runs, marked where files differ from it; 'unknown' outside of a repository."""
    command = ["git", "-C", os.fspath(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip() or "unknown"
