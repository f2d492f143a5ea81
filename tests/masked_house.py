"""A federation of masked sums without Ray, whose hospitals fall silent or send what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from acted import House, options

from fedrobust.secure.masking_client import MaskingClient
from fedrobust.secure.messages import Kind, Message, unpack
from fedrobust.secure.sending import Sender

N, D = 9, 1_000
CLIP = {"name": "masked", "clip": 1.0}
GROUPS = {"name": "grouped", "clip": 1.0, "size": 3}


def house(
    privacy: Any, patch: pytest.MonkeyPatch, rule: Any = "mean", n: int = N, workers: int = 3, **more: Any
) -> House:
    return House(options(privacy, rule, n, **more), D, patch, workers)


def silent(patch: pytest.MonkeyPatch, clients: set[int], step: int) -> None:
    """These clients send nothing from this step on: 0 keys, 1 shares, 2 masked updates, 3 answers."""
    kinds = {1: Kind.KEYS, 2: Kind.KEY_SHARES, 3: Kind.UNMASK}
    begin, reply = Sender.begin, Sender.reply

    def begun(self: Sender, *arguments: Any) -> dict[int, bytes]:
        found = begin(self, *arguments)
        return {client: data for client, data in found.items() if step > 0 or client not in clients}

    def replied(self: Sender, received: dict[int, bytes]) -> dict[int, bytes]:
        kept = {
            client: data
            for client, data in received.items()
            if client not in clients or next(at for at, kind in kinds.items() if kind == unpack(data).kind) < step
        }
        return reply(self, kept)

    patch.setattr(Sender, "begin", begun)
    patch.setattr(Sender, "reply", replied)


def spoil(patch: pytest.MonkeyPatch, client: int, kind: Kind, change: Callable[[MaskingClient, Message], Any]) -> None:
    """What a client sends at a step is what `change` makes of it."""
    for method in ("begin", "reply"):
        honest = getattr(Sender, method)

        def spoilt(self: Sender, *arguments: Any, honest: Any = honest) -> dict[int, Any]:
            found: dict[int, Any] = honest(self, *arguments)
            if client in found and (message := unpack(found[client])).kind is kind:
                changed = change(self._masking[client][0], message)
                found[client] = changed.pack() if isinstance(changed, Message) else changed
            return found

        patch.setattr(Sender, method, spoilt)


def small_order(_: MaskingClient, message: Message) -> Message:
    return replace(message, body=message.body[:8] + bytes(64))
