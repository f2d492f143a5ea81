"""Messages between the parties of a protocol as they go over a wire: typed, sized, bound to one run and one round."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from hmac import compare_digest
from typing import Any, cast

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from fedrobust.updates import NotOpened

MAGIC = b"FRSA"
VERSION = 1
HEADER = struct.Struct("<4sB16sQq16sBQ")
"""Magic, version, run, round, sender, receiver, kind, length of the body."""
SEAL = 32
"""Bytes at the end: a digest, or what replaces it."""
OVERHEAD = HEADER.size + SEAL
"""Bytes of a message apart from its body."""

COORDINATOR, DEALER = -1, -2
"""Sender ids of parties that are no clients; a client's id is never negative."""


def server_id(number: int) -> int:
    """The sender id of server `number` (0, 1, 2)."""
    return -10 - number


def number_of(sender: int) -> int:
    """The number of the server with this sender id."""
    return -10 - sender


def server_name(number: int) -> str:
    """The receiver name of server `number` (0, 1, 2)."""
    return f"server{number}"


class MessageError(NotOpened):
    """A message that is damaged, or is not the expected one."""


class Kind(IntEnum):
    """What a message contains."""

    SEED = 1
    """A share as 32 bytes to be expanded: client → server."""
    WORDS = 2
    """A share as d words: client → server."""
    TRIPLE = 3
    """Seeds, and for one server the correction: dealer → server."""
    SENDERS = 4
    """The clients whose shares have arrived, with digests: server → server and coordinator."""
    DIFFERENCE = 5
    """A share of some columns of U − A: server → server."""
    GRAM = 6
    """A share of the Gram matrix, or of its diagonal: server → coordinator, like the next three."""
    ANCHOR = 7
    """A share of the products with a public vector."""
    AGGREGATE = 8
    """A share of the weighted sum."""
    PROJECTIONS = 9
    """A share of random combinations of each row, by which its length is checked."""
    SECRET = 10
    """The secret of the sketches, sealed: server → server."""
    KEY = 11
    """A public key: server → servers."""
    RESHARED = 12
    """A fresh share of the histories: server → server."""
    KEYS = 20
    """Public keys: client → coordinator → clients."""
    KEY_SHARES = 21
    """Encrypted Shamir shares of a client's secrets: client → coordinator → client."""
    MASKED = 22
    """A masked update: client → coordinator."""
    UNMASK = 23
    """Shamir shares that remove the masks: client → coordinator."""


