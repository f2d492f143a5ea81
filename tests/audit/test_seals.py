"""What is signed beside the log: seals of ended runs, and the states of runs that can be gone on with."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from vouched import KEY, OTHER

from fedrobust.audit.log import Log
from fedrobust.audit.seals import STATE, arrays_digest, check_state, open_seal, seal, sign_state
from fedrobust.audit.signing import AuditError, canonical, public_hex

A, B = "aa" * 32, "bb" * 32
FILES = {"report.html": A, "model/data/model.pt2": B, "fígures/\udcff\n.png": A}
DATA = seal(KEY, "r1", "head", FILES)


def forged(**changes: Any) -> bytes:
    """The seal with other fields; those that are None are left out."""
    return canonical({name: value for name, value in (json.loads(DATA) | changes).items() if value is not None}) + b"\n"


def test_a_seal_says_which_files_belong_to_a_log() -> None:
    assert open_seal(DATA, public_hex(KEY), "head") == FILES


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (DATA.replace(A.encode(), B.encode()), "the seal was changed: the signature is wrong"),
        (seal(OTHER, "r1", "head", FILES), "the signature is wrong"),
        (seal(KEY, "r1", "elsewhere", FILES), "belongs to another log"),
        (forged(signature=json.loads(DATA)["signature"].upper()), "the signature is wrong"),
        (DATA.replace(b'{"files":', b'{"files":{},"files":'), "these are not the bytes that were written"),
        (DATA.replace(b'"head":"head"', b'"head":"other","head":"head"'), "these are not the bytes that were written"),
        (DATA.rstrip(b"\n"), "these are not the bytes that were written"),
        (DATA + b"\n", "these are not the bytes that were written"),
        (DATA + DATA, "this is not JSON"),
        (b"", "this is not JSON"),
        (b"[" * 100_000, "this is not JSON"),
        (b"\xff\n", "this is not JSON"),
        (b"[1]\n", "this is no seal"),
        (b"{}\n", "the seal is of an older format, which left files out; this version checks format 2"),
        (forged(format=1), "the seal has format 1, written by "),
        (forged(format=3), "the seal has format 3, written by "),
        (forged(format=None), "of an older format"),
        (forged(more=1), "this is no seal"),
        (forged(signature=None), "this is no seal"),
        (forged(files=[]), "this is no seal"),
        (forged(files={"report.html": "aa"}), "this is no seal"),
        (forged(run="r2"), "the seal was changed"),
    ],
)
def test_what_is_not_this_log_s_seal_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(AuditError, match=reason):
        open_seal(data, public_hex(KEY), "head")


def test_no_signature_is_taken_for_another_kind_of_one() -> None:
    body = {"format": 2, "run": "r1", "head": "head", "files": {}}
    line = json.loads(Log(KEY).line({"kind": "start", "run": "r1"}))
    for signature in (line["signature"], sign_state(KEY, body)):
        with pytest.raises(AuditError, match="signature"):
            open_seal(canonical(body | {"signature": signature}) + b"\n", public_hex(KEY), "head")
    with pytest.raises(AuditError, match="signature"):
        check_state(public_hex(KEY), body, json.loads(seal(KEY, "r1", "head", {}))["signature"])
    assert STATE.endswith(b"\0")


def test_a_state_is_the_one_that_was_signed() -> None:
    facts = {"round": 3, "pending": None, "state": A}
    signature = sign_state(KEY, facts)
    check_state(public_hex(KEY), facts, signature)
    for changed, by in (({**facts, "round": 4}, KEY), (facts, OTHER)):
        with pytest.raises(AuditError, match="signature"):
            check_state(public_hex(by), changed, signature)


def test_the_digest_of_arrays_is_of_names_types_shapes_and_contents() -> None:
    one = {"weights": np.arange(6, dtype=np.float32), "none": np.zeros((0, 3)), "round": np.array(7)}
    same = dict(reversed(one.items())) | {"weights": np.arange(12, dtype=np.float32)[::2] / 2}
    assert arrays_digest(one) == arrays_digest(same)
    others = [
        one | {"weights": np.arange(6, dtype=np.float32).view(np.int32)},
        one | {"weights": np.arange(6, dtype=np.float32).reshape(2, 3)},
        one | {"weights": -np.arange(6, dtype=np.float32)},
        one | {"weight": one["weights"]},
        one | {"none": np.zeros((3, 0))},
        one | {"more": np.zeros(1)},
        {name: one[name] for name in ("weights", "round")},
    ]
    assert len({arrays_digest(other) for other in [one, *others]}) == 1 + len(others)
