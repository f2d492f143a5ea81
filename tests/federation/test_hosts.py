"""Which stragglers a round goes on without."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fedrobust.experiment import Experiment
from fedrobust.federation import hosts
from fedrobust.federation.actors import ActorDied
from fedrobust.federation.hosts import Hosts


def late(patch: pytest.MonkeyPatch, asked: int, back: list[int], **federation: Any) -> tuple[int, int]:
    """How many of so many asked hospitals are late, and how many deadlines were waited for.

    `back[i]` are back by the end of the i-th deadline.
    """
    waits: list[int] = []

    def wait(references: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        waits.append(back[len(waits)])
        return references[: waits[-1]], references[waits[-1] :]

    patch.setattr(hosts, "ray", SimpleNamespace(wait=wait))
    made = object.__new__(Hosts)
    made._experiment = Experiment.model_validate({"federation": {"clients": 10, "deadline": 1.0} | federation})
    made._root = None
    tasks: Any = [SimpleNamespace(training=number, clients=[number]) for number in range(asked)]
    return len(made._late(tasks)), len(waits)


def test_a_quorum_that_is_back_ends_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert late(monkeypatch, 10, [5, 6, 7]) == (5, 1)
    assert late(monkeypatch, 10, [4, 5, 7]) == (5, 2)
    assert late(monkeypatch, 10, [1, 2, 3]) == (7, 3)


def test_who_was_never_asked_is_not_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of ten are absent: one of six that is back is no five of ten."""
    assert late(monkeypatch, 6, [1, 4, 5]) == (1, 3)


def test_a_quorum_that_cannot_be_reached_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert late(monkeypatch, 4, [3, 4, 4]) == (1, 1)


def test_seven_of_fifty_are_a_quorum_of_0_14(monkeypatch: pytest.MonkeyPatch) -> None:
    """In binary floats, 0.14 · 50 is a little above 7."""
    assert late(monkeypatch, 50, [7, 8, 9], clients=50, quorum=0.14) == (43, 1)


def test_what_an_actor_died_of_the_last_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = iter(["one", "two", "memory was short"] * 2)

    def answer(reference: Any, awaited: str, patience: float) -> None:
        raise ActorDied(f"the actor died while waiting for {awaited}: {next(reasons)}")

    monkeypatch.setattr(hosts, "answer", answer)
    made = object.__new__(Hosts)
    made._patience = 1.0
    task: Any = SimpleNamespace(arguments=(2,), worker=0, actor=None, training=None)
    made._team = SimpleNamespace(workers=[None])
    for name, made_again in (("_revive", None), ("_start", task)):
        monkeypatch.setattr(made, name, lambda *_, given=made_again: given, raising=False)
    told = r"^3 times in a row the actor died while waiting for {}worker 0 to {}: memory was short$"
    with pytest.raises(ActorDied, match=told.format("round 2: ", "train")):
        made._finished(task)
    with pytest.raises(ActorDied, match=told.format("", "evaluate")):
        made._asked(0, lambda actor: None, "worker 0 to evaluate")()
