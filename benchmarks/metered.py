"""One round of a protocol with all parties in one process, what it costs each of them, and the memory of a server."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fedrobust.aggregation import Combination
from fedrobust.secure.local import LocalParties, introduce
from fedrobust.secure.masking_client import MaskingClient
from fedrobust.secure.masking_server import MaskingServer
from fedrobust.secure.masking_terms import MaskingError, Terms
from fedrobust.secure.messages import COORDINATOR, DEALER, HEADER, Message, number_of, run_id, unpack
from fedrobust.secure.replicated import ReplicatedServer
from fedrobust.secure.ring import encode
from fedrobust.secure.shared_updates import SharedUpdates
from fedrobust.secure.shares import ShareServer
from fedrobust.secure.sharing import SKETCH
from fedrobust.secure.weights import shortened

RUN = run_id("benchmark")
CLIP = 1.0
CHECKED = 64
"""Columns of a result that are held against the sum in the clear."""
Name = Literal["shares", "replicated"]


class Kind(NamedTuple):
    """A protocol of secret shares, with the Gram matrix of sketches of so many columns, or of the updates."""

    name: Name
    server: type[ShareServer] | type[ReplicatedServer]
    servers: int
    sketch: int | None


SERVERS = {
    "shares": Kind("shares", ShareServer, 2, SKETCH),
    "shares-exact": Kind("shares", ShareServer, 2, None),
    "replicated": Kind("replicated", ReplicatedServer, 3, SKETCH),
    "replicated-exact": Kind("replicated", ReplicatedServer, 3, None),
}
METHODS: dict[str, tuple[str, ...]] = {
    "server": (
        *("introduce", "meet", "secrets", "learn", "begin", "receive", "senders", "agree"),
        *("receive_triple", "difference", "add_difference", "check_share", "drop", "gram_share", "combine_share"),
    ),
    "masking": ("receive", "directory", "deliveries", "survivors", "open"),
}


class HaltedError(Exception):
    """Too many neighbours of some client have dropped out: the round is repeated with another graph."""


class Rows:
    """n updates of d coordinates, longer than the clip, in the memory of two."""

    def __init__(self, n: int, d: int) -> None:
        self.n, self.d = n, d
        self._two = np.random.default_rng(0).standard_normal((2, d), dtype=np.float32)
        self._two *= np.float32(2.0 * CLIP / math.sqrt(d))
        self._norms = [float(np.linalg.norm(each.astype(np.float64))) for each in self._two]

    def __getitem__(self, row: int) -> np.ndarray:
        """Row i, (d,) float32: one of the two, shifted."""
        return np.roll(self._two[row % 2], row)

    def expected(self, weights: Mapping[int, float], clip: float = CLIP) -> np.ndarray:
        """The first columns of Σ weights_i row_i, each row clipped to the norm `clip`."""
        total = np.zeros(min(CHECKED, self.d))
        for row, weight in weights.items():
            total += weight * min(clip / self._norms[row % 2], 1.0) * self[row][: len(total)].astype(np.float64)
        return total


class Meter:
    """Seconds of each (party, step), and the bytes that each party sent and received.

    Who calls another party waits, and its clocks stand still. The clients are one party together.
    """

    def __init__(self) -> None:
        self.cpu: dict[tuple[str, str], float] = defaultdict(float)
        self.wall: dict[tuple[str, str], float] = defaultdict(float)
        self.sent: dict[str, int] = defaultdict(int)
        self.received: dict[str, int] = defaultdict(int)
        self._running: list[tuple[str, str] | None] = [None]
        self._mark = (0.0, 0.0)

    @contextmanager
    def of(self, party: str | None, step: str = "") -> Iterator[None]:
        """What happens inside is the party's doing; None: nobody's."""
        self._charge()
        self._running.append(None if party is None else (party, step))
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def watch(self, party: str, something: Any, methods: Sequence[str]) -> None:
        """From now on these methods of something are the party's doing."""
        for name in methods:
            if hasattr(something, name):
                setattr(something, name, partial(self._measured, party, name, getattr(something, name)))

    def carry(self, size: int, sender: str, receivers: Sequence[str]) -> None:
        """Count a message."""
        self.sent[sender] += size * len(receivers)
        for receiver in receivers:
            self.received[receiver] += size

    def seconds(self, party: str, step: str | None = None) -> np.ndarray:
        """(CPU, clock) of a party, in one step or all."""
        steps = [key for key in self.cpu if key[0] == party and step in (None, key[1])]
        return np.array([sum(self.cpu[key] for key in steps), sum(self.wall[key] for key in steps)])

    def _measured(self, party: str, step: str, function: Callable[..., Any], *arguments: Any) -> Any:
        with self.of(party, step):
            return function(*arguments)

    def _charge(self) -> None:
        now = time.process_time(), time.perf_counter()
        if (key := self._running[-1]) is not None:
            self.cpu[key] += now[0] - self._mark[0]
            self.wall[key] += now[1] - self._mark[1]
        self._mark = now


