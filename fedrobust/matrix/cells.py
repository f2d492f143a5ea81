"""Running the cells of a matrix: several at once, each only once; what they gave is on disk before anything else."""

from __future__ import annotations

import fcntl
import json
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from fedrobust.data.hospitals import Hospitals
from fedrobust.errors import ExperimentError, FederationError
from fedrobust.experiment import Experiment
from fedrobust.federation.pool import Pool, ray_session, teams_that_fit
from fedrobust.matrix.grid import Cell
from fedrobust.matrix.measures import baselines, detection, performance
from fedrobust.runner import Part, hospitals_of, run
from fedrobust.tracking import Tracker


@dataclass(frozen=True)
class Outcome:
    """What a cell gave: its figures, or why there are none."""

    digest: str
    label: str
    run_id: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    """See `fedrobust.matrix.measures`; and `classes`."""
    seconds: float = math.nan
    failed: str = ""
    """The error that ended it."""


Watch = Callable[[Cell, Outcome], None]
_Task = Future[tuple[Cell, Outcome]]


class Store:
    """The file of finished cells: a line for each, fsynced; a line that a crash cut short is dropped."""

    def __init__(self, path: Path) -> None:
        """Open the file, and read it. Raises `ExperimentError` if a matrix that is alive writes to it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ExperimentError(f"{path.parent}: another process is running this matrix") from None
        self._file.seek(0)
        whole, newline, _ = self._file.read().rpartition(b"\n")
        self._file.truncate(len(whole) + len(newline))
        found = [Outcome(**json.loads(line)) for line in whole.splitlines()]
        self.outcomes: dict[str, Outcome] = {outcome.digest: outcome for outcome in found}
        """The last outcome of each experiment, by digest."""

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome for good."""
        self._file.write((json.dumps(asdict(outcome)) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.outcomes[outcome.digest] = outcome

    def missing(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells to run: those that are not there or failed, each experiment once."""
        first: dict[str, Cell] = {}
        for cell in cells:
            first.setdefault(cell.digest, cell)
        return [cell for key, cell in first.items() if key not in self.outcomes or self.outcomes[key].failed]

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class Runner:
    """Runs cells on a pool of teams of one client actor each. Ray starts with the first cell that has to run."""

    def __init__(
        self,
        store: Store,
        tracker: Tracker,
        watch: Watch,
        say: Callable[[str], None],
        teams: int | None = None,
        pool: Pool | None = None,
    ) -> None:
        """`teams`: how many to start, by default as many as there is room for; or a `pool` that is there already."""
        self._store, self._tracker, self._watch, self._say, self._teams = store, tracker, watch, say, teams
        self._shelf = _Shelf()
        self._stopping = threading.Event()
        self._stack = ExitStack()
        self._threads: ThreadPoolExecutor | None = None
        self._pool = pool

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, cells: Sequence[Cell]) -> None:
        """Run those of the cells that are missing. A cell whose federation fails is kept as failed.

        Whatever else is raised, a Ctrl-C too, ends the cells under way within a round, and is raised again.
        """
        missing = self._store.missing(cells)
        if not missing:
            return
        threads = self._threads or self._started(missing[0].experiment)
        tasks = [threads.submit(self._run, cell) for cell in missing]
        try:
            for done in self._finished(tasks):
                cell, outcome = done.result()
                self._store.add(outcome)
                self._watch(cell, outcome)
        except BaseException:
            self._stopping.set()
            for task in tasks:
                task.cancel()
            wait(tasks)
            raise

    def _started(self, experiment: Experiment) -> ThreadPoolExecutor:
        if self._pool is None:
            self._say("starting actors")
            self._stack.enter_context(ray_session())
            workers = experiment.workers.model_copy(update={"count": 1})
            self._pool = self._stack.enter_context(Pool(workers, 1, self._teams or teams_that_fit(workers)))
        self._threads = self._stack.enter_context(ThreadPoolExecutor(self._pool.teams, thread_name_prefix="cell"))
        self._say(f"running {self._pool.teams} cells at a time")
        return self._threads

    def _finished(self, tasks: Sequence[_Task]) -> Iterator[_Task]:
        """The tasks in the order in which they end."""
        left = set(tasks)
        while left:
            done, left = wait(left, return_when=FIRST_COMPLETED)
            yield from done

    def _run(self, cell: Cell) -> tuple[Cell, Outcome]:
        start = time.perf_counter()
        hospitals = self._shelf.get(cell.experiment)
        names = {"attack": cell.attack, "defence": cell.defence, "setting": cell.setting}
        part = Part(self._tracker.run_id, {**names, "phase": cell.phase, "seed": str(cell.seed)})
        try:
            result = run(cell.experiment, hooks=[self._go_on], pool=self._pool, hospitals=hospitals, part=part)
        except FederationError as error:
            return cell, Outcome(cell.digest, cell.label, failed=str(error))
        figures = performance(result.rounds) | baselines(result.rounds, cell.triggers)
        figures |= detection(result.rounds, result.attackers, hospitals.label_counts())
        figures["classes"] = len(hospitals.label_names)
        seconds = time.perf_counter() - start
        self._tracker.figures({f"cell/{name}": value for name, value in figures.items()}, result.run_id)
        return cell, Outcome(cell.digest, cell.label, result.run_id, figures, round(seconds, 3))

    def _go_on(self, record: dict[str, Any]) -> None:
        """Hook of a cell: ends it where the matrix is being stopped."""
        if self._stopping.is_set():
            raise KeyboardInterrupt


class _Shelf:
    """The data of the last few (data, hospitals, seed), each read and divided once."""

    def __init__(self, size: int = 3) -> None:
        self._size, self._lock = size, threading.Lock()
        self._held: OrderedDict[str, Future[Hospitals]] = OrderedDict()

    def get(self, experiment: Experiment) -> Hospitals:
        """The hospitals of an experiment; a thread that asks for what another one is reading waits for it."""
        resolved = experiment.resolved()
        key = json.dumps([resolved["data"], resolved["federation"]["clients"], experiment.seed], sort_keys=True)
        with self._lock:
            held, first = self._held.get(key), key not in self._held
            held = self._held.setdefault(key, Future())
            self._held.move_to_end(key)
            while len(self._held) > self._size:
                self._held.popitem(last=False)
        if first:
            try:
                held.set_result(hospitals_of(experiment))
            except BaseException as error:
                held.set_exception(error)
        return held.result()