def run_id(name: str) -> str:
    """The 32 hexadecimal digits that identify the run called `name` in its messages."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Message:
    """One message. `run` is a `run_id`, `receiver` at most 16 ASCII characters, `body` is never shown."""

    run: str
    round: int
    sender: int
    receiver: str
    kind: Kind
    body: bytes = field(repr=False)
    whole: memoryview | None = field(default=None, repr=False, compare=False)
    """Memory that holds the body already and has room for the rest: see `in_place`."""

    def header(self) -> bytes:
        """The fixed first bytes."""
        try:
            run, receiver = bytes.fromhex(self.run), self.receiver.encode("ascii")
            if len(run) != 16 or len(receiver) > 16 or b"\0" in receiver:
                raise ValueError
            return HEADER.pack(
                MAGIC, VERSION, run, self.round, self.sender, receiver, self.kind, memoryview(self.body).nbytes
            )
        except (ValueError, struct.error):
            raise MessageError(
                "a message needs a run_id, a round that is not negative, and a receiver of at most 16 ASCII characters"
            ) from None

    def pack(self, key: bytes | None = None) -> bytes:
        """The bytes on the wire: header, body, and the BLAKE3 digest of both.

        key: 32 bytes that the receiver has, too, for this message alone. With it a GMAC replaces the digest: it is even
            faster, and proves who sent the message.

        Raises `MessageError` for a `run`, `round` or `receiver` that a header cannot hold.
        """
        header = self.header()
        seal = _seal(header, self.body, key)
        if self.whole is None:
            return b"".join((header, self.body, seal))
        self.whole[: len(header)], self.whole[-len(seal) :] = header, seal
        return cast(bytes, self.whole)


def borrowed(array: NDArray[Any]) -> bytes:
    """The memory of an array as the body of a message, where a copy would cost too much. Such a message cannot be
    pickled."""
    return cast(bytes, array.data.cast("B"))


def in_place(size: int) -> tuple[NDArray[np.int64], memoryview]:
    """Memory for a message whose body has `size` bytes, so that nothing is copied.

    Returns the words of the body (size / 8,), and the memory around them, for `Message.whole`.
    """
    start = -HEADER.size % 8  # words are aligned
    memory = np.empty(start + OVERHEAD + size, dtype=np.uint8)
    first = start + HEADER.size
    return memory[first : first + size].view(np.int64), memory[start:].data


def digest(*parts: bytes | memoryview) -> bytes:
    """The BLAKE3 digest (32 bytes) of the parts, one after the other; several times as fast as SHA-256 on long ones."""
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def viewed(data: object) -> memoryview:
    """The bytes of what has arrived, whatever its type.

    Raises `MessageError` if it has no contiguous bytes.
    """
    try:
        return memoryview(data).cast("B")  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):
        raise MessageError(f"not a message: {type(data).__name__} instead of bytes") from None


def unpack(data: bytes | memoryview, key: bytes | None = None, copy: bool = True) -> Message:
    """Read a message.

    data: the bytes from the wire.
    key: the one that it was packed with, if any.
    copy: without it, the body is a view of `data`, and no `bytes` of its own.

    Raises `MessageError` if anything is missing, left over, changed or unknown, or if `data` has no bytes.
    """
    view = viewed(data)
    if len(view) < OVERHEAD:
        raise MessageError(f"message is truncated: {len(view)} bytes, at least {OVERHEAD} are needed")
    magic, version, run, round_, sender, receiver, kind, length = HEADER.unpack_from(view)
    if magic != MAGIC:
        raise MessageError("not a message: it does not begin with the magic bytes")
    if version != VERSION:
        raise MessageError(f"message has version {version}; this is version {VERSION}")
    if len(view) != OVERHEAD + length:
        fault = "is truncated" if len(view) < OVERHEAD + length else "has extra bytes"
        raise MessageError(f"message {fault}: {len(view)} bytes, its header says {OVERHEAD + length}")
    end = HEADER.size + length
    if not compare_digest(_seal(view[: HEADER.size], view[HEADER.size : end], key), bytes(view[end:])):
        raise MessageError("message was changed on its way: its digest does not fit")
    if kind not in Kind.__members__.values():
        raise MessageError(f"message is of the unknown kind {kind}")
    name = receiver.rstrip(b"\0").decode("ascii", "replace")
    body = view[HEADER.size : end]
    return Message(run.hex(), round_, sender, name, Kind(kind), bytes(body) if copy else cast(bytes, body))


def _seal(header: bytes | memoryview, body: bytes | memoryview, key: bytes | None) -> bytes:
    """The last 32 bytes of a message."""
    if key is None:
        return digest(header, body)
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    encryptor = Cipher(algorithms.AES256(key), modes.GCM(bytes(12))).encryptor()  # a key has one message, so one nonce
    encryptor.authenticate_additional_data(header)
    encryptor.authenticate_additional_data(body)
    encryptor.finalize()
    return encryptor.tag.ljust(32, b"\0")


def expect(
    message: Message,
    run: str,
    round: int,
    sender: int | None,
    kind: Kind | tuple[Kind, ...],
    size: int | None = None,
    receiver: str | None = None,
) -> Message:
    """Return the message if it is the expected one; None allows any sender, size or receiver.

    run: a `run_id`.
    round: the number in messages.
    sender: a client's id, or as in `server_id`.
    kind: one or several kinds.
    size: bytes of the body.
    receiver: its name.

    Raises `MessageError` for another run or round (a replay), and for another sender, receiver, kind or size.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if message.kind not in kinds:
        names = " or ".join(each.name.lower() for each in kinds)
        raise MessageError(f"expected a message {names}, got {message.kind.name.lower()}")
    what = f"message {message.kind.name.lower()} of sender {message.sender}"
    if message.run != run:
        raise MessageError(f"{what} belongs to another run: {message.run[:8]}…, this is {run[:8]}…")
    if message.round != round:
        raise MessageError(f"{what} belongs to round {message.round}, this is round {round}")
    if sender is not None and message.sender != sender:
        raise MessageError(f"{what}: expected sender {sender}")
    if receiver is not None and message.receiver != receiver:
        raise MessageError(f"{what} is for {message.receiver}, this is {receiver}")
    if size is not None and len(message.body) != size:
        raise MessageError(f"{what} has a body of {len(message.body)} bytes, expected {size}")
    return message
