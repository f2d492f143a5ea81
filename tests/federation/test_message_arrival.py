"""A protocol of one's own: each hospital sends one message, and one class says what is in it."""

from __future__ import annotations

import numpy as np
import pytest
from acted import House, options, updates

from fedrobust.arrays import Vector
from fedrobust.secure import OneMessage
from fedrobust.secure.messages import MessageError

D = 100


class Halves(OneMessage):
    """Two bytes for each coordinate."""

    name: str = "halves"

    def write(self, update: Vector, generator: np.random.Generator) -> bytes:
        return update.astype(np.float16).tobytes()

    def read(self, message: bytes, d: int) -> Vector:
        if len(message) != 2 * d:
            raise MessageError(f"{len(message)} bytes are no update of {d} coordinates")
        return np.frombuffer(message, dtype=np.float16).astype(np.float32)


class Noisy(Halves):
    """With noise, of which none is the same twice."""

    name: str = "noisy"

    def write(self, update: Vector, generator: np.random.Generator) -> bytes:
        return super().write(np.float32(update + generator.standard_normal(len(update))), generator)


class Torn(Halves):
    """Half of a message where the update begins with a number below 0."""

    name: str = "torn"

    def write(self, update: Vector, generator: np.random.Generator) -> bytes:
        message = super().write(update, generator)
        return message if update[0] >= 0 else message[:D]


def house(privacy: OneMessage, monkeypatch: pytest.MonkeyPatch, rule: str = "mean") -> House:
    return House(options({"name": "clear"}, rule) | {"privacy": privacy}, D, monkeypatch)


def test_one_class_is_a_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any rule works on what arrives, and so does one that remembers clients."""
    for rule in ("mean", "krum", "median", "foolsgold"):
        one, clear = house(Halves(), monkeypatch, rule), House(options("clear", rule), D, monkeypatch)
        for round in range(2):
            rows = updates(round, d=D)
            record, _ = one.round(rows), clear.round(rows.astype(np.float16).astype(np.float32))
        np.testing.assert_allclose(one.arrays["weights"], clear.arrays["weights"], rtol=1e-6, atol=1e-7)
        assert record["upload_bytes"] == 8 * 2 * D and len(record["commitments"]) == 8


def test_the_noise_of_a_hospital_is_its_own_in_each_round_and_comes_from_the_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    zeros = np.zeros((8, D), dtype=np.float32)
    one, again = house(Noisy(), monkeypatch), house(Noisy(), monkeypatch)
    records = [one.round(zeros), one.round(zeros), again.round(zeros)]
    sent = [set(record["commitments"].values()) for record in records]
    assert len(sent[0] | sent[1]) == 16
    assert records[0]["commitments"] == records[2]["commitments"]


def test_a_wrong_message_costs_nobody_else_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.abs(updates(d=D))
    rows[3, 0], rows[5, 7] = -1.0, np.nan
    made = house(Torn(), monkeypatch)
    record = made.round(rows)
    assert record["rejected"] == {3: "100 bytes are no update of 100 coordinates", 5: "it sent no message"}
    kept = np.delete(rows, [3, 5], axis=0)
    np.testing.assert_allclose(made.arrays["weights"], kept.mean(axis=0), rtol=1e-2)
    assert "skipped" in made.round(-rows)
