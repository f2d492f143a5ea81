"""Shares of the machine, and what actors do when they fail or stay silent."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

import fedrobust.federation.pool as pool_module
from fedrobust.errors import FederationError
from fedrobust.experiment import Workers
from fedrobust.federation.actors import answer
from fedrobust.federation.pool import Pool, Share, Team, share, teams_that_fit
from fedrobust.federation.shared_data import SharedData


@pytest.mark.parametrize(
    ("workers", "resources", "clients", "expected"),
    [
        ({}, {"CPU": 2.0}, 10, Share(2, 1.0, 0.0, 1)),
        ({}, {"CPU": 16.0}, 10, Share(10, 1.0, 0.0, 1)),
        ({"count": 4}, {"CPU": 2.0}, 10, Share(4, 0.5, 0.0, 1)),
        ({"count": 3}, {"CPU": 2.0}, 10, Share(3, 0.666, 0.0, 1)),
        ({}, {"CPU": 8.0, "GPU": 1.0}, 10, Share(4, 1.0, 0.25, 1)),
        ({"gpus": 0.5}, {"CPU": 2.0, "GPU": 2.0}, 10, Share(4, 0.5, 0.5, 1)),
        ({"gpus": 0.4}, {"CPU": 8.0, "GPU": 2.0}, 10, Share(4, 1.0, 0.4, 1)),
        ({"gpus": 0.0}, {"CPU": 2.0, "GPU": 2.0}, 10, Share(2, 1.0, 0.0, 1)),
        ({"count": 2, "threads": 3}, {"CPU": 8.0}, 10, Share(2, 1.0, 0.0, 3)),
    ],
)
def test_auto(workers: dict[str, float], resources: dict[str, float], clients: int, expected: Share) -> None:
    assert share(Workers.model_validate(workers), resources, clients) == expected


@pytest.mark.parametrize(
    ("workers", "resources", "teams"),
    [
        ({}, {"CPU": 2.0}, 2),
        ({"cpus": 2.0}, {"CPU": 8.0}, 4),
        ({}, {"CPU": 16.0, "GPU": 2.0}, 8),
        ({"gpus": 0.0}, {"CPU": 16.0, "GPU": 2.0}, 16),
        ({"cpus": 2.0}, {"CPU": 1.0}, 1),
    ],
)
def test_as_many_teams_as_there_is_room_for(
    workers: dict[str, float], resources: dict[str, float], teams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    assert teams_that_fit(Workers.model_validate(workers)) == teams


def test_more_than_the_cluster_has_is_refused() -> None:
    with pytest.raises(FederationError, match=r"4, .* 2"):
        share(Workers(count=2, cpus=2.0), {"CPU": 2.0}, 10)
    with pytest.raises(FederationError, match=r"GPUs .*0\.5, .* 0"):
        share(Workers(count=2, gpus=0.25), {"CPU": 2.0}, 10)


def test_silence_and_failure_name_what_was_awaited(ray_local: None) -> None:
    @ray.remote(num_cpus=0)
    def slow() -> None:
        time.sleep(30)

    @ray.remote(num_cpus=0)
    def broken() -> None:
        raise ValueError("a bad batch")

    reference = slow.remote()
    with pytest.raises(FederationError, match=r"0\.1 s .* the slow one"):
        answer(reference, "the slow one", 0.1)
    ray.cancel(reference, force=True)
    with pytest.raises(FederationError, match=r"the broken one .*ValueError: a bad batch"):
        answer(broken.remote(), "the broken one", 60)


@pytest.fixture
def idle(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Actors that do nothing, and are there at once."""

    class Idle:
        def __init__(self, *_: object) -> None:
            pass

    for name in ("ClientHost", "Coordinator", "Adversary"):
        monkeypatch.setattr(pool_module, name, Idle)


def test_a_team_is_leased_and_given_back_and_its_room_is_free_afterwards(idle: None) -> None:
    before = ray.available_resources().get("CPU")
    with Pool(Workers(count=2), clients=4) as pool:
        with pool.lease() as team:
            assert len(team.workers) == 2
            first = team
        with pool.lease() as team:
            assert team is first
    for _ in range(100):
        if ray.available_resources().get("CPU") == before:
            break
        time.sleep(0.1)
    assert ray.available_resources().get("CPU") == before


def test_patches_are_stored_once_for_all_runs_that_have_them(ray_local: None) -> None:
    """And no longer than somebody has them."""

    class Held:
        images, labels = np.zeros((4, 2, 2, 3), dtype=np.uint8), np.arange(4)

    one, other, data = Held(), Held(), SharedData()
    first, again = data.of(one), data.of(one)  # type: ignore[arg-type]
    assert first is again and data.of(other) != first  # type: ignore[arg-type]
    np.testing.assert_array_equal(ray.get(first[1]), one.labels)
    del one
    gc.collect()
    assert len(data._held) == 1


