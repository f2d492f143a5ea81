"""The timeline of a run, as a file in Chrome's trace format, which chrome://tracing and Perfetto open."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fedrobust.errors import ExperimentError
from fedrobust.timeline import Recording, TimedStep, TimedSteps, recording

logger = logging.getLogger(__name__)

TRACE = "trace.json"
"""The file in a run's folder."""
DRIVER, COORDINATOR, ADVERSARY, MLFLOW = "driver", "coordinator", "adversary", "MLflow"
"""Names of processes; MLflow is a thread of the driver."""
AGGREGATE = "wait for the aggregate"
"""The driver's step in which adversary and coordinator work."""
ROUND = "round"
"""The driver's step that holds all of a round's steps."""
LARGEST = 200_000_000
"""Bytes of the largest trace that is read."""


@dataclass(frozen=True)
class Lane:
    """The steps of one thread, in the order of their starts; seconds since the beginning of the trace."""

    name: str
    steps: tuple[TimedStep, ...]

    def within(self, start: float, end: float) -> list[TimedStep]:
        """Return the parts of its steps that lie within a span of time."""
        return [
            TimedStep(each.name, max(start, each.start), min(end, each.end), each.args)
            for each in self.steps
            if each.start < end and each.end > start
        ]


@dataclass(frozen=True)
class Trace:
    """A run's timeline."""

    lanes: tuple[Lane, ...]
    hosts: int = 1

    def lane(self, name: str) -> Lane:
        """Return the lane with this name; an empty one if there is none."""
        return next((lane for lane in self.lanes if lane.name == name), Lane(name, ()))

    def busiest(self, span: TimedStep, most: int) -> list[Lane]:
        """Return at most `most` lanes with steps in a span of time, those that did something for longest, in order."""
        found = {lane.name: sum(each.seconds for each in lane.within(span.start, span.end)) for lane in self.lanes}
        chosen = sorted((name for name in found if found[name]), key=lambda name: -found[name])[:most]
        return [lane for lane in self.lanes if lane.name in chosen]

    @property
    def median_round(self) -> TimedStep | None:
        """The round of median length, of two in the middle the shorter one; None without a round.

        The first round of new actors also imports libraries, so it counts only if it is the only one.
        """
        rounds = [each for each in self.lane(DRIVER).steps if each.name == ROUND]
        if not rounds:
            return None
        rounds = rounds[1:] or rounds
        middle = median_low(each.seconds for each in rounds)
        return next(each for each in rounds if each.seconds == middle)

    def shares(self) -> dict[str, float]:
        """Return the seconds of each step of the median round; together they are the whole round.

        The driver waits for one thing at a time, so its steps divide the round. While it waits for the aggregate, the
        steps of adversary and coordinator are counted; what remains of that time are messages between processes.
        """
        if (whole := self.median_round) is None:
            return {}
        found: dict[str, float] = {}
        for each in self.lane(DRIVER).within(whole.start, whole.end):
            if each.name == ROUND:
                continue
            if each.name == AGGREGATE:
                for name, seconds in self._aggregate(each).items():
                    found[name] = found.get(name, 0.0) + seconds
            else:
                found[each.name] = found.get(each.name, 0.0) + each.seconds
        return found | {"other": max(0.0, whole.seconds - sum(found.values()))}

    def _aggregate(self, wait: TimedStep) -> dict[str, float]:
        found = {"adversary": sum(each.seconds for each in self.lane(ADVERSARY).within(wait.start, wait.end))}
        steps = self.lane(COORDINATOR).within(wait.start, wait.end)
        whole = sum(each.seconds for each in steps if each.name == ROUND)
        for each in steps:
            if each.name != ROUND:
                name = f"coordinator: {each.name}"
                found[name] = found.get(name, 0.0) + each.seconds
        parts = sum(seconds for name, seconds in found.items() if name.startswith("coordinator"))
        found["coordinator: other"] = max(0.0, whole - parts)
        found["messages"] = max(0.0, wait.seconds - whole - found["adversary"])
        return {name: seconds for name, seconds in found.items() if seconds}


@contextmanager
def traced(path: Path, wanted: bool, about: Mapping[str, str]) -> Iterator[Recording | None]:
    """Record the timeline of the block, if that is wanted, and write it however the block ends. Yields the recording
    for the thread that sends to MLflow.

    path: the file; one of the rounds before the run stopped is removed.
    about: as in `write_trace`.
    """
    path.unlink(missing_ok=True)
    if not wanted:
        yield None
        return
    seen, sending = Recording(), Recording()
    try:
        with recording(seen):
            yield sending
    finally:
        try:
            write_trace(path, trace_of(seen, sending), about)
        except OSError as error:  # the run is more important, and so is the error that ends it
            logger.warning("%s: the timeline could not be written: %s", path, error.strerror)


