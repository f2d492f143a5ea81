"""What secrecy costs each party in a round, in seconds, bytes and memory, beside Flower's SecAgg+ in the same run.

The updates: n float32 rows of d coordinates, longer than the clip. Every message is made, sealed, counted and read as
on a wire, but does not travel; all parties are in one process with one thread. The protocols:

shares      two servers and a dealer: the Gram matrix of sketches (512 columns) is opened, and one weighted sum
replicated  three servers, the same without a dealer
masked      one server; a tenth of the clients drop out between shares and masked update, so that the keys of their
            masks must be recovered; the sparse graph of the least k for which bad luck (`masks.risk`: a tenth collude,
            a tenth drop out) has a probability of at most 1 %; a ring of 32 bits
flower      Flower's own secaggplus_mod and SecAggPlusWorkflow: same k, threshold, drop-outs, bits of the ring
full        the same with everybody as everybody's neighbour
floor       integer products and digests alone, which no server with shares can do without

Seconds are of the CPU first, since other processes may want the machine, then of the clock: medians of repeats, which
go round the protocols in turn; those of a client, and its bytes, are the mean over the clients. What the rule makes of
the Gram matrix is not in them. Flower's messages are turned to bytes by its own code outside of its seconds, ours
inside of ours. Memory is that of a server in a process of its own: the kernel's high-water mark (VmHWM) above what the
process had before the round, when it had played one on few columns.

Flower (the optional dependency `bench`) wants older versions of some packages than this project does, so that `make
bench-secure` puts it into an environment of its own on top of the project's, .venv/bench; the project's stays as it is.
Without Flower it is left out.

    python benchmarks/secure.py [--sizes 50x1e6 100x1e6] [--protocols shares masked flower] [--repeat 3] [--json FILE]
    python benchmarks/secure.py --quick
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from metered import (
    CLIP,
    RUN,
    SERVERS,
    HaltedError,
    Meter,
    Rows,
    held_by,
    masked_round,
    peak_of_masking,
    peak_of_server,
    shared_round,
)

from fedrobust.secure.masking_terms import Terms, risk
from fedrobust.secure.messages import OVERHEAD, digest
from fedrobust.secure.ring import SEED_BYTES, column_chunks, expand, products

SIZES = [(n, d) for n in (10, 20, 50, 100) for d in (420_000, 1_000_000, 11_000_000)]
GOALS_AT = (50, 1_000_000)
PROTOCOLS = (*SERVERS, "masked", "flower", "full")
BAD_LUCK = 0.01
ROW = "{:16} {:11} {:>10} {:>10} {:>15} {:>15}  {}"


@dataclass
class Line:
    """What one party does in a round: seconds of CPU and clock, bytes."""

    protocol: str
    n: int
    d: int
    party: str
    cpu: float | None = None
    clock: float | None = None
    sent: int = 0
    received: int = 0
    note: str = ""

    def __str__(self) -> str:
        if self.cpu is None or self.clock is None:
            return f"{self.protocol:16} {self.note}"
        figures = (f"{self.cpu:.4f} s", f"{self.clock:.4f} s", f"{self.sent:,} B", f"{self.received:,} B")
        return ROW.format(self.protocol, self.party, *figures, self.note).rstrip()


@dataclass
class Goal:
    """A bound on a figure."""

    name: str
    value: float
    sense: str
    bound: float
    unit: str
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether it is kept."""
        return self.value <= self.bound if self.sense == "≤" else self.value >= self.bound

    def __str__(self) -> str:
        figure = f"{self.value:,.4g} {self.unit}" if self.unit != "B" else f"{self.value:,.0f} B"
        bound = f"{self.sense} {self.bound:,.4g}" if self.unit != "B" else f"{self.sense} {self.bound:,.0f}"
        return f"{'PASS' if self.met else 'MISS'}  {self.name:46} {figure:>18} {bound:>16}  {self.note}".rstrip()


