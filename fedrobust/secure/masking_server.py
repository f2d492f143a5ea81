"""The server's side of masked sums: it checks what arrives, and opens the sum. `masking_client.py` has the protocol."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrobust.secure.masking_terms import (
    ANSWER,
    KEY_BYTES,
    KEYS,
    SEALED,
    SERVER,
    STEPS,
    Directory,
    MaskingError,
    RingElements,
    Terms,
    add_masks,
    commitment,
    decode,
    essence,
    is_dealt,
    mask_key,
    public_key,
)
from fedrobust.secure.messages import COORDINATOR, Kind, Message, MessageError, expect
from fedrobust.secure.shamir import ShareError, recover


@dataclass(frozen=True, eq=False)
class OpenedSum:
    """What a round opened, which is all that the server learns of the updates.

    `mean` (d,) float32 is the weighted mean over `survivors`. `weight` is the sum of their weights: of their capped
    sample counts, or their number.
    """

    mean: NDArray[np.float32]
    weight: float
    survivors: tuple[int, ...]
    dropped: tuple[int, ...]


class MaskingServer:
    """The server in one round: it takes the clients' messages of one step, then returns what the next step needs.

    A client that sends nothing before the next step begins has dropped out; what it sends later is refused. A
    `MaskingError` from a step means that the round is over, without a mean.

    `culprits`: client → what it certainly did wrong, apart from messages that were refused. `notes`: what was wrong and
    may be the fault of either of two clients.
    """

    def __init__(self, terms: Terms, clients: Iterable[int]) -> None:
        self.culprits: dict[int, str] = {}
        self.notes: list[str] = []
        self._terms, self._step = terms, 0
        self._awaited = frozenset(clients)
        self._arrived: set[int] = set()
        self._keys: dict[int, bytes] = {}
        self._owners: dict[bytes, int] = {}
        self._directory = Directory({}, {})
        self._commitments: dict[int, bytes] = {}
        self._prints: dict[tuple[int, int], tuple[bytes, bytes]] = {}
        self._mailbox: dict[int, dict[int, tuple[bytes, bytes, bytes]]] = {}
        self._sum: RingElements = np.zeros(terms.d + 1, dtype=terms.word)
        self._alive: frozenset[int] = frozenset()
        self._answers: dict[int, dict[int, bytes]] = {}

    def receive(self, message: Message) -> None:
        """Take one client's message.

        Raises `MessageError`, which names the client and changes nothing, for a message of another round or step, from
        a client that is not awaited or has sent before, or that an honest client would not send.
        """
        sender = message.sender
        if self._step >= len(STEPS):
            raise MessageError(f"message of client {sender}: the round is over")
        try:
            expect(message, self._terms.run, self._terms.round, None, STEPS[self._step], receiver=SERVER)
        except MessageError as error:
            raise MessageError(f"message of client {sender}: {error}") from None
        if sender not in self._awaited or sender in self._arrived:
            why = "has sent its message already" if sender in self._arrived else "is not awaited"
            raise MessageError(f"message {message.kind.name.lower()}: client {sender} {why}")
        (self._take_keys, self._take_shares, self._take_masked, self._take_answers)[self._step](sender, message.body)
        self._arrived.add(sender)

    def directory(self) -> Message:
        """The public keys of all clients that sent theirs; the message is for all of them."""
        arrived = self._next(0, "sent keys")
        body = b"".join(self._keys[client] for client in sorted(arrived))
        self._directory = Directory.read(body, self._terms)
        return Message(self._terms.run, self._terms.round, COORDINATOR, "clients", Kind.KEYS, body)

    def deliveries(self) -> dict[int, Message]:
        """Client → the sealed shares from its neighbours, for each client that sent shares.

        Raises `MaskingError` if a client would get too few.
        """
        arrived = self._next(1, "sent shares")
        for client in sorted(arrived):
            # It would send no update. Then the next client on the circle would have lost as many neighbours, and so on.
            self._enough(client, self._around(client, arrived), "sent shares")
        rows = {client: [(other, *sent) for other, sent in sorted(self._mailbox[client].items())] for client in arrived}
        self._mailbox = {}
        return {
            client: Message(
                self._terms.run,
                self._terms.round,
                COORDINATOR,
                f"client{client}",
                Kind.KEY_SHARES,
                np.array(sealed, dtype=SEALED).tobytes(),
            )
            for client, sealed in sorted(rows.items())
        }

    def survivors(self) -> Message:
        """The clients that sent a masked update; the message is for all of them.

        Raises `MaskingError` if there are too few to open the sum.
        """
        self._alive = self._next(2, "sent updates")
        for client in self._secrets():
            self._enough(client, self._around(client, self._alive), "are left")
        body = np.array(sorted(self._alive), dtype="<i8").tobytes()
        return Message(self._terms.run, self._terms.round, COORDINATOR, "clients", Kind.UNMASK, body)

    def open(self) -> OpenedSum:
        """The mean of the survivors' updates. No mask is removed before all needed secrets are there.

        Raises `MaskingError` if a secret cannot be put together, or the sum is of no use.
        """
        if self._step != 3:
            raise MaskingError("the updates are not there yet, or the round is over")
        self._step += 1
        self.notes += unreturned(
            (dealer, client)
            for client in sorted(self._arrived)
            for dealer in self._directory.graph[client]
            if dealer in self._commitments and client not in self._answers.get(dealer, {})
        )
        secrets: dict[int, bytes] = {}
        failed: list[MaskingError] = []
        for client, alive in self._secrets().items():  # go through all, so that every culprit is named
            try:
                secrets[client] = self._recovered(client, alive)
            except MaskingError as error:
                failed.append(error)
        if failed:
            raise failed[0]
        masks: list[tuple[bytes, int]] = []
        for client, secret in secrets.items():
            if client in self._alive:
                masks.append((secret, -1))
                continue
            for other in sorted(self._alive.intersection(self._directory.graph[client])):
                key, sign = mask_key(secret, self._directory.keys[other][1], self._terms, other, client)
                masks.append((key, -sign))
        self._answers = {}
        add_masks(self._sum, masks)
        senders, n = len(self._alive), len(self._directory.keys)
        mean, weight = decode(self._sum, self._terms, senders, n)
        gone = sorted(set(self._directory.keys) - self._alive)
        return OpenedSum(mean, weight, tuple(sorted(self._alive)), tuple(gone))

    def _secrets(self) -> dict[int, bool]:
        """The clients whose secret is needed: True for the own mask of a survivor, False for the mask key of a client
        that dropped out after it sent its shares."""
        needed = dict.fromkeys(sorted(self._alive), True)
        for client in sorted(set(self._commitments) - self._alive):
            if self._alive.intersection(self._directory.graph[client]):
                needed[client] = False
        return needed

    def _recovered(self, client: int, alive: bool) -> bytes:
        """The seed of its own mask, or its mask key, from shares that fit their fingerprints."""
        around = self._directory.graph[client]
        sent = self._answers.get(client, {})
        self._enough(client, len(sent), "have sent their share of its secret")
        person = {other: number for number, other in enumerate(around, start=1)}
        shares = {person[other]: share for other, share in sent.items()}
        try:
            secret, wrong = recover(shares, self._terms.shares_needed(len(around)), self._promised(client, alive))
        except ShareError as error:
            self.culprits[client] = "the shares that it dealt do not give the secret that it promised"
            raise MaskingError(f"the secret of client {client} cannot be put together: {error}") from error
        if wrong:
            named = ", ".join(str(other) for other in around if person[other] in wrong)
            self.culprits[client] = f"it dealt wrong shares of its secret, to clients {named}"
        return secret

    def _promised(self, client: int, alive: bool) -> Callable[[bytes], bool]:
        """A test of whether a secret is the one that the client is bound to."""
        if alive:
            return lambda secret: commitment(secret) == self._commitments[client]
        public = essence(self._directory.keys[client][1])
        return lambda secret: essence(public_key(secret)) == public

    def _around(self, client: int, there: frozenset[int]) -> int:
        return len(there.intersection(self._directory.graph[client]))

    def _enough(self, client: int, found: int, what: str) -> None:
        around = len(self._directory.graph[client])
        needed = self._terms.shares_needed(around)
        if found < needed:
            self._step = len(STEPS)
            raise MaskingError(
                f"{found} of the {around} neighbours of client {client} {what}, {needed} are needed: nothing is opened"
            )

    def _next(self, step: int, what: str) -> frozenset[int]:
        """Close a step; from now on await the clients that have taken it. With too few of them the round is over."""
        if self._step != step:
            raise MaskingError(f"the server has taken {self._step} steps of the round, this is number {step}")
        arrived = frozenset(self._arrived)
        self._step, self._awaited, self._arrived = step + 1, arrived, set()
        if len(arrived) < self._terms.minimum:
            self._step = len(STEPS)
            raise MaskingError(
                f"{len(arrived)} clients {what}, at least {self._terms.minimum} are needed: nothing is opened"
            )
        return arrived

    def _take_keys(self, sender: int, body: bytes) -> None:
        if len(body) != KEYS.itemsize or int(np.frombuffer(body, dtype=KEYS)["client"][0]) != sender:
            raise MessageError(f"client {sender} has to send its own two keys")
        row = np.frombuffer(body, dtype=KEYS)[0]
        try:
            channel, mask = essence(bytes(row["channel"])), essence(bytes(row["mask"]))
        except MaskingError as error:  # such a key would end the round for all
            raise MessageError(f"client {sender} sent {error}") from error
        if channel == mask:
            raise MessageError(f"client {sender} sent one key for both purposes")
        for point in (channel, mask):  # at this time only its owner knows a key, unless a link is tapped
            if point in self._owners:
                raise MessageError(f"client {sender} sent a key of another client, {self._owners[point]}")
        self._owners |= {channel: sender, mask: sender}
        self._keys[sender] = body

    def _take_shares(self, sender: int, body: bytes) -> None:
        around = self._directory.graph[sender]
        if len(body) != KEY_BYTES + len(around) * SEALED.itemsize:
            raise MessageError(f"client {sender} has to send a commitment and {len(around)} sealed shares")
        rows = np.frombuffer(body, dtype=SEALED, offset=KEY_BYTES)
        if tuple(rows["client"].tolist()) != around:
            raise MessageError(f"client {sender} has to send shares to its neighbours, by ascending id")
        self._commitments[sender] = body[:KEY_BYTES]
        for other, row in zip(around, rows, strict=True):
            prints = bytes(row["key_print"]), bytes(row["mask_print"])
            self._prints[sender, other] = prints
            self._mailbox.setdefault(other, {})[sender] = (*prints, bytes(row["sealed"]))

    def _take_masked(self, sender: int, body: bytes) -> None:
        if len(body) != self._sum.nbytes:
            raise MessageError(f"client {sender} sent {len(body)} bytes for {self._sum.nbytes} of a masked update")
        self._sum += np.frombuffer(body, dtype=self._terms.word)

    def _take_answers(self, sender: int, body: bytes) -> None:
        if len(body) % ANSWER.itemsize:
            raise MessageError(f"client {sender} sent shares that are cut off")
        shares: dict[int, bytes] = {}
        for row in np.frombuffer(body, dtype=ANSWER):
            dealer, flag, share = int(row["client"]), int(row["survived"]), bytes(row["share"])
            if dealer in shares or dealer not in self._commitments or (dealer, sender) not in self._prints:
                raise MessageError(f"client {sender} sent shares twice, or of who dealt it none")
            survived = dealer in self._alive
            if flag != survived:
                raise MessageError(f"client {sender} sent a share that must not be revealed, or marked it wrongly")
            if not is_dealt(share, self._prints[dealer, sender][survived]):
                raise MessageError(f"client {sender} sent another share of client {dealer} than the one dealt to it")
            shares[dealer] = share
        for dealer, share in shares.items():
            self._answers.setdefault(dealer, {})[sender] = share


def unreturned(pairs: Iterable[tuple[int, int]]) -> list[str]:
    """Notes on shares that did not come back.

    pairs: for each share the client that dealt it, and the client that should have returned it.
    """
    of: defaultdict[int, set[int]] = defaultdict(set)
    by: defaultdict[int, set[int]] = defaultdict(set)
    for dealer, returner in pairs:
        of[dealer].add(returner)
        by[returner].add(dealer)
    notes = []
    while any(of.values()):  # the client in most pairs comes first: few notes, and no accusation
        ends, others = max((of, by), (by, of), key=lambda sides: max(map(len, sides[0].values())))
        client = max(sorted(ends), key=lambda each: len(ends[each]))
        partners = ends.pop(client)
        for partner in partners:
            others[partner].discard(client)
        told = ", ".join(map(str, sorted(partners)))
        dealt = f"client {client} dealt to clients {told}" if ends is of else f"clients {told} dealt to client {client}"
        notes.append(f"shares that {dealt} did not come back: they were not dealt rightly, or are kept back")
    return notes
