"""The hospitals' side of the protocols: how updates leave the actor on which they were made."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedrobust.secure import replicated, shares
from fedrobust.secure.masking_client import MaskingClient
from fedrobust.secure.masking_terms import MaskingError, Terms
from fedrobust.secure.messages import Kind, Message, MessageError, run_id, unpack
from fedrobust.secure.privacy import OneMessage, PairwiseMasking, Privacy
from fedrobust.secure.randomness import entropy
from fedrobust.secure.ring import encode
from fedrobust.secure.sharing import SecretSharing
from fedrobust.seeds import generator

logger = logging.getLogger(__name__)

Packet = tuple[int, NDArray[np.uint8]]
"""Client that sent it, and a message's bytes as an array, which Ray passes on without a copy."""


class Sender:
    """Sends the updates of the hospitals on one actor; only messages leave the actor.

    seed: the experiment's, for protocols whose `randomness` is "seed".
    """

    def __init__(self, privacy: Privacy, seed: int) -> None:
        self._privacy, self._seed = privacy, seed
        self._masking: dict[int, tuple[MaskingClient, NDArray[np.float32], float | None]] = {}

    def write(self, round: int, clients: Sequence[int], block: NDArray[np.float32]) -> dict[int, bytes]:
        """Client → its one message, for each of `clients` whose update is finite.

        block: (k, d) the updates of `clients`.
        """
        privacy = self._privacy
        assert isinstance(privacy, OneMessage)
        return {
            client: privacy.write(update, generator(self._seed, "message", round, client))
            for client, update in zip(clients, block, strict=True)
            if np.isfinite(update).all()
        }

    def share(
        self, run: str, number: int, round: int, clients: Sequence[int], block: NDArray[np.float32]
    ) -> tuple[list[Packet], ...]:
        """For each server, the messages of `clients` with their senders.

        run: a `run_id`.
        number: of the round in messages; a round that is repeated has another one.
        round: of the training.
        block: (k, d) the updates of `clients`. One that is not finite cannot be shared, and is left out.
        """
        privacy = self._privacy
        assert isinstance(privacy, SecretSharing)
        split = shares.share if privacy.name == "shares" else replicated.share
        sent: list[list[Packet]] = [[] for _ in range(privacy.servers)]
        for client, update in zip(clients, block, strict=True):
            if not np.isfinite(update).all():
                continue
            secrets = entropy(privacy.randomness, self._seed, "client", round, client)
            messages = split(encode(update, privacy.clip), secrets, run, number, client)
            for packets, message in zip(sent, messages, strict=True):
                packets.append((client, np.frombuffer(message.pack(), dtype=np.uint8)))
        return tuple(sent)

    def begin(
        self,
        run: str,
        number: int,
        groups: Mapping[int, int],
        clients: Sequence[int],
        counts: Mapping[int, float],
        block: NDArray[np.float32],
    ) -> dict[int, bytes]:
        """Begin a round of masks: the first message of each of `clients`.

        run: a `run_id`.
        number: of the round in messages.
        groups: client → number of its group.
        counts: client → sample count, used where counts are hidden weights.
        block: (k, d) the updates of `clients`.
        """
        privacy = self._privacy
        assert isinstance(privacy, PairwiseMasking)
        self._masking = {}
        for client, update in zip(clients, block, strict=True):
            if np.isfinite(update).all():
                agreed = terms(privacy, run, number, groups[client], block.shape[1])
                self._masking[client] = MaskingClient(agreed, client), update, counts.get(client)
        return {client: masking.keys().pack() for client, (masking, _, _) in self._masking.items()}

    def reply(self, received: Mapping[int, bytes]) -> dict[int, bytes]:
        """Client → its answer to the server's message; clients that do not go on are left out.

        These are clients that refuse to go on, that get a message before they have begun, and that fail. The others do
        not lose the round by it.

        received: client → the server's message.
        """
        sent = {}
        for client, data in received.items():
            if client not in self._masking:
                continue
            try:
                sent[client] = _answer(*self._masking[client], unpack(data)).pack()
            except (MaskingError, MessageError):
                continue
            except Exception:
                logger.exception("client %d fails in a round of masks, and has left it", client)
        return sent


def _answer(masking: MaskingClient, update: NDArray[np.float32], count: float | None, message: Message) -> Message:
    if message.kind is Kind.KEYS:
        return masking.shares(message)
    if message.kind is Kind.KEY_SHARES:
        return masking.masked(message, update, count)
    return masking.unmask(message)


def terms(privacy: PairwiseMasking, run: str, number: int, group: int, d: int) -> Terms:
    """What a group agrees on in a round; for the others each group is a run of its own.

    run: a `run_id`.
    number: of the round in messages.
    group: its number.
    d: coordinates of an update.
    """
    return Terms(
        run=run_id(f"{run} group {group}"),
        round=number,
        d=d,
        clip=privacy.clip,
        largest_count=privacy.largest_count,
        neighbours=privacy.neighbours,
        threshold=privacy.threshold,
        bits=privacy.bits,
    )
