"""The audit log: no line can be changed, moved, added or dropped without the coordinator's key."""

from __future__ import annotations

import hashlib
import json
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrobust.audit.log import START, Log, check, entry_of, misfit
from fedrobust.audit.signing import AuditError, canonical, open_key, public_hex, public_pem, read_public
from fedrobust.records import versions

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))

Record = dict[str, Any]


def records(rounds: int = 3, seconds: float = 1.5) -> list[Record]:
    """What a journal of three hospitals reads back as."""
    found: list[Record] = [
        {"kind": "start", "run": "r1", "name": "a run", "clients": 3, "configuration": "c" * 64, "digest": "d" * 64}
    ]
    found[0] |= {"model": "m0", "versions": {"python": "3.11"}, "experiment": {"seed": 1}}
    for round in range(1, rounds + 1):
        record = {"kind": "round", "round": round, "participants": [0, 1, 2], "attacking": [2]}
        record |= {
            "rejected": {"1": "not finite"},
            "anomaly": {"0": 0.25, "2": 1.0},
            "reputation": {"0": 0.5, "2": 0.1},
        }
        record |= {
            "suspected": [2],
            "quarantined": [2],
            "f": 1,
            "weights": {"0": 1.0, "2": 0.0},
            "notes": ["cut short"],
        }
        record |= {"commitments": {"0": "ab", "2": "cd"}, "functionals": 2, "model": f"m{round}"}
        record["seconds"] = {"round": seconds * round}
        found += [record, {"kind": "evaluation", "round": round, "metrics": {"test/accuracy": 0.5}, "confusion": [[1]]}]
    return [*found, {"kind": "end", "round": rounds, "final": {"model_sha256": "e", "seconds": seconds}}]


def written(key: Ed25519PrivateKey = KEY, found: list[Record] | None = None) -> bytes:
    log = Log(key)
    return b"".join(log.line(record) for record in (records() if found is None else found))


LOG = written()
LINES = LOG.splitlines(keepends=True)


def test_a_line_is_hashed_and_signed_as_the_docs_say() -> None:
    first, second = map(json.loads, LINES[:2])
    assert (first["index"], first["previous"]) == (1, "0" * 64) == (1, START)
    assert (second["index"], second["previous"]) == (2, first["hash"])
    bare = {name: second[name] for name in ("entry", "index", "previous")}
    digest = hashlib.sha256(json.dumps(bare, sort_keys=True, separators=(",", ":")).encode()).digest()
    assert second["hash"] == digest.hex()
    KEY.public_key().verify(bytes.fromhex(second["signature"]), b"fedrobust audit line 1\0" + digest)


def test_what_the_log_says_of_a_run() -> None:
    start, first, evaluation, second, *_, end = check(LOG).entries
    assert (start["format"], start["key"], start["run"]) == (1, public_hex(KEY), "r1")
    assert (start["configuration"], start["data"], start["versions"]) == ("c" * 64, "d" * 64, {"python": "3.11"})
    told = {**records()[1], "model": {"before": "m0", "after": "m1"}}
    told["record"] = hashlib.sha256(
        json.dumps(
            {k: v for k, v in records()[1].items() if k != "seconds"}, sort_keys=True, separators=(",", ":")
        ).encode()
    ).hexdigest()
    assert first == {name: value for name, value in told.items() if name not in ("attacking", "seconds")}
    assert second["model"] == {"before": "m1", "after": "m2"}
    assert (evaluation["round"], evaluation["metrics"]) == (1, {"test/accuracy": 0.5})
    assert end["final"] == {"model_sha256": "e"}
    assert "seconds" not in LOG.decode()


def test_a_skipped_round_leaves_the_model() -> None:
    entry = entry_of({"kind": "round", "round": 4, "participants": [], "skipped": "nobody"}, "m3")
    assert entry["model"] == {"before": "m3", "after": "m3"}
    assert entry["skipped"] == "nobody"
    assert "commitments" not in entry and "functionals" not in entry


def test_the_same_run_gives_the_same_bytes_however_long_it_took() -> None:
    assert written(found=records(seconds=77.0)) == LOG
    assert written(OTHER) != LOG


@pytest.mark.parametrize("at", range(len(LINES) + 1))
def test_a_log_that_is_continued_is_the_log_that_was_never_stopped(at: int) -> None:
    before = b"".join(LINES[:at])
    log = Log(KEY, before)
    assert before + b"".join(log.line(record) for record in records()[at:]) == LOG
    assert (log.index, log.head) == (len(LINES), check(LOG).head)