# shares and replicated


class Sending(Mapping[int, list[bytes]]):
    """Client → its messages, made when they are asked for: they lie at the servers alone."""

    def __init__(self, rows: Rows, parties: LocalParties, meter: Meter) -> None:
        self._rows, self._parties, self._meter = rows, parties, meter

    def __getitem__(self, client: int) -> list[bytes]:
        with self._meter.of(None):
            update = self._rows[client]
        with self._meter.of("client", "share"):
            return self._parties.sent(encode(update, CLIP), 0, client)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._rows.n))

    def __len__(self) -> int:
        return self._rows.n


def shared_round(kind: Kind, rows: Rows, meter: Meter, hosted: Hosted | None = None) -> None:
    """A round with a weighted sum; `hosted` is a server in a process of its own."""
    servers = [f"server {number}" for number in range(kind.servers)]

    def wire(data: bytes) -> bytes:
        """Count a message by its header."""
        with meter.of(None):
            sender, receiver = _ends(data)
            others = [each for each in [*servers, "coordinator"] if each != sender]
            meter.carry(len(data), sender, others if receiver == "all" else [receiver])
        return data

    parties = LocalParties(kind.name, RUN, rows.d, wire=wire, sketch=kind.sketch)
    for number, server in enumerate(parties.servers):
        if hosted is not None and hosted.number == number:
            hosted.stand_in(server, METHODS["server"])
        meter.watch(servers[number], server, METHODS["server"])
    introduce(parties.servers, parties.dealer)  # once more, for the one that is elsewhere
    if kind.name == "shares":
        meter.watch("dealer", parties.dealer, ["triple"])
    whole, factor = shortened(np.linspace(1.0, 2.0, rows.n) / (1.5 * rows.n))
    weights = whole * factor
    with meter.of("coordinator", "round"):
        parties.receive(0, Sending(rows, parties, meter))
        opened = SharedUpdates(parties, rows.d, CLIP)
        opened.gram()
        aggregate = opened.combine(Combination(weights))
    if opened.dropped or not opened.finite_rows().all():
        raise RuntimeError("an honest round was not taken for one")
    check(aggregate, rows.expected(dict(enumerate(weights.tolist()))), 1e-3)  # the servers' noise


def _ends(data: bytes) -> tuple[str, str]:
    """Who sent a message, and to whom it goes."""
    sender, receiver = HEADER.unpack_from(data)[4:6]
    known = {COORDINATOR: "coordinator", DEALER: "dealer"}
    name = known.get(sender) or ("client" if sender >= 0 else f"server {number_of(sender)}")
    return name, receiver.rstrip(b"\0").decode().replace("server", "server ")


def check(aggregate: np.ndarray, expected: np.ndarray, relative: float = 1e-5) -> None:
    """RuntimeError for a result whose first columns are not those in the clear."""
    if np.abs(aggregate[: len(expected)] - expected).max() > relative * np.abs(expected).max():
        raise RuntimeError("the result is not the one in the clear")


# masked


