"""Lists of the clients whose shares have arrived at a server, with digests. Servers agree by them; an audit log keeps
them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence

from fedrobust.secure.messages import Message, MessageError, unpack

Digests = Mapping[int, tuple[bytes, ...]]
"""Client → a digest of each component of its share."""


def listed(digests: Digests) -> bytes:
    """The body of a message with this list."""
    width = len(next(iter(digests.values()), ()))
    return bytes([width]) + b"".join(struct.pack("<q", c) + b"".join(digests[c]) for c in sorted(digests))


def senders_of(message: Message) -> dict[int, tuple[bytes, ...]]:
    """Client → digests, from a message of `Server.senders`.

    Raises `MessageError` if it cannot be read.
    """
    count, entries = message.body[:1], message.body[1:]
    width = 8 + 32 * int.from_bytes(count, "little")
    if not count or len(entries) % width:
        raise MessageError(f"list of senders of {message.sender} has {len(message.body)} bytes, no whole entries")
    return {
        struct.unpack_from("<q", entries, start)[0]: tuple(
            entries[at : at + 32] for at in range(start + 8, start + width, 32)
        )
        for start in range(0, len(entries), width)
    }


def commitments(lists: Sequence[bytes]) -> dict[int, str]:
    """Client → the SHA-256 of what all servers say about its share: so an audit log is bound to shares that it does not
    see.

    lists: the message of each server.
    """
    found = [senders_of(unpack(data)) for data in lists]
    return {
        client: hashlib.sha256(b"".join(b"".join(each[client]) for each in found)).hexdigest()
        for client in sorted(set.intersection(*map(set, found)))
    }
