"""Speed and memory of the aggregation, against what it cannot do without and against ByzFL, in one run.

The updates: n float32 rows of d coordinates with a common part and Gaussian noise of a different size in each, f = n/5.
Nobody is far away: the hardest case for a rule that searches subsets. Both sides get torch tensors and the machine's
default of threads. Medians over the repeats, which go round all cases in turn. The sections:

floor    one Gram pass and one weighted sum: what every rule on the Gram matrix costs at least
rules    each rule on the Gram matrix, and each stage with the mean: × the floor
past     each rule with histories: × its own floor, a Gram of 2n rows, a weighted sum, and the new histories
rows     each rule on the rows: torch.sort(updates, dim=0) / it, a goal for those on each coordinate by itself
byzfl    ByzFL / ours, where ByzFL has it; above a budget of time or memory it is left out, and that is said
peak     largest memory of a fresh process, × the updates themselves, which are part of it; on the largest size only
passes   bytes of the updates / seconds of each of the two passes, as a share of a copy's bandwidth, on each device

    python benchmarks/aggregation.py [--sizes 20x1e6 50x1e6] [--sections rules byzfl] [--repeat 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedrobust.aggregation import Combination, CoordinateRule, Mean, Memory, Pipeline, RowRule, Rule, Stage
from fedrobust.aggregation.byzantine import resolve_f
from fedrobust.errors import ExperimentError
from fedrobust.options import members
from fedrobust.updates import ClearUpdates

SIZES = ("10x1e6", "20x1e6", "50x1e6", "100x1e6", "20x1.1e7")
SECTIONS = ("floor", "rules", "past", "rows", "byzfl", "peak", "passes")
SUBSETS = 100_000
"""ByzFL goes through all subsets of n − f rows in MDA and SMEA: not if there are more of them than this."""
NARROW = 1 << 12
"""Columns of the trial from which ByzFL's time is foretold."""

BYZFL: dict[str, tuple[str, dict[str, Any], float]] = {
    "mean": ("Average", {}, 0),
    "median": ("Median", {}, 5),
    "trimmed_mean": ("TrMean", {"f": ...}, 4),
    "geometric_median": ("GeometricMedian", {}, 3),
    "krum": ("Krum", {"f": ...}, 1),
    "multi_krum": ("MultiKrum", {"f": ...}, 1),
    "centered_clipping": ("CenteredClipping", {}, 3),
    "mda": ("MDA", {"f": ...}, 1),
    "monna": ("MoNNA", {"f": ...}, 1),
    "meamed": ("Meamed", {"f": ...}, 10),
    "caf": ("CAF", {"f": ...}, 4),
    "smea": ("SMEA", {"f": ...}, 4),
    "clip": ("Clipping", {}, 2),
    "nnm": ("NNM", {"f": ...}, math.inf),
    "bucketing": ("Bucketing", {"s": 2}, 3),
    "arc": ("ARC", {"f": ...}, 2),
}
"""Our name → ByzFL's class, its arguments (... stands for the run's f), and the memory it needs beside the updates, in
units of them; NNM's is n − f. The rest are its defaults: its geometric median makes three steps."""


@dataclass
class Line:
    """One line of the result: the median seconds of a case and a ratio that a goal may bound."""

    section: str
    n: int
    d: int
    name: str
    seconds: float | None = None
    ratio: float | None = None
    goal: tuple[str, float] | None = None
    note: str = ""

    def verdict(self) -> str:
        """Whether the goal was held; a dash where there is none, or nothing to judge."""
        if self.goal is None or self.ratio is None:
            return "–"
        sense, bound = self.goal
        return "held" if (self.ratio <= bound if sense == "≤" else self.ratio >= bound) else "missed"

    def __str__(self) -> str:
        seconds = "" if self.seconds is None else f"{self.seconds:.4f} s"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        goal = "" if self.goal is None else f"{self.goal[0]} {self.goal[1]:g}"
        text = f"{self.section:7} {self.name:36} {seconds:>12} {ratio:>9} {goal:>6}  {self.verdict():6} {self.note}"
        return text.rstrip()