def test_a_whole_log_holds() -> None:
    found = check(LOG, public_hex(KEY))
    assert (found.reason, len(found.entries), found.key, found.model) == ("", 8, public_hex(KEY), "m3")
    assert found.head == json.loads(LINES[-1])["hash"]
    assert misfit(found.entries, records()) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(LOG) - 1), st.integers(1, 255))
def test_any_changed_byte_is_found(place: int, change: int) -> None:
    data = bytearray(LOG)
    data[place] ^= change
    found = check(bytes(data))
    assert found.reason
    assert len(found.entries) <= LOG.count(b"\n", 0, place)


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(len(LINES))), st.integers(1, len(LINES)))
def test_lines_in_another_order_or_dropped_are_found(order: list[int], kept: int) -> None:
    taken = order[:kept]
    found = check(b"".join(LINES[line] for line in taken))
    whole = next((place for place, line in enumerate(taken) if place != line), kept)
    assert len(found.entries) == whole
    assert bool(found.reason) == (whole < kept)


def forged(line: bytes, signer: Ed25519PrivateKey | None = None, **changes: Any) -> bytes:
    """A line whose entry is changed, with its hash made anew, and with a key its signature, too."""
    found = json.loads(line)
    found["entry"] |= changes
    digest = hashlib.sha256(canonical({name: found[name] for name in ("index", "previous", "entry")})).digest()
    found["hash"] = digest.hex()
    if signer is not None:
        found["signature"] = signer.sign(b"fedrobust audit line 1\0" + digest).hex()
    return canonical(found) + b"\n"


def edited(line: bytes, **changes: Any) -> bytes:
    return canonical(json.loads(line) | changes) + b"\n"