def trace_of(seen: Recording, tracking: Recording | None = None) -> Trace:
    """Return the timeline of a run.

    seen: what the driver has recorded.
    tracking: what the thread that sends to MLflow has recorded.

    Processes of the driver's host share a clock. Those of other hosts are placed by the time of day there, so they are
    aligned only as well as the clocks of the hosts are. An actor that replaces a dead one has a lane of its own.
    """
    own = seen.recorded()
    hosts = sorted({own.host, *(steps.host for _, steps in seen.others)})
    found: dict[tuple[str, int], list[TimedStep]] = {(DRIVER, 0): list(own.steps)}
    for name, steps in sorted(seen.others, key=lambda each: _order(each[0])):
        label = name if len(hosts) == 1 else f"{name} on host {hosts.index(steps.host) + 1}"
        found.setdefault((label, steps.process), []).extend(_shifted(steps, own))
    if tracking is not None:
        found[MLFLOW, 0] = list(tracking.steps)
    begins = min((each.start for steps in found.values() for each in steps), default=0.0)
    names, seen_before = list[str](), Counter[str]()
    for label, _ in found:
        again = seen_before[label]
        seen_before[label] += 1
        names.append(label + (", restarted" if again else "") + (f" {again} times" if again > 1 else ""))
    lanes = [
        Lane(name, tuple(sorted((_since(begins, each) for each in steps), key=lambda each: (each.start, -each.end))))
        for name, steps in zip(names, found.values(), strict=True)
    ]
    return Trace(tuple(lanes), len(hosts))


def _order(name: str) -> tuple[int, int, str]:
    """Client actors by their number, then adversary and coordinator."""
    number = name.rpartition(" ")[2]
    return (0, int(number), name) if number.isdecimal() else ((ADVERSARY, COORDINATOR).index(name) + 1, 0, name)


def _shifted(steps: TimedSteps, own: TimedSteps) -> Iterator[TimedStep]:
    """The steps of another process on this one's clock."""
    shift = 0.0 if steps.host == own.host else steps.clock - own.clock
    for each in steps.steps:
        yield TimedStep(each.name, each.start + shift, each.end + shift, each.args)


def _since(begins: float, each: TimedStep) -> TimedStep:
    return TimedStep(each.name, each.start - begins, each.end - begins, each.args)


def write_trace(path: Path, trace: Trace, about: Mapping[str, str]) -> None:
    """Write a timeline in Chrome's trace format.

    about: facts that viewers show, e.g. the run.

    Every process is one of the viewer's, MLflow's thread is one of the driver's. Raises `OSError`.
    """
    events: list[dict[str, Any]] = []
    for number, lane in enumerate(trace.lanes, 1):
        process, thread = (1, 2) if lane.name == MLFLOW else (number, 1)
        named = {"pid": process, "tid": thread, "ph": "M"}
        if lane.name != MLFLOW:
            events.append({**named, "name": "process_name", "args": {"name": lane.name}})
            events.append({**named, "name": "process_sort_index", "args": {"sort_index": number}})
        events.append({**named, "name": "thread_name", "args": {"name": lane.name}})
        for each in lane.steps:
            start, end = round(1e6 * each.start), round(1e6 * each.end)
            place = {"pid": process, "tid": thread, "ts": start, "dur": end - start}
            events.append({"name": each.name, "cat": "fedrobust", "ph": "X", **place, "args": each.args})
    clocks = "one host" if trace.hosts == 1 else "hosts are aligned only as well as their clocks are"
    facts = {**about, "clocks": clocks, "hosts": str(trace.hosts)}
    text = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": facts}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(text, separators=(",", ":")) + "\n", encoding="utf-8")
    partial.replace(path)


class _Event(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    name: str = Field(max_length=200)
    ph: str
    pid: int
    tid: int = 1
    ts: int = Field(default=0, ge=0, le=2**53)
    dur: int = Field(default=0, ge=0, le=2**53)
    args: dict[str, Any] = {}


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore")
    traceEvents: list[_Event]  # noqa: N815
    otherData: dict[str, str] = {}  # noqa: N815


_READER: TypeAdapter[_File] = TypeAdapter(_File)


def read_trace(path: Path) -> Trace:
    """Read a timeline that `write_trace` has written. Raises `ExperimentError` for anything else."""
    try:
        if path.stat().st_size > LARGEST:
            raise ExperimentError(f"{path}: larger than {LARGEST // 10**6} MB, so it is no timeline of a run")
        found = _READER.validate_json(path.read_bytes())
    except OSError as error:
        raise ExperimentError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise ExperimentError(f"{path}: no timeline of a run: {error.errors()[0]['msg']}") from None
    names: dict[tuple[int, int], str] = {}
    steps: dict[tuple[int, int], list[TimedStep]] = {}
    for event in found.traceEvents:
        lane = event.pid, event.tid
        if event.ph == "M" and event.name == "thread_name":
            names[lane] = str(event.args.get("name", ""))[:200]
            steps.setdefault(lane, [])
        elif event.ph == "X":
            args = {key: value for key, value in event.args.items() if isinstance(value, int)}
            step = TimedStep(event.name, event.ts / 1e6, (event.ts + event.dur) / 1e6, args)
            steps.setdefault(lane, []).append(step)
    hosts = found.otherData.get("hosts", "1")
    lanes = [Lane(names.get(lane, f"process {lane[0]}"), tuple(own)) for lane, own in steps.items()]
    return Trace(tuple(lanes), int(hosts) if hosts.isdecimal() else 1)
