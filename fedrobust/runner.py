"""One run from start to end: data, actors, rounds, journal, tracking, report."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedrobust.audit.signing import open_key, public_hex
from fedrobust.audit.verification import refuse_changed, seal_files, verify_all
from fedrobust.cautions import cautions
from fedrobust.data.cache import file_of
from fedrobust.data.hospitals import Hospitals
from fedrobust.ending import tracked
from fedrobust.errors import ExperimentError, Stop, UntrainedError
from fedrobust.experiment import Experiment
from fedrobust.experiment_file import dump, load_recorded
from fedrobust.federation.journal import Journal
from fedrobust.federation.measures import misread
from fedrobust.federation.pool import Pool, Team
from fedrobust.federation.rounds import FederatedTraining, FinalModel, Hook
from fedrobust.federation.session import check_ray
from fedrobust.federation.starting import pool_beside
from fedrobust.job import tell
from fedrobust.learning import Model
from fedrobust.naming import Part, commit, run_name, tags
from fedrobust.preparation import (
    CACHE,
    check_attacks,
    check_model,
    check_patches,
    check_protocol,
    check_source,
    hospitals_of,
)
from fedrobust.private import private_files
from fedrobust.progress import progress_to
from fedrobust.records import (
    FORMAT,
    Checkpoint,
    Fields,
    Record,
    RecordedRun,
    RunEnd,
    RunStart,
    read_checkpoint,
    read_run,
    versions,
)
from fedrobust.records.trace import TRACE, traced
from fedrobust.result import Result, figures_so_far
from fedrobust.secure.disclosure import ProtocolSetting
from fedrobust.texts import visible
from fedrobust.tracking import PackedModel, Tracker, flatten, import_beside, packed_model

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

logger = logging.getLogger(__name__)

RUNS = Path("mlruns/runs")
"""Folder that contains the folder of each run, below the working folder."""
COMPARISONS = Path("mlruns/compare")
"""Folder of comparisons of runs."""
KEY = Path("mlruns/keys/coordinator.pem")
"""The key that signs the audit logs of runs; made by the first run."""
MADE = ("partition.png", "report.html", "hospitals.csv", "trace.json", "figures/*.png", "model/**/*")
"""Files of a run that are not covered by its audit log."""


@dataclass(frozen=True)
class _Run:
    """What the steps of a run share."""

    experiment: Experiment
    hospitals: Hospitals
    key: Ed25519PrivateKey
    """Key that signs the audit log."""
    part: Part | None
    """The study that the run is part of; the run then has no report and no model."""
    hooks: Sequence[Hook]
    say: Callable[[str], None]
    heeded: Sequence[str]
    """What the user is warned of because of the options."""

    @property
    def cautions(self) -> list[str]:
        """What the user is warned of, because of the options and of the data."""
        return [*self.heeded, *self.hospitals.notes]

    @property
    def curves(self) -> bool:
        """Whether MLflow gets every round: of the parts of a study only if they ask for it."""
        return self.part is None or self.experiment.tracking.curves

    @property
    def model(self) -> tuple[Model, int, int, int]:
        """What the network is built of: options, number of labels, side of an image, seed."""
        experiment, hospitals = self.experiment, self.hospitals
        return experiment.learning.model, len(hospitals.label_names), hospitals.images.shape[1], experiment.seed


@private_files()
def run(
    experiment: Experiment,
    resume: str | None = None,
    hooks: Sequence[Hook] = (),
    say: Callable[[str], None] = lambda what: None,
    pool: Pool | None = None,
    hospitals: Hospitals | None = None,
    part: Part | None = None,
) -> Result:
    """Run an experiment and record it. Meanwhile the umask is 077: only the owner can read files of this process.

    experiment: the options, as `fedrobust.load` returns them.
    resume: id of a run of the same experiment that stopped; it continues, and ends with the same bits as without the
        stop. If the run has ended, its report is written again and MLflow gets missing records.
    hooks: called with every record of the journal once it is committed, in order. A hook that raises `Stop` ends the
        run; so does Optuna's `TrialPruned`, which is raised again.
    say: called with short texts about the current step, e.g. for a progress bar.
    pool: leases an existing team of actors, so that many short runs do not each start their own; the experiment's own
        `workers` are then ignored.
    hospitals: the result of `hospitals_of` for an experiment with the same data, number of hospitals and seed.
    part: makes this a run without report and model, below a parent, and without curves unless `tracking.curves`.

    Raises `ExperimentError` (nothing has been written), `TrackingError`, `FederationError`, its subclass
    `UntrainedError` if the run has ended with every round skipped, and `AuditError` if the key of the audit log cannot
    be used.
    """
    earlier = None if resume is None else find_run(resume)
    if earlier is None:
        check_ray()
    heeded = cautions(experiment)
    for caution in heeded if part is None else ():  # a study says it once for all its runs
        logger.warning("%s", caution)
    say("reading the data")
    if hospitals is None:
        check_source(experiment)
    with ExitStack() as stack:
        actors = stack.enter_context(ExitStack())
        ready = None if pool is None else lambda: pool
        if ready is None and earlier is None:  # they import what they need while the data are read
            ready = actors.enter_context(pool_beside(experiment, import_beside))
        if hospitals is None:
            with progress_to(say):
                hospitals = hospitals_of(experiment)
        check_attacks(experiment, hospitals)
        check_model(experiment, hospitals)
        check_protocol(experiment, hospitals)
        check_patches(experiment, hospitals)
        this = _Run(experiment, hospitals, open_key(KEY), part, hooks, say, heeded)
        resumed = None if earlier is None else stack.enter_context(closing(_reopened(earlier, this.key)))
        if resumed is not None:
            _same(resumed.folder, this)
        ended = resumed is not None and _ended(resumed)
        if ready is None and not ended:
            ready = actors.enter_context(pool_beside(experiment))
        lease = None if ready is None else cache(partial(_leased, ready, actors))
        if part is not None and lease is not None:
            lease()  # it may have to wait for a team: in MLflow the run begins afterwards
            part.go_on()
        opening, end = stack.enter_context(tracked(partial(_open_tracker, this, resumed), part is None, _goes_on))
        if resumed is not None and ended:
            folder, stopped = resumed.folder, None
            if (folder / TRACE).exists() and verify_all(folder, public_hex(this.key), folder.name).broken:
                (folder / TRACE).unlink(missing_ok=True)  # the only file that is not made anew, but sealed again
            packed: Callable[[], PackedModel] = partial(_packed_here, this, folder)
        else:
            assert lease is not None
            folder, stopped, packed = _trained(this, resumed, opening, lease, actors)
        if stopped is not None:
            end.status, end.reason = "KILLED", stopped
        recorded = read_run(folder)
        if part is None:
            _report(this, folder, recorded, opening.result(), stopped, packed)
        elif stopped is None:
            seal_files(folder, this.key)
        actors.close()  # while the rest is sent to MLflow
        if recorded.skips.untrained and stopped is None:
            advice = recorded.skips.no_result(recorded.start.cautions)
            raise UntrainedError(f"run {folder.name}: {advice}; its record is in {folder}")
    return _result(this, folder, recorded, stopped)


def _leased(ready: Callable[[], Pool], actors: ExitStack) -> Team:
    return actors.enter_context(ready().lease())


def find_run(run: str) -> Path:
    """Return the folder of the run with this id, or the only one whose id begins with `run`. Raises
    `ExperimentError`."""
    from fedrobust.report import finding

    return finding.find_run(run, RUNS)


def _reopened(folder: Path, key: Ed25519PrivateKey) -> Journal:
    """Open the journal of a run that stopped; it stays locked until it is closed."""
    if not (folder / "checkpoint.npz").exists():
        raise ExperimentError(f"run {folder.name} stopped before its first round, and cannot be resumed")
    refuse_changed(folder, key)
    journal = Journal(folder, key)
    folder.chmod(0o700)
    return journal


def _same(folder: Path, this: _Run) -> None:
    """Refuse to continue a run with a different experiment, or with different data."""
    before, experiment = load_recorded(folder / "experiment.yaml"), this.experiment
    if before.digest() != experiment.digest():
        old, new = (flatten(each.resolved()) for each in (before, experiment))
        changed = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
        changes = [key for key in changed if key.split(".")[0] not in ("workers", "tracking")]
        told = ", ".join(f"{key} was {old.get(key)}, is {new.get(key)}" for key in changes)
        raise ExperimentError(f"run {folder.name} cannot be resumed with another experiment: {told}")
    options = folder / "experiment.yaml"
    if options.read_text(encoding="utf-8") != dump(before):  # same options, but is the rest of the file ours?
        options.write_text(dump(before), encoding="utf-8")
    if read_run(folder).start.digest != this.hospitals.digest:
        cached = "" if file_of(this.hospitals.images) is None else f", or what {CACHE} holds"
        name = experiment.data.source.name
        raise ExperimentError(f"run {folder.name} cannot be resumed: the data of {name} changed{cached}")


def _ended(journal: Journal) -> bool:
    return read_run(journal.folder).end is not None


def _goes_on(run: str) -> bool:
    """Return whether any record of a run is committed."""
    return (RUNS / run / "checkpoint.npz").exists()


def _open_tracker(this: _Run, resumed: Journal | None) -> Tracker:
    if resumed is not None:
        return Tracker.resume(resumed.folder.name, read_run(resumed.folder).records)
    experiment, part = this.experiment, this.part
    all_tags = tags(experiment) | {"data_digest": this.hospitals.digest} | dict(part.tags if part else {})
    if this.cautions:
        all_tags["caution"] = visible("; ".join(this.cautions))
    name, params = experiment.tracking.experiment, flatten(experiment.resolved())
    tracker = Tracker.open(name, params, all_tags, run_name(experiment), part.parent if part else None)
    if part is not None:
        part.opened.append(tracker.run_id)
    return tracker


def _new_folder(run_id: str, experiment: Experiment) -> Path:
    folder = RUNS / run_id
    folder.mkdir(parents=True, mode=0o700)
    (folder / "experiment.yaml").write_text(dump(experiment), encoding="utf-8")
    return folder


def _trained(
    this: _Run, resumed: Journal | None, opening: Future[Tracker], lease: Callable[[], Team], actors: ExitStack
) -> tuple[Path, str | None, Callable[[], PackedModel]]:
    """Run the rounds until the end is committed, or until a hook stops the run. Records go to the journal, to the hooks
    and, if its curves are wanted, to MLflow.

    lease: waits for a team of actors.
    actors: has the team; it is given back as soon as nothing more is asked of it.

    Returns the run's folder, why it was stopped, and a function that waits for the model.
    """
    experiment, hospitals = this.experiment, this.hospitals
    this.say("starting actors")
    with ExitStack() as stack:
        say = this.say if this.part is None else this.part.say
        federation = FederatedTraining(experiment, hospitals, lease(), say)
        if resumed is not None and read_run(resumed.folder).start.encoder != federation.hosts.encoder:
            raise ExperimentError(
                f"run {resumed.folder.name} cannot be resumed: the encoder's weights or features changed"
            )
        # It trains while MLflow opens the run, whose id is the folder's name.
        first = federation.begin(None if resumed is None else resumed.checkpoint)
        tracker = opening.result()
        hooks = [tracker.log, *this.hooks] if this.curves else this.hooks
        if resumed is None:
            folder = _new_folder(tracker.run_id, experiment)
            journal = stack.enter_context(closing(Journal(folder, this.key)))
            start = _start(this, folder.name, first.arrays["weights"], federation.hosts.encoder)
            journal.commit([start], first)
            records: list[Record] = [start]
        else:
            journal, folder, records = resumed, resumed.folder, []
        if this.part is None:
            tell(folder=str(folder.absolute()))
        try:
            for record in records:
                for hook in hooks:
                    hook(record)
            this.say("training")
            profile, about = experiment.tracking.profile and this.part is None, {"name": run_name(experiment)}
            with traced(folder / TRACE, profile, {"run": folder.name, **about}) as tracker.recording:
                outcome = federation.run(journal, hooks)
        except Stop as stop:
            return folder, str(stop) or "by a hook", partial(_packed_here, this, folder)
        packed: Callable[[], PackedModel] = partial(_packed_here, this, folder)
        if this.part is None and experiment.tracking.model:  # it is made while the report is written
            packed = federation.hosts.ask_of_model(packed_model, outcome.weights, hospitals.images.shape[1])
        else:
            actors.close()
        final, rounds = _final(read_run(folder), outcome), experiment.federation.rounds
        end = RunEnd.of({"round": rounds, "final": final, "misread": misread(hospitals, outcome.probabilities)})
        last: list[Record] = [outcome.evaluation, end]
        journal.commit(last, Checkpoint(rounds, {"weights": outcome.weights}))
        for record in last:
            for hook in hooks:
                with suppress(Stop):  # there is nothing left to stop
                    hook(record)
    return folder, None, packed


def _packed_here(this: _Run, folder: Path) -> PackedModel:
    """Return the model of a run without actors."""
    from fedrobust.learning.vector import with_weights

    network = with_weights(*this.model, read_checkpoint(folder).arrays["weights"])
    return packed_model(network, this.hospitals.images.shape[1])


def _report(
    this: _Run,
    folder: Path,
    recorded: RecordedRun,
    tracker: Tracker,
    stopped: str | None,
    packed: Callable[[], PackedModel],
) -> None:
    """Write report and model of a run whose end is committed, seal them, and upload them.

    packed: waits for the model.

    All of them are written anew, so that the seal covers only files made by this process. A run that was stopped has a
    report of what there is, no seal, and no model, since it can still go on.
    """
    from fedrobust.report import OFFICER, save_partition, write_report

    this.say("writing the report")
    images, tracking = this.hospitals.images, this.experiment.tracking
    hospitals, malicious = this.hospitals, this.experiment.attackers.names
    save_partition(folder, hospitals.label_counts(), hospitals.label_names, malicious, hospitals.patient_counts())
    write_report(folder, images, recorded)
    if stopped is not None:
        tracker.upload(folder, again=True)
        return
    if tracking.model or (folder / "model").exists():
        shutil.rmtree(folder / "model", ignore_errors=True)  # it may be incomplete
        packed().write(folder / "model")
    (folder / OFFICER).unlink(missing_ok=True)  # of an earlier state of the run
    made = [path for pattern in MADE for path in folder.glob(pattern)]
    seal_files(folder, this.key, [path.relative_to(folder).as_posix() for path in made])
    tracker.upload(folder, again=True, register=None if recorded.skips.untrained else tracking.register)
    this.say("sending the rest to MLflow")


def _result(this: _Run, folder: Path, recorded: RecordedRun, stopped: str | None) -> Result:
    final = figures_so_far(recorded) if recorded.end is None else recorded.end.final
    name, suspected = run_name(this.experiment), list(final["suspected"])
    tensors = partial(_tensors, *this.model, read_checkpoint(folder).arrays["weights"])
    return Result(folder.name, name, folder, recorded, final, recorded.attackers, suspected, stopped, tensors)


def _tensors(model: Model, classes: int, size: int, seed: int, weights: np.ndarray) -> dict[str, Any]:
    from fedrobust.learning.vector import with_weights

    state = with_weights(model, classes, size, seed, weights).state_dict()
    return {name: value.detach().clone() for name, value in state.items()}


def _start(this: _Run, run_id: str, weights: np.ndarray, encoder: str) -> RunStart:
    experiment, hospitals = this.experiment, this.hospitals
    fields = {
        "format": FORMAT,
        "run": run_id,
        "name": run_name(experiment),
        "experiment": experiment.resolved(),
        "clients": experiment.federation.clients,
        "label_names": list(hospitals.label_names),
        "attackers": experiment.attackers.names,
        "hospital_labels": hospitals.label_counts().tolist(),
        "parameters": len(weights),
        "test_patients": hospitals.tested_patients(),
        "digest": hospitals.digest,
        "configuration": experiment.digest(),
        "versions": versions() | {"commit": commit()},
        "model": sha256(weights.tobytes()).hexdigest(),
    }
    if encoder:
        fields["encoder"] = encoder
    if this.cautions:
        fields["cautions"] = this.cautions
    if ":" in experiment.privacy.name:  # whoever reads the record later may not have the user's class
        setting = ProtocolSetting(experiment.federation.participants(), vectors=None, histories=None)
        fields["disclosure"] = list(experiment.privacy.disclosure(setting).sees)
    return RunStart.of(fields)


def _final(recorded: RecordedRun, outcome: FinalModel) -> Fields:
    """Return the last figures; those of the model are included even if every round was skipped."""
    found = figures_so_far(recorded, outcome.evaluation.metrics)
    seconds = found.pop("seconds")
    return {**found, "model_sha256": outcome.digest, "seconds": seconds}