def masked_round(rows: Rows, terms: Terms, gone: Collection[int], meter: Meter, hosted: Hosted | None = None) -> None:
    """A round in which the clients `gone` drop out after they have sent shares of their keys."""
    clients = {client: MaskingClient(terms, client) for client in range(rows.n)}
    server = MaskingServer(terms, clients)
    if hosted is not None:
        hosted.stand_in(server, METHODS["masking"])
    there = [client for client in clients if client not in gone]

    def up(client: int, step: str, *arguments: Any) -> None:
        with meter.of("client", step):
            data = getattr(clients[client], step)(*arguments).pack()
        meter.carry(len(data), "client", ["server"])
        with meter.of("server", "receive"):
            server.receive(unpack(data))

    def down(message: Message, receivers: int = 1) -> bytes:
        data = message.pack()
        meter.carry(len(data), "server", ["client"] * receivers)
        return data

    def read(data: bytes) -> Message:
        with meter.of("client", "read"):
            return unpack(data)

    for client in clients:
        up(client, "keys")
    with meter.of("server", "directory"):
        directory = down(server.directory(), rows.n)
    for client in clients:
        up(client, "shares", read(directory))
    with meter.of("server", "deliveries"):
        deliveries = {client: down(message) for client, message in server.deliveries().items()}
    for client in there:
        up(client, "masked", read(deliveries[client]), rows[client])
    with meter.of("server", "survivors"):
        try:
            survivors = down(server.survivors(), len(there))
        except MaskingError as error:
            raise HaltedError(str(error)) from error
    for client in there:
        up(client, "unmask", read(survivors))
    with meter.of("server", "open"):
        opened = server.open()
    check(opened.mean, rows.expected(dict.fromkeys(there, 1 / len(there))), 1e-3)  # 26 bits of coordinates of 1/√d


# The memory of a server


class Hosted:
    """A server in a process of its own: what is asked of its stand-in here is answered there."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        context = multiprocessing.get_context("spawn")
        self._connection, there = context.Pipe()
        self._process = context.Process(target=_host, args=(there,), daemon=True)
        self._process.start()

    def make(self, kind: Callable[..., Any], *arguments: Any) -> None:
        """Start with a new server."""
        self._call("make", kind, *arguments)

    def stand_in(self, server: Any, methods: Sequence[str]) -> None:
        """Have these methods of `server` answered there."""
        self._server = server
        for name in methods:
            if hasattr(server, name):
                setattr(server, name, self._agree if name == "agree" else partial(self._call, name))

    def rest(self) -> None:
        """Memory counts from now on."""
        self._call("rest")

    def peak(self) -> int:
        """Bytes that were taken at most since then; the process ends."""
        found: int = self._call("peak")
        self._process.join()
        return found

    def _agree(self, *arguments: Any) -> Any:
        self._server.stack.clients = self._call("agree", *arguments)  # asked of it by who deals out the work
        return self._server.clients

    def _call(self, name: str, *arguments: Any) -> Any:
        self._connection.send((name, [bytes(each) if isinstance(each, memoryview) else each for each in arguments]))
        answer = self._connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def _host(connection: Connection) -> None:
    server, before, name = None, 0, ""
    while name != "peak":
        name, arguments = connection.recv()
        answer: Any = None
        try:
            if name == "make":
                server = arguments[0](*arguments[1:])
            elif name == "rest":
                before = _resident("VmRSS")
                Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
            elif name == "peak":
                answer = _resident("VmHWM") - before
            else:
                answer = getattr(server, name)(*arguments)
        except Exception as error:
            answer = error
        del arguments
        connection.send(answer)
        del answer


def _resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024


def peak_of_server(kind: Kind, number: int, n: int, d: int) -> int:
    """Bytes that a round takes of a server's memory at most."""
    hosted = Hosted(number)
    for rows in (Rows(8, 2048), Rows(n, d)):  # the first round loads what is loaded once
        hosted.make(partial(kind.server, sketch=kind.sketch), number, RUN, rows.d)
        hosted.rest()
        shared_round(kind, rows, Meter(), hosted)
    return hosted.peak()


def peak_of_masking(terms: Terms, n: int, gone: Collection[int]) -> int:
    """The same of the server of `masked`."""
    hosted = Hosted()
    for few, clients, out in ((Terms(RUN, 0, 2048, CLIP), 8, ()), (terms, n, gone)):
        hosted.make(MaskingServer, few, range(clients))
        hosted.rest()
        masked_round(Rows(clients, few.d), few, out, Meter(), hosted)
    return hosted.peak()


def held_by(kind: Kind, number: int, n: int, d: int) -> int:
    """Bytes of the shares that a server holds as words; seeds are next to nothing."""
    return 8 * n * d * sum(not seed for _, seed in kind.server(number, RUN, d).holds)