FIRST = json.loads(LINES[0])
DUPLICATE = LINES[3].replace(b'"f":1', b'"f":9,"f":1')
ATTACKS: dict[str, tuple[int, bytes, str]] = {
    "edited": (3, LINES[3].replace(b'"f":1', b'"f":0'), "it was changed: its hash is another one"),
    "edited and hashed again": (3, forged(LINES[3], f=0), "without the coordinator's key: the signature is wrong"),
    "edited and signed by another": (3, forged(LINES[3], OTHER, f=0), "the signature is wrong"),
    "edited by who has the key": (4, LINES[4], "it does not belong behind the line before it"),
    "a field named twice": (3, DUPLICATE, "not the bytes that were written"),
    "spaces": (3, LINES[3].replace(b",", b", ", 1), "not the bytes that were written"),
    "signature of another line": (
        3,
        edited(LINES[3], signature=json.loads(LINES[4])["signature"]),
        "signature is wrong",
    ),
    "no signature": (3, edited(LINES[3], signature=""), "this is no line of an audit log"),
    "an index for a field": (3, edited(LINES[3], index=5), "this is line 5"),
    "a list": (3, b"[]\n", "this is no line of an audit log"),
    "cut off": (3, LINES[3][:-20], "not JSON"),
    "an empty line": (3, b"\n", "not JSON"),
    "nested a million times": (3, b"[" * 1_000_000 + b"\n", "not JSON"),
    "another key": (0, forged(LINES[0], OTHER, key=public_hex(OTHER)), ""),
    "another format": (0, forged(LINES[0], KEY, format=2), "the log has format 2, written by FedRobust"),
    "a key that is none": (0, forged(LINES[0], KEY, key="zz"), "no first line"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_broken_line_is_named_and_why(attack: str) -> None:
    line, changed, reason = ATTACKS[attack]
    lines = list(LINES)
    lines[line] = changed
    if attack == "edited by who has the key":
        lines[3] = forged(LINES[3], KEY, f=0)
    found = check(b"".join(lines))
    # A first line of another key's holds: the second one is then the first that does not.
    expected = (line, reason) if reason else (1, "does not belong behind")
    assert len(found.entries) == expected[0]
    assert expected[1] in found.reason


def test_a_log_signed_anew_with_another_key_is_found_by_who_knows_the_right_one() -> None:
    swapped = written(OTHER)
    assert not check(swapped).reason  # nothing in the file betrays it
    found = check(swapped, public_hex(KEY))
    assert (len(found.entries), found.reason[:35]) == (0, "the log was signed with another key")
    mixed = LINES[0] + b"".join(written(OTHER).splitlines(keepends=True)[1:])
    assert len(check(mixed, public_hex(KEY)).entries) == 1


def test_an_empty_log_does_not_hold() -> None:
    assert check(b"").reason == "the log is empty"


def set_in(found: list[Record], index: int, path: str, value: Any) -> list[Record]:
    *folders, name = path.split("/")
    place = found[index]
    for folder in folders:
        place = place[folder]
    place[name] = value
    return found


@pytest.mark.parametrize(
    ("index", "path", "value", "what"),
    [
        (0, "digest", "f" * 64, "data"),
        (0, "experiment/seed", 2, "another field"),
        (1, "weights/2", 0.5, "weights"),
        (1, "attacking", [], "another field"),
        (3, "model", "mx", "model"),
        (3, "added", 1, "another field"),
        (4, "metrics", {"test/accuracy": 0.9}, "metrics"),
        (7, "final/model_sha256", "x", "final"),
        (7, "kind", "round", "kind"),
    ],
)
def test_an_edited_journal_does_not_fit(index: int, path: str, value: Any, what: str) -> None:
    found = misfit(check(LOG).entries, set_in(records(), index, path, value))
    assert found == (index + 1, f"the journal says otherwise ({what}): it was edited, or belongs to another run")


def test_what_a_round_took_is_not_audited() -> None:
    assert misfit(check(LOG).entries, set_in(records(), 1, "seconds/round", 9.0)) is None


def test_log_and_journal_of_different_length_do_not_fit() -> None:
    entries = check(LOG).entries
    assert misfit(entries[:-1], records()) == (8, "the journal goes on, the log does not: its end was cut off")
    assert misfit(entries, records()[:-2]) == (7, "the journal has no such record: its end was cut off")


def test_the_key_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    path = tmp_path / "mlruns" / "keys" / "coordinator.pem"
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(public_hex(open_key(path)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8 and set(made) == {public_hex(open_key(path))}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {found.name for found in path.parent.iterdir()} == {"coordinator.pem", "coordinator.pub"}
    assert read_public(path.with_suffix(".pub")) == made[0]
    assert public_hex(open_key(tmp_path / "second.pem")) != made[0]


@pytest.mark.parametrize("left", [None, b"", b"no key"])
def test_the_public_half_is_that_of_the_key_that_is_there(tmp_path: Path, left: bytes | None) -> None:
    path = tmp_path / "coordinator.pem"
    before = public_hex(open_key(path))
    path.unlink()
    if left is not None:
        path.with_suffix(".pub").write_bytes(left)
    after = public_hex(open_key(path))
    assert read_public(path.with_suffix(".pub")) == after != before
    path.with_suffix(".pub").write_text(after)  # in digits it is the same half
    open_key(path)
    assert path.with_suffix(".pub").read_text() == after


def pem(key: Any) -> bytes:
    found: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return found


@pytest.mark.parametrize(
    ("data", "mode", "message"),
    [
        (b"", 0o600, "no key in PEM format without a password"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", 0o600, "no key in PEM format"),
        (pem(X25519PrivateKey.generate()), 0o600, "must be an Ed25519 key"),
        (pem(KEY), 0o640, "others may read this key; chmod 600"),
    ],
    ids=["empty", "damaged", "another kind", "open to others"],
)
def test_a_key_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, data: bytes, mode: int, message: str) -> None:
    path = tmp_path / "coordinator.pem"
    path.write_bytes(data)
    path.chmod(mode)
    with pytest.raises(AuditError, match=message) as refused:
        open_key(path)
    assert str(refused.value).startswith(str(path)) and "\n" not in str(refused.value)
    assert path.read_bytes() == data


def test_a_key_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a file, where the folder should be")
    with pytest.raises(AuditError, match=r"coordinator\.pem: "):
        open_key(tmp_path / "keys" / "coordinator.pem")


def test_public_keys_are_read_from_pem_and_from_digits(tmp_path: Path) -> None:
    path = tmp_path / "key.pub"
    path.write_bytes(public_pem(KEY))
    assert read_public(path) == public_hex(KEY)
    path.write_text(f"{public_hex(KEY)}\n")
    assert read_public(path) == public_hex(KEY)
    path.write_bytes(pem(KEY))
    with pytest.raises(AuditError, match="Ed25519"):
        read_public(path)
    with pytest.raises(AuditError, match="No such file"):
        read_public(tmp_path / "nowhere")


def test_versions_name_what_computes() -> None:
    assert {"python", "fedrobust", "torch", "numpy"} <= set(versions())
