"""Messages: what goes over the wire comes back, and nothing else is taken for a message."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrobust.secure.messages import (
    HEADER,
    OVERHEAD,
    Kind,
    Message,
    MessageError,
    borrowed,
    expect,
    in_place,
    run_id,
    unpack,
)

RUN = run_id("a run")
MESSAGE = Message(RUN, 7, 3, "server1", Kind.WORDS, b"0123456789")
KEY = bytes(range(32))


def test_a_message_is_header_body_and_digest() -> None:
    data = MESSAGE.pack()
    assert len(data) == OVERHEAD + 10 == 94 + 10
    assert data[:4] == b"FRSA" and data[HEADER.size : HEADER.size + 10] == b"0123456789"
    assert data[-32:] == blake3(data[:-32]).digest()


@given(
    st.integers(0, 2**64 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from(list(Kind)),
    st.binary(max_size=300),
    st.sampled_from([None, KEY]),
)
def test_what_was_packed_is_unpacked(round: int, sender: int, kind: Kind, body: bytes, key: bytes | None) -> None:
    message = Message(RUN, round, sender, "server0", kind, body)
    assert unpack(message.pack(key), key) == message


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_a_message_made_in_place_is_the_same(count: int, key: bytes | None) -> None:
    words, whole = in_place(8 * count)
    words[:] = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, count)
    bare = Message(RUN, 7, 3, "server1", Kind.WORDS, words.tobytes())
    packed = replace(bare, body=borrowed(words), whole=whole).pack(key)
    assert bytes(packed) == bare.pack(key)
    assert np.shares_memory(np.frombuffer(packed, dtype=np.uint8), words) or not count
    assert unpack(packed, key) == bare


@settings(max_examples=40)
@given(st.integers(0, OVERHEAD + 9), st.integers(1, 255), st.sampled_from([None, KEY]))
def test_any_changed_byte_is_found(place: int, change: int, key: bytes | None) -> None:
    data = bytearray(MESSAGE.pack(key))
    data[place] ^= change
    with pytest.raises(MessageError):
        unpack(bytes(data), key)


@pytest.mark.parametrize("length", [0, 1, OVERHEAD - 1, OVERHEAD, OVERHEAD + 9])
def test_a_truncated_message_is_refused(length: int) -> None:
    with pytest.raises(MessageError, match="truncated"):
        unpack(MESSAGE.pack()[:length])


def test_extra_bytes_are_refused() -> None:
    with pytest.raises(MessageError, match="extra bytes"):
        unpack(MESSAGE.pack() + b"x")


def test_another_key_is_found() -> None:
    with pytest.raises(MessageError, match="digest"):
        unpack(MESSAGE.pack(KEY), bytes(32))


def test_unknown_kinds_and_versions_are_refused() -> None:
    data = bytearray(MESSAGE.pack())
    data[4] = 9
    with pytest.raises(MessageError, match="version 9"):
        unpack(bytes(data))
    data = bytearray(MESSAGE.pack())
    data[HEADER.size - 9] = 200
    data[-32:] = blake3(data[:-32]).digest()
    with pytest.raises(MessageError, match="unknown kind 200"):
        unpack(bytes(data))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"run": run_id("another")}, "another run"),
        ({"round": 6}, "belongs to round 6, this is round 7"),
        ({"sender": 4}, "expected sender 3"),
        ({"kind": Kind.SEED}, "expected a message words, got seed"),
        ({"body": b"0"}, "1 bytes, expected 10"),
        ({"receiver": "server0"}, "is for server0"),
    ],
)
def test_what_is_not_expected_is_refused(change: dict[str, object], says: str) -> None:
    expect(MESSAGE, RUN, 7, 3, Kind.WORDS, 10, "server1")
    with pytest.raises(MessageError, match=says):
        expect(replace(MESSAGE, **change), RUN, 7, 3, Kind.WORDS, 10, "server1")


@pytest.mark.parametrize("change", [{"run": "a run"}, {"round": -1}, {"receiver": "x" * 17}, {"receiver": "ü"}])
def test_a_message_that_has_no_header_is_not_packed(change: dict[str, object]) -> None:
    with pytest.raises(MessageError, match="run_id"):
        replace(MESSAGE, **change).pack()


def test_the_body_is_never_shown_and_messages_pickle() -> None:
    assert "0123456789" not in repr(MESSAGE)
    assert pickle.loads(pickle.dumps(MESSAGE)) == MESSAGE