def kill(actor: ActorHandle) -> None:
    """End an actor, and wait until that is known: for a moment a dead one still seems to answer."""
    ray.kill(actor)
    with pytest.raises(RayActorError):
        for _ in range(600):
            ray.get(actor.__ray_ready__.remote(), timeout=60)
            time.sleep(0.1)


@pytest.mark.slow
def test_a_team_that_has_lost_an_actor_is_started_again(idle: None) -> None:
    with Pool(Workers(count=2, cpus=0.5), clients=4) as pool:
        with pool.lease() as team:
            before = team.coordinator
            kill(before)
        with pool.lease() as team:
            assert team.coordinator is not before
            ray.get([actor.__ray_ready__.remote() for actor in team.actors])
            kept = team.coordinator
        with pool.lease() as team:
            assert team.coordinator is kept


@pytest.mark.slow
def test_a_pool_whose_teams_find_no_place_says_so(idle: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the nodes had gone: a broken team is not leased, and the wait for a place has an end."""
    with Pool(Workers(count=1, cpus=0.5), clients=4) as pool:
        with pool.lease() as team:
            kill(team.start_adversary())
        monkeypatch.setattr(pool_module, "PATIENCE", 3.0)
        monkeypatch.setattr(Team, "mend", lambda team: False)
        with pytest.raises(FederationError, match=r"for 3 s: .*killed"), pool.lease():
            raise AssertionError("a broken team was leased")


class Cores:
    """Placement groups on a machine with so many cores, without Ray."""

    def __init__(self, cores: int) -> None:
        self.free, self.waited = float(cores), threading.Event()

    def group(self, bundles: list[dict[str, float]], strategy: str) -> Cores.Group:
        return Cores.Group(self, sum(bundle["CPU"] for bundle in bundles))

    class Group:
        def __init__(self, machine: Cores, cores: float) -> None:
            self.machine, self.cores, self.placed = machine, cores, False

        def wait(self, timeout_seconds: float) -> bool:
            if not self.placed and self.machine.free >= self.cores:
                self.machine.free -= self.cores
                self.placed = True
            if not self.placed:
                self.machine.waited.set()
                time.sleep(0.01)
            return self.placed

    def removed(self, group: Cores.Group) -> None:
        self.free += group.cores if group.placed else 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Cores:
    """Two cores, on which actors cost nothing and nobody is patient."""
    made = Cores(2)
    monkeypatch.setattr(pool_module, "placement_group", made.group)
    monkeypatch.setattr(pool_module, "remove_placement_group", made.removed)
    monkeypatch.setattr(pool_module, "_team", _placed_only)
    monkeypatch.setattr(pool_module, "PATIENCE", 0.05)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": made.free})
    return made


def _placed_only(split: Share, pool: Pool) -> SimpleNamespace:
    group = pool_module._placed([{"CPU": split.cpus}] * split.count, pool)
    return SimpleNamespace(end=lambda: None, group=group)


@pytest.mark.parametrize("teams", [1, 2])
def test_what_another_run_of_this_process_holds_is_waited_for(
    machine: Cores, teams: int, caplog: pytest.LogCaptureFixture
) -> None:
    """However long that run takes: it was an error after two minutes."""
    workers, entered = Workers(count=2 // teams), threading.Event()

    def second() -> None:
        with Pool(workers, clients=2, teams=teams):
            entered.set()

    with ThreadPoolExecutor(1) as beside:
        with Pool(workers, clients=2, teams=teams):
            asked = beside.submit(second)
            assert machine.waited.wait(60)
            time.sleep(4 * pool_module.PATIENCE)
            assert not entered.is_set()
            assert not asked.done()
        asked.result(60)
    assert machine.free == 2
    assert [record.message.split(",")[0] for record in caplog.records] == [f"waiting for {2 // teams} cores"]


def test_pools_that_start_at_once_do_not_each_keep_half(machine: Cores) -> None:
    done = []

    def sweep(number: int) -> None:
        with Pool(Workers(count=1), clients=2, teams=2):
            done.append(number)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(sweep, range(12)))
    assert sorted(done) == list(range(12))
    assert machine.free == 2


def test_what_the_same_thread_holds_is_not_waited_for(machine: Cores) -> None:
    with Pool(Workers(count=2), clients=2), pytest.raises(FederationError, match="2 actors"):
        Pool(Workers(count=2), clients=2).__enter__()
    assert machine.free == 2


def test_what_other_programs_hold_has_an_end(machine: Cores) -> None:
    machine.free = 1.0
    with pytest.raises(FederationError, match=r"2 actors .*{'CPU': 1.0}"):
        Pool(Workers(count=2), clients=2).__enter__()
    assert machine.free == 1.0


def test_ctrl_c_ends_the_wait_for_room(machine: Cores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "PATIENCE", 1e6)
    machine.free = 0.0

    def interrupt() -> None:
        assert machine.waited.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as beside, pytest.raises(KeyboardInterrupt):
        beside.submit(interrupt)
        Pool(Workers(count=2), clients=2).__enter__()
    machine.free = 2.0
    with Pool(Workers(count=2), clients=2):
        assert machine.free == 0
