"""Features of all patches, encoded by the actors of one team or of several: those that die cost time, and no bit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from acted import Actor, Answers

import fedrobust.federation.shared_data as room
from fedrobust.errors import FederationError
from fedrobust.federation import hosts
from fedrobust.federation.actors import ActorDied
from fedrobust.federation.encoding import Encode, features_of, views_of
from fedrobust.federation.hosts import Hosts
from fedrobust.federation.shared_data import SharedData

N, BLOCK = 100, 8
TABLE = np.random.default_rng(1).normal(size=(N, 3)).astype(np.float32)


class Encoder:
    """A client actor that is set up for an encoder."""

    ready = False

    def setup(self, *arguments: Any) -> list[Any]:
        self.ready = True
        return []

    def encode(self, view: int, first: int, last: int) -> np.ndarray:
        assert self.ready and last - first <= BLOCK
        return TABLE[first:last] + view


class Fates:
    """When actors die: at which of the team's calls, by the number of each call."""

    def __init__(self, deaths: Sequence[int]) -> None:
        self.deaths, self.calls = deaths, 0

    def __call__(self, method: str, arguments: Any) -> bool:
        if method != "encode":
            return False
        self.calls += 1
        return self.calls in self.deaths


def team(patch: pytest.MonkeyPatch, *fates: Fates) -> tuple[list[Encode], list[Actor]]:
    """A team with one actor for each of `fates`: what encodes with it, and its actors, where dead ones are replaced."""
    patch.setattr(hosts, "answer", Answers(patch))

    def fresh(worker: int) -> Actor:
        workers[worker] = Actor(Encoder(), fates[worker])
        return workers[worker]

    workers: list[Any] = [None] * len(fates)
    for worker in range(len(fates)):
        fresh(worker).made.setup()
    made = object.__new__(Hosts)
    made._team = SimpleNamespace(workers=workers, coordinator=Actor(object()), replace=fresh)  # type: ignore[assignment]
    made._setup, made._arrays, made._patience = [], [], 1.0
    return [partial(made._ask_features, worker) for worker in range(len(fates))], workers


class Patches:
    """Stands for `Hospitals`."""

    digest = "of patches"

    def __init__(self, count: int = N) -> None:
        self.images = np.zeros((count, 2, 2, 3), dtype=np.uint8)


def encoded(actors: Sequence[Encode], cache: Path, count: int = N) -> tuple[np.ndarray, list[str]]:
    said: list[str] = []
    held: Any = Patches(count)
    (found,) = features_of(views_of(held, "an encoder", 1), BLOCK, actors, said.append, cache)
    return found, said