@dataclass
class Case:
    """One protocol on one size, and the rounds that were measured."""

    protocol: str
    n: int
    d: int
    rounds: list[Meter] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of whole rounds by the clock, with all that is no party's doing."""

    @property
    def gone(self) -> list[int]:
        """The clients that drop out."""
        return random.Random(self.n).sample(range(self.n), self.n // 10)

    @property
    def terms(self) -> Terms:
        """What the parties of masked sums agree on."""
        k = self.n - 1 if self.protocol == "full" else neighbours(self.n)
        return Terms(RUN, 0, self.d, CLIP, neighbours=k)

    @property
    def gigabytes(self) -> float:
        """Memory that a round takes about: shares or masked updates, messages on their way."""
        kept = {"shares": self.n, "replicated": 2 * self.n, "masked": 0, "flower": self.n, "full": self.n}
        return (8 * kept[self.protocol.removesuffix("-exact")] + 100) * self.d / 1e9

    def play(self, rows: Rows) -> None:
        """One more round, with another graph where the first one has no luck."""
        for last in (False, True):
            meter, start = Meter(), time.perf_counter()
            try:
                self._play(rows, meter)
                break
            except HaltedError:
                if last:
                    raise
        self.seconds.append(time.perf_counter() - start)
        self.rounds.append(meter)

    def lines(self) -> Iterator[Line]:
        """A line for each party, and one for all of them."""
        parties = sorted({party for meter in self.rounds for party, _ in meter.cpu}, key=lambda name: (name[0], name))
        for party in parties:
            share = self.n if party == "client" else 1
            (cpu, clock), last = self.median(party) / share, self.rounds[-1]
            sent, received = last.sent[party] // share, last.received[party] // share
            yield Line(self.protocol, self.n, self.d, party, cpu, clock, sent, received, self._note(party))
        cpu, clock = sum(self.median(party) for party in parties)
        total = sum(self.rounds[-1].sent.values())
        note = f"{len(self.rounds)} rounds"
        yield Line(self.protocol, self.n, self.d, "all", float(cpu), float(clock), total, total, note)

    def median(self, party: str, step: str | None = None) -> np.ndarray:
        """(CPU, clock) of a party, medians over the rounds."""
        return np.median([meter.seconds(party, step) for meter in self.rounds], axis=0)

    def whole(self) -> list[float]:
        """Seconds of CPU of all parties, of each round."""
        return [sum(meter.cpu.values()) for meter in self.rounds]

    def _play(self, rows: Rows, meter: Meter) -> None:
        if self.protocol in SERVERS:
            shared_round(SERVERS[self.protocol], rows, meter)
        elif self.protocol == "masked":
            masked_round(rows, self.terms, self.gone, meter)
        else:
            k = self.terms.neighbours or 0
            flower = importlib.import_module("flower")
            flower.flower_round(rows, k, self.terms.shares_needed(k), self.gone, meter)

    def _note(self, party: str) -> str:
        if self.protocol in SERVERS and party.startswith("server"):
            return f"of it taking in shares {self.median(party, 'receive')[0]:.4f} s"
        return "each" if party == "client" else ""


def neighbours(n: int) -> int:
    """The least even k for which bad luck with the graph is rare enough; everybody, if there is none."""
    found = (k for k in range(4, n - 1, 2) if max(risk(n, k, Terms.threshold, n // 10, n // 10)) <= BAD_LUCK)
    return next(found, n - 1)


def missing() -> str:
    """Why Flower cannot be measured; nothing if it can."""
    try:
        importlib.import_module("flower")
    except ImportError as error:
        return f"left out: {error}"
    return ""


def measured(n: int, d: int, given: argparse.Namespace, known: list[Case]) -> Iterator[Line]:
    """The lines of one size, as soon as its protocols are through; the cases are added to `known`."""
    cases: list[Case] = []
    for protocol in given.protocols:
        case = Case(protocol, n, d)
        reason = missing() if protocol in ("flower", "full") else ""
        expected = foretold(case, known)
        if case.gigabytes > given.memory:
            reason = f"left out: it takes about {case.gigabytes:.0f} GB, over --memory {given.memory:g}"
        elif expected > given.seconds:
            reason = f"left out: it takes about {expected:.0f} s, over --seconds {given.seconds:g}"
        if reason:
            yield Line(protocol, n, d, "", note=reason)
        else:
            cases.append(case)
    rows = Rows(n, d if cases else 1)
    for _ in range(given.repeat):
        for case in cases:
            if not case.seconds or sum(case.seconds) + case.seconds[-1] <= given.seconds:
                case.play(rows)
    known += cases
    if any(case.protocol in SERVERS for case in cases):
        yield from floors(n, d)
    for case in cases:
        yield from case.lines()


def floors(n: int, d: int) -> Iterator[Line]:
    """What no server with shares can do without, from one chunk of columns that stays in the cache."""
    part = column_chunks(n, d)[0]
    left, right = (expand(bytes([number]) * SEED_BYTES, n * part.stop).reshape(n, -1) for number in range(2))
    steps = {"products": partial(products, left, right), "digests": partial(digest, left.data.cast("B"))}
    notes = {"products": "the integer products of one server alone", "digests": "BLAKE3 of all clients' words, once"}
    for name, step in steps.items():
        seconds = np.array([seconds_of(step) for _ in range(7)][1:])
        cpu, clock = np.median(seconds, axis=0) * d / part.stop
        yield Line("floor", n, d, name, float(cpu), float(clock), note=notes[name])


def seconds_of(step: Callable[[], Any]) -> tuple[float, float]:
    """Of CPU and clock."""
    before = time.process_time(), time.perf_counter()
    step()
    return time.process_time() - before[0], time.perf_counter() - before[1]


def foretold(case: Case, known: Sequence[Case]) -> float:
    """Seconds of a round at most, from smaller ones of the protocol: with d, and with the square of n."""
    smaller = [each for each in known if each.protocol == case.protocol and each.n <= case.n and each.d <= case.d]
    near = max(smaller, key=lambda each: (each.n, each.d), default=None)
    return near.seconds[-1] * (case.n / near.n) ** 2 * case.d / near.d if near else 0.0


def goals(cases: Sequence[Case], n: int, d: int) -> Iterator[Goal]:
    """What is to be reached, and what is."""
    by_name = {case.protocol: case for case in cases if (case.n, case.d) == (n, d)}
    if shares := by_name.get("shares"):
        seconds = {party: shares.median(party)[0] for party in ("server 0", "server 1")}
        slower = max(seconds, key=lambda party: seconds[party])
        taking = shares.median(slower, "receive")[0]
        note = f"CPU; {slower}, with the {taking:.2f} s for taking in the shares"
        yield Goal("shares: a server with the opening", seconds[slower], "≤", 1.0, "s", note)
        if flower := by_name.get("flower"):
            theirs, own = flower.median("server")[0], seconds[slower]
            note = f"CPU, {own:.2f} s / {theirs:.2f} s"
            if exact := by_name.get("shares-exact"):
                without = max(exact.median(f"server {number}")[0] for number in range(2))
                note += f"; without a sketch {without:.2f} s, {without / theirs:.2f} ×"
            yield Goal("shares: a server beside Flower's", own / theirs, "≤", 0.15, "×", note)
        client = shares.median("client") / n
        note = f"CPU; {1e3 * client[1]:.1f} ms by the clock"
        yield Goal("shares: a client", 1e3 * client[0], "≤", 10.0, "ms", note)
        sent = shares.rounds[-1].sent["client"] // n
        note = f"8 d + 32; beside it {2 * OVERHEAD} B of two headers and digests"
        yield Goal("shares: a client's upload", sent - 2 * OVERHEAD, "≤", 8 * d + 32, "B", note)
    if (masked := by_name.get("masked")) and (flower := by_name.get("flower")):
        ratio = statistics.median(a / b for a, b in zip(flower.whole(), masked.whole(), strict=False))
        theirs, ours = (statistics.median(case.whole()) for case in (flower, masked))
        note = f"CPU of all parties, {theirs:.2f} s / {ours:.2f} s"
        if full := by_name.get("full"):
            note += f"; its full graph {statistics.median(full.whole()):.2f} s"
        yield Goal("masked: faster than Flower's sparse graph", ratio, "≥", 5.0, "×", note)


def memory_goals(cases: Sequence[Case], n: int, d: int, quick: bool) -> Iterator[Goal]:
    """The same for the memory of servers: what they hold of the updates, and 256 MiB."""
    played = {case.protocol: case for case in cases if (case.n, case.d) == (n, d)}
    for name, kind in SERVERS.items():
        for number in range(kind.servers if name in played else 0):
            if not quick or (name, number) == ("shares", 1):
                peak, held = peak_of_server(kind, number, n, d), held_by(kind, number, n, d)
                yield memory_goal(f"{name}: peak memory of server {number}", peak, held)
    if (masked := played.get("masked")) and not quick:
        peak = peak_of_masking(masked.terms, n, masked.gone)
        yield memory_goal("masked: peak memory of the server", peak, 4 * d)


def memory_goal(name: str, peak: int, held: int) -> Goal:
    """One of them."""
    note = f"it holds {held / 2**20:.0f} MiB; beside that {(peak - held) / 2**20:.0f} of 256 MiB"
    return Goal(name, peak, "≤", held + 256 * 2**20, "B", note)


def size(text: str) -> tuple[int, int]:
    """(n, d) of "20x1e6"."""
    n, d = text.split("x")
    return int(n), int(float(d))


def main(arguments: Sequence[str] | None = None) -> tuple[list[Line], list[Goal]]:
    """Measure, print as it goes, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=size, nargs="+", default=SIZES, metavar="NxD")
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=PROTOCOLS, metavar="PROTOCOL")
    parser.add_argument("--repeat", type=int, default=3, help="rounds of each protocol")
    parser.add_argument("--seconds", type=float, default=120.0, help="leave out what takes more for a round")
    parser.add_argument("--memory", type=float, default=12.0, help="leave out what takes more GB")
    parser.add_argument("--quick", action="store_true", help="one small size: shows that it works, measures nothing")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    given = parser.parse_args(arguments)
    judged = GOALS_AT
    if given.quick:
        given.sizes, given.repeat, judged = [(10, 3000)], 1, (10, 3000)
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    print(
        f"1 thread, medians of up to {given.repeat} rounds; the machine's load is {load:.1f} on {os.cpu_count()} cores"
    )
    lines: list[Line] = []
    cases: list[Case] = []
    for n, d in given.sizes:
        k = neighbours(n)
        print(f"\nn = {n}, d = {d:,}; masks: k = {k}, threshold {Terms(RUN, 0, d, CLIP).shares_needed(k)}, ", end="")
        print(f"{n // 10} drop out")
        print(ROW.format("", "", "CPU", "clock", "sent", "received", "").rstrip())
        for line in measured(n, d, given, cases):
            print(line, flush=True)
            lines.append(line)
    found: list[Goal] = []
    print(f"\ngoals at n = {judged[0]}, d = {judged[1]:,}")
    for goal in chain(goals(cases, *judged), memory_goals(cases, *judged, given.quick)):
        print(goal, flush=True)
        found.append(goal)
    print(f"{sum(goal.met for goal in found)} goals held, {sum(not goal.met for goal in found)} missed", end="")
    print(f"; load {os.getloadavg()[0]:.1f}")
    if given.json:
        about: dict[str, Any] = {"repeat": given.repeat, "load": [load, os.getloadavg()[0]]}
        judgement = [{**asdict(goal), "met": bool(goal.met)} for goal in found]
        about |= {"lines": [asdict(line) for line in lines], "goals": judgement}
        given.json.write_text(json.dumps(about, indent=1, ensure_ascii=False, default=float) + "\n")
    return lines, found


if __name__ == "__main__":
    main()