@dataclass
class Case:
    """The rows of one size, what goes with them, and how a part is run on them."""

    updates: torch.Tensor
    f: int

    @classmethod
    def of(cls, n: int, d: int, device: str = "cpu") -> Case:
        """Updates that look like some; made in place, so that nothing but them takes memory."""
        draw = torch.Generator(device).manual_seed(0)
        updates = torch.empty((n, d), device=device).normal_(generator=draw)
        updates *= torch.linspace(0.5, 1.5, n, device=device)[:, None]
        updates += torch.empty(d, device=device).normal_(generator=draw)
        return cls(updates, n // 5)

    def renew(self) -> None:
        """Other updates of the same kind: rules may keep what they found for equal ones."""
        self.updates *= 1.0 + 2.0**-10

    @property
    def layers(self) -> list[tuple[str, tuple[int, ...]]]:
        """Tensors of a model with so many coordinates: twenty and a head of ten classes."""
        edges = np.linspace(0, self.updates.shape[1] - 650, 21, dtype=int)
        body = [(f"body.{i}", (int(size),)) for i, size in enumerate(np.diff(edges))]
        return [*body, ("head.weight", (10, 64)), ("head.bias", (10,))]

    @property
    def vector(self) -> np.ndarray:
        """A public vector (d,): it stands for the server's own update and for the last aggregate."""
        return self.updates[0].cpu().numpy()

    def declared(self, pipeline: Pipeline) -> int:
        """f, or the largest that the parts allow."""
        n = len(self.updates)
        try:
            return resolve_f(self.f, n, pipeline.rule, pipeline.stages)
        except ExperimentError:
            return resolve_f("largest", n, pipeline.rule, pipeline.stages)

    def run(self, pipeline: Pipeline, memory: Memory | None = None) -> torch.Tensor:
        """The aggregate; `memory` stays as it is."""
        vector, past = self.vector, None if memory is None else replace(memory)
        return self._aggregate(pipeline, root=vector, previous=vector if memory is None else None, memory=past)

    def _aggregate(self, pipeline: Pipeline, **known: Any) -> torch.Tensor:
        return pipeline.aggregate(self.updates, f=self.declared(pipeline), layers=self.layers, **known)

    def passes(self, memory: Memory | None = None, histories: Sequence[str] = ()) -> None:
        """A Gram and a weighted sum, with histories if there are any; the weights are no concern of theirs."""
        protocol = ClearUpdates([self.updates], histories=memory.histories if memory else None)
        protocol.gram(histories=histories)
        protocol.weighted_sum(Combination(np.full(len(self.updates), 1 / len(self.updates))))
        if memory:
            protocol.remembered(histories)

    def remembering(self, pipeline: Pipeline) -> Memory:
        """What five rounds leave behind."""
        memory = Memory()
        for _ in range(5):
            self._aggregate(pipeline, memory=memory)
            self.renew()
        return memory


def pipelines() -> dict[str, Pipeline]:
    """Each rule by itself, with its defaults, and each stage with the mean."""
    stages = {name: Pipeline([stage(), Mean()]) for name, stage in members(Stage).items()}
    return {**{name: Pipeline([rule()]) for name, rule in members(Rule, RowRule).items()}, **stages}


def shown(name: str, pipeline: Pipeline) -> str:
    """A name with what is behind it."""
    return f"{name} + mean" if pipeline.stages else name


def seconds_of(function: Callable[[], Any]) -> float:
    """Seconds of one call, until the GPU, if there is one, has nothing left to do."""
    settle = torch.cuda.synchronize if torch.cuda.is_initialized() else int
    settle()
    start = time.perf_counter()
    function()
    settle()
    return time.perf_counter() - start


def medians(cases: dict[str, Callable[[], Any]], repeat: int, renew: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of each case. Each repeat goes round all of them: a machine's mood changes."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeat + 1):
        renew()
        for name, case in cases.items():
            seconds[name].append(seconds_of(case))
    return {name: statistics.median(each[1:]) for name, each in seconds.items()}  # the first one warms up


def own(case: Case, sections: Sequence[str], repeat: int) -> Iterator[Line]:
    """The floors, our rules, and torch.sort."""
    n, d = case.updates.shape
    cases: dict[str, Callable[[], Any]] = {"Gram pass + weighted sum": case.passes}
    sorting = "torch.sort(dim=0)"
    if "rows" in sections:
        cases[sorting] = partial(torch.sort, case.updates, dim=0)
    lines, floors = [], {}
    for name, pipeline in pipelines().items():
        section = "rows" if isinstance(pipeline.rule, RowRule) else "past" if pipeline.histories else "rules"
        if section not in sections:
            continue
        line, memory = Line(section, n, d, shown(name, pipeline)), None
        lines.append(line)
        try:
            if section == "past":
                memory = case.remembering(pipeline)
                floors[line.name] = "floor with " + ", ".join(pipeline.histories)
                cases[floors[line.name]] = partial(case.passes, memory, pipeline.histories)
            f = case.declared(pipeline)
            case.run(pipeline, memory)
        except ExperimentError as error:
            line.note = f"left out: {error}"
            continue
        if f != case.f:
            line.note = f"f = {f}, the largest it allows"
        if section != "rows":
            line.goal = ("≤", 1.5)
        elif isinstance(pipeline.rule, CoordinateRule):
            line.goal = ("≥", 3.0)
        cases[line.name] = partial(case.run, pipeline, memory)
    seconds = medians(cases, repeat, case.renew)
    for name in [name for name in cases if name not in {line.name for line in lines}]:
        yield Line("floor", n, d, name, seconds[name])
    for line in lines:
        if line.name in seconds:
            line.seconds = seconds[line.name]
            floor = seconds[floors.get(line.name, "Gram pass + weighted sum")]
            line.ratio = seconds[sorting] / line.seconds if line.section == "rows" else line.seconds / floor
            if line.section == "rows":
                line.note = f"{line.seconds / floor:.1f} × the floor  {line.note}".rstrip()
        yield line


def byzfl_call(name: str, f: int, stage: bool) -> Callable[[torch.Tensor], Any]:
    """ByzFL's own, followed by its average where ours is a stage with the mean."""
    import byzfl

    kind, arguments, _ = BYZFL[name]
    given = {key: f if value is ... else value for key, value in arguments.items()}

    def call(rows: torch.Tensor) -> Any:
        found = getattr(byzfl, kind)(**given)(rows)  # a new one each time: its centred clipping remembers
        return byzfl.Average()(found) if stage else found

    return call


def goal_beside_byzfl(name: str, pipeline: Pipeline, n: int) -> float:
    """Never slower than ByzFL; much faster where it goes over all rows for each row, or sorts."""
    if n < 50:
        return 1.0
    if name == "nnm":
        return 50.0
    if isinstance(pipeline.rule, CoordinateRule):
        return 4.0
    return 5.0 if "gram" in pipeline.needs else 1.0


def byzfl_line(case: Case, name: str, pipeline: Pipeline, repeat: int, budget: float, gigabytes: float) -> Line:
    """ByzFL against ours. What ByzFL takes for all columns is foretold from few, and twice as many."""
    (n, d), f, (kind, _, multiple) = case.updates.shape, case.declared(pipeline), BYZFL[name]
    line = Line("byzfl", n, d, f"{kind} / {shown(name, pipeline)}", goal=("≥", goal_beside_byzfl(name, pipeline, n)))
    need = case.updates.nbytes * (1 + min(multiple, n - f)) / 1e9
    if name in ("mda", "smea") and math.comb(n, f) > SUBSETS:
        line.note = f"left out: ByzFL goes through C({n}, {f}) = {math.comb(n, f):.0e} subsets"
        return line
    if need > gigabytes:
        line.note = f"left out: ByzFL needs about {need:.0f} GB, over --peer-memory {gigabytes:g}"
        return line
    call, narrow = byzfl_call(name, f, bool(pipeline.stages)), min(NARROW, d // 2)
    few, more = (case.updates[:, : narrow * k].clone() for k in (1, 2))
    call(few.clone())
    short, long = seconds_of(partial(call, few)), seconds_of(partial(call, more))
    expected = max(long, short + (long - short) / narrow * (d - narrow))
    if expected > budget:
        line.note = f"left out: ByzFL needs about {expected:.0f} s, over --peer-seconds {budget:g}"
        return line
    ours, theirs = [], []
    while len(theirs) < repeat and sum(theirs) <= budget:
        case.renew()
        # A new copy for each: some of its stages overwrite their input, and a new copy is partly in the cache.
        theirs.append(seconds_of(partial(call, case.updates.clone())))
        ours.append(seconds_of(partial(replace(case, updates=case.updates.clone()).run, pipeline)))
    line.seconds = statistics.median(ours)
    line.ratio = statistics.median(theirs) / line.seconds
    line.note = f"ByzFL {statistics.median(theirs):.4f} s, {len(theirs)} times"
    return line


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024


def peak(name: str, n: int, d: int) -> float:
    """The largest memory of this process while it makes and aggregates updates, × the updates (and histories).

    What Python and its libraries take is not counted: everything has run once on few columns before.
    """
    pipeline = pipelines()[name]
    few = Case.of(n, 2048)
    few.run(pipeline, few.remembering(pipeline) if pipeline.histories else None)
    before = resident("VmRSS")
    case = Case.of(n, d)
    memory = case.remembering(pipeline) if pipeline.histories else None
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    case.run(pipeline, memory)
    return (resident("VmHWM") - before) / (case.updates.nbytes * (1 + len(pipeline.histories)))


def peak_lines(n: int, d: int, names: Sequence[str] | None = None) -> Iterator[Line]:
    """`peak` of each rule, each in a process of its own."""
    for name, pipeline in pipelines().items():
        if names is not None and name not in names:
            continue
        line = Line("peak", n, d, shown(name, pipeline), goal=("≤", 1.3))
        if pipeline.histories:
            line.note = "× updates and histories"
        command = [sys.executable, __file__, "--peak", name, "--sizes", f"{n}x{d}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            line.note = "left out: " + (done.stderr.strip().splitlines() or ["the process ended"])[-1]
        else:
            line.ratio = float(done.stdout)
        yield line


def pass_lines(n: int, d: int, device: str, repeat: int) -> Iterator[Line]:
    """The bandwidth of the two passes on a device, as a share of a copy's, which reads and writes."""
    case = Case.of(n, d, device)
    protocol, target, size = ClearUpdates([case.updates]), torch.empty_like(case.updates), case.updates.nbytes
    bytes_moved = {"copy": 2.0 * size, "Gram pass": size, "weighted sum": size + size / n}
    cases: dict[str, Callable[[], Any]] = {
        "copy": partial(target.copy_, case.updates),
        "Gram pass": protocol.gram,
        "weighted sum": partial(protocol.weighted_sum, Combination(np.full(n, 1 / n))),
    }
    seconds = medians(cases, repeat, case.renew)
    rates = {name: moved / seconds[name] for name, moved in bytes_moved.items()}
    for name, rate in rates.items():
        note = f"{rate / 1e9:.1f} GB/s"
        yield Line("passes", n, d, f"{device}: {name}", seconds[name], rate / rates["copy"], note=note)


def measured(given: argparse.Namespace) -> Iterator[Line]:
    """All lines, size by size."""
    sections, repeat = given.sections, given.repeat
    for n, d in given.sizes:
        print(f"\nn = {n}, d = {d:,}, f = {n // 5}: {n * d * 4 / 1e6:,.0f} MB of updates", flush=True)
        case = Case.of(n, d)
        if {"floor", "rules", "past", "rows"} & {*sections}:
            yield from own(case, sections, repeat)
        if "byzfl" in sections:
            for name, pipeline in pipelines().items():
                if name in BYZFL:
                    yield byzfl_line(case, name, pipeline, repeat, given.peer_seconds, given.peer_memory)
        del case
        if "peak" in sections and (n, d) == max(given.sizes, key=math.prod):
            yield from peak_lines(n, d)
        if "passes" in sections:
            for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
                yield from pass_lines(n, d, device, repeat)


def size(text: str) -> tuple[int, int]:
    """(n, d) of "20x1e6"."""
    n, d = text.split("x")
    return int(n), int(float(d))


def main(arguments: Sequence[str] | None = None) -> list[Line]:
    """Measure, print as it goes, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=size, nargs="+", default=[size(text) for text in SIZES], metavar="NxD")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each case")
    parser.add_argument("--peer-seconds", type=float, default=60.0, help="leave ByzFL out above so many")
    parser.add_argument("--peer-memory", type=float, default=16.0, help="leave ByzFL out above so many GB")
    parser.add_argument("--json", type=Path, help="write the lines there too")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.peak:
        print(peak(given.peak, *given.sizes[0]))
        return []
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {given.repeat}", end="")
    print(f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU")
    print(f"{'section':7} {'':36} {'ours':>12} {'ratio':>9} {'goal':>6}")
    lines = []
    for line in measured(given):
        print(line, flush=True)
        lines.append(line)
    missed = [line for line in lines if line.verdict() == "missed"]
    print(f"\n{sum(line.verdict() == 'held' for line in lines)} goals held, {len(missed)} missed")
    for line in missed:
        print(f"missed at n = {line.n}, d = {line.d:,}: {line.section} {line.name}: {line.ratio:.2f}")
    if given.json:
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "repeat": given.repeat}
        found = [{**asdict(line), "verdict": line.verdict()} for line in lines]
        given.json.write_text(json.dumps({**about, "lines": found}, indent=1, ensure_ascii=False) + "\n")
    return lines


if __name__ == "__main__":
    main()