@pytest.mark.parametrize(
    "deaths",
    [[[], []], [[3], []], [[3, 4], []], [[1], [1]], [[7], [7]], [[1, 2, 3], []], [range(1, 99), []], [[2, 5, 8]]],
    ids=["nobody", "one", "twice", "all at first", "all", "three times", "again and again", "the only one, often"],
)
def test_an_actor_that_dies_changes_no_bit(
    deaths: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actors, _ = team(monkeypatch, *map(Fates, deaths))
    found, said = encoded(actors, tmp_path)
    assert np.array_equal(found, TABLE)
    assert len(said) == -(-N // BLOCK) and len(set(said)) <= 21 and said[-1] == "encoding patches: 100 % of 100"
    again, said = encoded([], tmp_path)
    assert np.array_equal(again, TABLE) and not said


def test_views_are_kept_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So four views need two more than two."""
    actors, _ = team(monkeypatch, Fates([3]), Fates([7, 8, 9]))
    said, held = list[str](), cast(Any, Patches())
    for views in (2, 4):
        said.clear()
        found = features_of(views_of(held, "an encoder", views), BLOCK, actors, said.append, tmp_path)
        assert len(found) == views
        assert all(np.array_equal(features, TABLE + view) for view, features in enumerate(found))
        assert len(said) == 2 * -(-N // BLOCK) and said[-1] == f"encoding patches: 100 % of {views * N}"
    assert said[0] == "encoding patches: 50 % of 400"


def test_what_was_encoded_before_a_stop_is_not_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fates, held = Fates([]), cast(Any, Patches())
    actors, _ = team(monkeypatch, fates)

    def stop(what: str) -> None:
        if what == "encoding patches: 45 % of 100":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features_of(views_of(held, "an encoder", 1), BLOCK, actors, stop, tmp_path)
    fates.calls = 0
    found, said = encoded(actors, tmp_path)
    assert np.array_equal(found, TABLE)
    assert fates.calls == len(said) == 13 - 6 and said[0] == "encoding patches: 55 % of 100"


def test_where_all_die_again_and_again_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actors, _ = team(monkeypatch, Fates(range(99)), Fates(range(99)))
    with pytest.raises(ActorDied, match="3 times in a row the actor died"):
        encoded(actors, tmp_path)
    assert not list(tmp_path.glob("features*"))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 17])
def test_fewer_blocks_than_actors(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actors, _ = team(monkeypatch, *(Fates([1]) for _ in range(5)))
    assert np.array_equal(encoded(actors, tmp_path, count)[0], TABLE[:count])


def test_an_actor_that_stays_silent_ends_it_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(reference: Any, awaited: str, patience: float) -> None:
        raise FederationError(f"no answer for {patience:g} s while waiting for {awaited}")

    actors, _ = team(monkeypatch, Fates([]))
    monkeypatch.setattr(hosts, "answer", silent)
    with pytest.raises(
        FederationError, match=r"^no answer for 1 s while waiting for worker 0 to encode patches 0 to 7$"
    ):
        encoded(actors, tmp_path)


class Together:
    """Runs that need the same features at the same time, each in a thread with a team of its own."""

    def __init__(self, patch: pytest.MonkeyPatch, cache: Path) -> None:
        patch.setattr(room, "ray", SimpleNamespace(put=lambda made: made))
        patch.setattr(room, "MOMENT", 0.01)
        self.data, self.cache = SharedData(), cache
        self.patches: Any = Patches()
        self.found: dict[str, Any] = {}
        self.asked: dict[str, int] = {}

    def start(self, name: str, encode: Encode, say: Callable[[str], None] = lambda what: None) -> threading.Thread:
        def counting(view: int, first: int, last: int) -> Any:
            self.asked[name] = self.asked.get(name, 0) + 1
            return encode(view, first, last)

        def run() -> None:
            make = partial(features_of, views_of(self.patches, "an encoder", 1), BLOCK, cache=self.cache)
            try:
                self.found[name] = self.data.features(self.patches, "an encoder", [counting], make, say)
            except Exception as error:
                self.found[name] = error

        thread = threading.Thread(target=run)
        thread.start()
        return thread


class Gate:
    """An actor whose answers wait until the gate is opened."""

    def __init__(self, error: Exception | None = None) -> None:
        self.open, self.reached, self._error = threading.Event(), threading.Event(), error

    def __call__(self, view: int, first: int, last: int) -> Callable[[], np.ndarray]:
        def answer() -> np.ndarray:
            self.reached.set()
            assert self.open.wait(60)
            if self._error is not None:
                raise self._error
            return TABLE[first:last]

        return answer


@pytest.fixture
def together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Together:
    return Together(monkeypatch, tmp_path)


def plain(view: int, first: int, last: int) -> Callable[[], np.ndarray]:
    return lambda: TABLE[first:last]


def test_teams_that_need_the_same_features_encode_them_together(together: Together) -> None:
    slow, waits, told = Gate(), threading.Event(), list[str]()

    def say(what: str) -> None:
        told.append(what)
        waits.set()

    one = together.start("one", slow)
    assert slow.reached.wait(60)
    other = together.start("other", plain, say)
    assert waits.wait(60), "whoever waits says why"
    slow.open.set()
    for thread in (one, other):
        thread.join(60)
    for (features,), digest in together.found.values():
        assert np.array_equal(features.argument(False), TABLE) and digest == together.found["one"][1]
    assert together.asked["other"] > 0 and sum(together.asked.values()) == -(-N // BLOCK)
    assert set(told) <= {"encoding patches", *(f"encoding patches: {share} % of 100" for share in range(101))}


def test_a_team_whose_actors_die_leaves_its_blocks_to_the_others(together: Together) -> None:
    slow, dead = Gate(), Gate(ActorDied("3 times in a row"))
    one = together.start("one", slow)
    assert slow.reached.wait(60)
    other = together.start("other", dead, lambda what: slow.open.set())
    dead.open.set()
    for thread in (one, other):
        thread.join(60)
    assert all(np.array_equal(features.argument(False), TABLE) for (features,), _ in together.found.values())


def test_if_the_run_that_makes_them_fails_another_one_makes_them(together: Together) -> None:
    """One that is stopped, too: nobody waits for it."""
    slow, waits = Gate(FederationError("no answer for 1 s")), threading.Event()
    one = together.start("one", slow)
    assert slow.reached.wait(60)
    other = together.start("other", plain, lambda what: waits.set())
    assert waits.wait(60)
    slow.open.set()
    for thread in (one, other):
        thread.join(60)
    assert str(together.found["one"]) == "no answer for 1 s"
    assert np.array_equal(together.found["other"][0][0].argument(False), TABLE)


def test_a_run_that_is_stopped_waits_for_no_other(together: Together) -> None:
    slow = Gate()
    one = together.start("one", slow)
    assert slow.reached.wait(60)

    def stop(what: str) -> None:
        raise KeyError("stopped")

    together.start("other", plain, stop).join(60)
    assert isinstance(together.found["other"], KeyError) and one.is_alive()
    slow.open.set()
    one.join(60)
    assert np.array_equal(together.found["one"][0][0].argument(False), TABLE)
