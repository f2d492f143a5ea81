"""`replicated`: three servers, each with two of the three parts of an update, open a Gram matrix without a dealer.

u = x_0 + x_1 + x_2 mod 2^64; server k holds x_k and x_{k+1} (T. Araki et al., High-throughput semi-honest secure
three-party computation with an honest majority, CCS 2016). Of U Uᵀ = Σ X_j X_lᵀ it computes alone

    T_k = Z + Zᵀ with Z = X_k (X_k + 2 X_{k+1})ᵀ, so that T_k = 2 (X_k X_kᵀ + X_k X_{k+1}ᵀ + X_{k+1} X_kᵀ),

one product, and opens T_k blinded by a share of zero: their sum is twice the Gram matrix. Where norms suffice, of all
this only the diagonal is computed. The servers exchange nothing else, unless histories must be truncated. No two of the
three may collude.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from fedrobust.secure.arguments import require_rows
from fedrobust.secure.lines import Line, grown, whole
from fedrobust.secure.messages import (
    Kind,
    Message,
    MessageError,
    borrowed,
    expect,
    in_place,
    server_id,
    server_name,
    unpack,
)
from fedrobust.secure.ring import SEED_BYTES, Entropy, Words, column_chunks, derived, expand
from fedrobust.secure.server import Server

ENTRY = struct.Struct("<Qq")
"""Number of the history, and id of the client."""


def share(encoded: Words, entropy: Entropy, run: str, round: int, sender: int) -> tuple[Message, Message, Message]:
    """A client's messages to the servers 0, 1 and 2: x_0 and x_1 are seeds, x_2 is words.

    encoded: (d,) the update, as `ring.encode` returns it.
    entropy: source of the seeds, which must be fresh in every round.
    run: a `run_id`.
    round: the number in messages.
    sender: the client's id.
    """
    first, second = entropy(SEED_BYTES), entropy(SEED_BYTES)
    room, d = SEED_BYTES // 8, len(encoded)
    (to_1, whole_1), (to_2, whole_2) = (in_place(8 * (room + d)) for _ in range(2))
    to_1[:room], to_2[d:] = np.frombuffer(second, dtype=np.int64), np.frombuffer(first, dtype=np.int64)
    words = expand(first, d, out=to_1[room:])
    words += expand(second, d, out=to_2[:d])
    np.subtract(encoded, words, out=words)
    to_2[:d] = words
    return (
        Message(run, round, sender, server_name(0), Kind.SEED, first + second),
        Message(run, round, sender, server_name(1), Kind.WORDS, borrowed(to_1), whole_1),
        Message(run, round, sender, server_name(2), Kind.WORDS, borrowed(to_2), whole_2),
    )


class ReplicatedServer(Server):
    """Server 0, 1 or 2 of the three; arguments as for `Server`.

    After `agree`: `gram_share`. At the end of a round with the histories "sum" or "average", the messages that
    `remember` of server 0 returns go to `receive_reshared` of server 1.
    """

    parties: ClassVar[int] = 3

    def __init__(self, number: int, run: str, d: int, **options: Any) -> None:
        if number not in (0, 1, 2):
            raise ValueError(f"servers are 0, 1 and 2, found {number}")
        self.holds = tuple((k, k < 2) for k in (number, (number + 1) % 3))
        super().__init__(number, run, d, **options)
        self._awaited: set[tuple[str, int]] = set()

    def begin(self, round: int, clients: Sequence[int], training: int | None = None) -> None:
        super().begin(round, clients, training)
        # Messages about a history that have not come by now are lost. The coordinator finds that what is left is
        # impossible, and lets the history start again.
        for name, client in self._awaited:
            for lines in self.stack.past[name].values():
                lines.pop(client, None)
        self._awaited.clear()

    def gram_share(self) -> bytes:
        """Its part of twice the Gram matrix (rows, rows), or of its diagonal (rows,); once in a round."""
        self._after("check")
        self._open_gram()
        (mine, _), (other, _) = self.holds
        total = np.zeros(self._shape, dtype=np.int64)
        for columns in column_chunks(self.stack.rows, self.stack.width):
            left, right = self.stack.chunk(mine, columns), self.stack.chunk(other, columns)
            right *= 2
            right += left
            total += self._multiplied(left, right)
        return self._opened(Kind.GRAM, total + total.T, "gram")

    def remember(self, rows: Sequence[int], coefficients: Words) -> list[bytes]:
        """End the round: the histories grow by these rows.

        rows: which of the round's updates.
        coefficients: public ones, at 12 fraction bits, for the history "average".

        Truncation works between two parties: server 0 has x_0 + x_1, the others x_2 (P. Mohassel, P. Rindal, ABY3, CCS
        2018). The result of server 0 is shared again: x_0 is a seed that it has in common with server 2; x_1 is what it
        sends.
        """
        self._after("gram")
        require_rows(rows, coefficients, len(self.clients))
        self._once("remember")
        messages = []
        for name in self.histories:
            for row, coefficient in zip(rows, coefficients.tolist(), strict=True):
                if message := self._remember(name, self.clients[row], coefficient):
                    messages.append(message)
        return messages

    def receive_reshared(self, data: bytes) -> None:
        """Take a component of a history, which server 0 sends to server 1."""
        name = server_name(self.number)
        message = expect(unpack(data), self.run, self.round, server_id(0), Kind.RESHARED, ENTRY.size + 8 * self.d, name)
        place, client = ENTRY.unpack_from(message.body)
        entry = (self.histories[place] if place < len(self.histories) else "", client)
        if entry not in self._awaited:
            raise MessageError(f"the history of client {client} is not awaited, or has come already")
        self._awaited.discard(entry)
        words = np.frombuffer(message.body, dtype="<i8", offset=ENTRY.size)
        self.stack.past[entry[0]][1][client] = words - self._pad(*entry)

    def restore(self, memory: Mapping[str, Mapping[int, Mapping[int, Line]]], round: int, functionals: int) -> None:
        super().restore(memory, round, functionals)
        self._awaited.clear()

    def forget(self, name: str, client: int) -> None:
        super().forget(name, client)
        self._awaited.discard((name, client))

    def _remember(self, name: str, client: int, coefficient: int) -> bytes | None:
        past, current = self.stack.past[name], self.stack.current
        if name == "last":
            for component, _ in self.holds:
                past[component][client] = current[component][client]
            return None
        if self.number > 0:
            past[2][client] = self._grown(name, client, (2,), coefficient, second=True)
            if self.number == 1:
                self._awaited.add((name, client))
            else:
                past[0][client] = self._reshared(name, client)
            return None
        rest = self._grown(name, client, (0, 1), coefficient, second=False)
        past[0][client] = seed = self._reshared(name, client)
        rest -= expand(seed, self.d)
        past[1][client] = rest
        hidden = rest + self._pad(name, client)  # whoever passes it on may know two of three components
        body = ENTRY.pack(self.histories.index(name), client) + hidden.tobytes()
        return self._message(Kind.RESHARED, body, server_name(1))

    def _grown(self, name: str, client: int, parts: Sequence[int], coefficient: int, second: bool) -> Words:
        past = self._sum([self.stack.past[name][part].get(client) for part in parts])
        return grown(name, past, self._sum([self.stack.current[part][client] for part in parts]), coefficient, second)

    def _sum(self, lines: Sequence[Line]) -> Words:
        total = np.zeros(self.d, dtype=np.int64)
        for line in lines:
            total += whole(line, self.d)
        return total

    def _reshared(self, name: str, client: int) -> bytes:
        """A fresh component 0 of a history, which servers 0 and 2 derive without a message."""
        return derived(self.links.edge(0, 2), f"history {self.round}/{name}/{client}")

    def _pad(self, name: str, client: int) -> Words:
        """The words that hide one message from server 0 to server 1."""
        return expand(derived(self.links.session_edge(0, 1), f"{self.round}/reshared/{name}/{client}"), self.d)

    def _fit(self, digests: Sequence[tuple[bytes, ...]]) -> bool:
        """Whether each two servers got the same words for the component that both have."""
        return all(digests[k][1] == digests[(k + 1) % 3][0] for k in range(3))
