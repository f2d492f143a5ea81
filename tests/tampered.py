"""Tampering with messages, for the fuzzers: a draw, and the bytes of an honest message → other bytes."""

from __future__ import annotations

from dataclasses import replace

from fedrobust.secure.messages import Kind, run_id, unpack


class FaultError(AssertionError):
    """What a fuzzer looks for."""


def flipped(draw, data):
    """One bit, anywhere in the message."""
    at = draw.randrange(8 * len(data))
    return data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :]


def cut(draw, data):
    """Cut, or with extra bytes, or nothing but noise."""
    return draw.choice((data[: draw.randrange(len(data))], data + draw.randbytes(1), draw.randbytes(len(data))))


def resized(draw, data):
    """The same of the body, with a right digest."""
    message = unpack(data)
    body = draw.choice((message.body[: draw.randrange(len(message.body) + 1)], message.body + draw.randbytes(4)))
    return replace(message, body=body).pack()


def rewritten(draw, data):
    """Parts of the body drawn or set to an extreme, with a right digest."""
    message = unpack(data)
    body = bytearray(message.body)
    for _ in range(draw.choice((1, 1, 3))):
        size = draw.choice((1, 8, 32, 33))
        first = draw.randrange(len(body) + 1)
        end = min(first + size, len(body))
        body[first:end] = draw.choice((draw.randbytes(size), bytes(size), b"\xff" * size))[: end - first]
    return replace(message, body=bytes(body)).pack()


def relabelled(draw, data):
    """Of another kind, round, run or sender, or for somebody else."""
    message = unpack(data)
    changes = (
        {"kind": draw.choice([kind for kind in Kind if kind != message.kind])},
        {"round": message.round + 1},
        {"run": run_id("another")},
        {"sender": draw.randrange(-12, 12)},
        {"receiver": draw.choice(("server0", "clients", ""))},
    )
    return replace(message, **draw.choice(changes)).pack()
