"""Who starts Ray, who ends it, and where a local one lies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import run, write_files

from fedrobust.errors import ExperimentError, FederationError, NoPlaceError
from fedrobust.federation import session
from fedrobust.federation.session import check_ray, ray_session

pytestmark = pytest.mark.slow


class StandIn:
    """As much of Ray as a session needs, without processes."""

    def __init__(self) -> None:
        self.running = 0
        """The number of the Ray that is running; 0 where there is none."""
        self.asked: list[dict[str, Any]] = []
        """The arguments of each start."""
        self.ended: list[int] = []
        """Which ones have been ended."""
        self.starting: Callable[[], None] = lambda: None
        """Called in the middle of a start."""

    def is_initialized(self) -> bool:
        return bool(self.running)

    def init(self, **options: Any) -> None:
        self.asked.append(options)
        self.starting()
        if self.running:
            raise RuntimeError("Maybe you called ray.init twice by accident?")
        self.running = len(self.asked)

    def shutdown(self) -> None:
        if self.running:
            self.ended.append(self.running)
        self.running = 0

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(get_node_id=lambda: f"node {self.running}", get_job_id=lambda: "01000000")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setattr(session, "ray", made)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return made


class Beside:
    """A session in a thread of its own, until it is told to end."""

    def __init__(self) -> None:
        self.entered, self._end = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._block, daemon=True)
        self._thread.start()

    def _block(self) -> None:
        try:
            with ray_session():
                self.entered.set()
                assert self._end.wait(60)
        except BaseException as error:
            self.error = error
        finally:
            self.entered.set()

    def end(self) -> None:
        self._end.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture
def beside() -> Iterator[Callable[[], Beside]]:
    made: list[Beside] = []

    def start() -> Beside:
        made.append(Beside())
        return made[-1]

    yield start
    for each in made:
        each.end()


def test_the_last_one_ends_it(stand_in: StandIn, beside: Callable[[], Beside]) -> None:
    first = beside()
    assert first.entered.wait(60)
    second = beside()
    assert second.entered.wait(60)
    first.end()
    assert stand_in.running == 1  # under the second one, it goes on
    third = beside()
    assert third.entered.wait(60)
    second.end()
    assert stand_in.running == 1
    third.end()
    assert stand_in.ended == [1]
    assert [each.error for each in (first, second, third)] == [None] * 3
    with ray_session():
        assert stand_in.running == 2


def test_who_comes_while_another_one_starts_it_waits(stand_in: StandIn, beside: Callable[[], Beside]) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def starting() -> None:
        begun.set()
        assert go_on.wait(60)

    stand_in.starting = starting
    first = beside()
    assert begun.wait(60)
    second = beside()
    assert not second.entered.wait(0.2)
    go_on.set()
    assert first.entered.wait(60)
    assert second.entered.wait(60)
    assert len(stand_in.asked) == 1
    first.end()
    second.end()
    assert (first.error, second.error, stand_in.ended) == (None, None, [1])


def test_a_start_that_fails_is_tried_again_by_who_waited(stand_in: StandIn, beside: Callable[[], Beside]) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def starting() -> None:
        begun.set()
        assert go_on.wait(60)
        if len(stand_in.asked) == 1:
            raise OSError("no room")

    stand_in.starting = starting
    first = beside()
    assert begun.wait(60)
    second = beside()
    go_on.set()
    assert first.entered.wait(60)
    assert second.entered.wait(60)
    assert isinstance(first.error, FederationError)
    assert "no room" in str(first.error)
    assert second.error is None
    assert stand_in.running == 2
    second.end()
    assert stand_in.running == 0


def test_a_ray_of_the_users_is_not_ended(stand_in: StandIn) -> None:
    stand_in.init()
    with ray_session(), ray_session():
        pass
    assert (stand_in.running, len(stand_in.asked)) == (1, 1)


def test_one_that_the_user_has_started_since_is_not_ended(stand_in: StandIn, beside: Callable[[], Beside]) -> None:
    with ray_session():
        stand_in.shutdown()
        stand_in.init()
        within = beside()  # uses the user's
        assert within.entered.wait(60)
    within.end()
    assert (stand_in.running, stand_in.ended) == (2, [1])


def test_after_one_that_was_shut_down_another_is_started(stand_in: StandIn, beside: Callable[[], Beside]) -> None:
    first = beside()
    assert first.entered.wait(60)
    stand_in.shutdown()
    second = beside()
    assert second.entered.wait(60)
    first.end()
    assert stand_in.running == 2
    second.end()
    assert stand_in.ended == [1, 2]


def test_an_error_under_a_ray_that_was_shut_down_says_so(stand_in: StandIn) -> None:
    with pytest.raises(NoPlaceError, match="shut down"), ray_session():
        stand_in.shutdown()
        raise ValueError("ActorHandle objects are not valid across Ray sessions")
    with pytest.raises(FederationError, match="a quorum"), ray_session():
        stand_in.shutdown()
        raise FederationError("a quorum is missing")
    with pytest.raises(ValueError, match="of another kind"), ray_session():
        raise ValueError("of another kind")


def test_many_threads_at_once(stand_in: StandIn) -> None:
    def block(number: int) -> int:
        with ray_session():
            return stand_in.running

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(block, range(200)))
    assert all(found)
    assert stand_in.ended == list(range(1, len(stand_in.asked) + 1))
    assert stand_in.running == 0


def test_neither_the_thread_nor_the_handler_of_sigterm_is_a_users(
    stand_in: StandIn, beside: Callable[[], Beside]
) -> None:
    """What a thread has started with Ray is killed when that thread ends."""
    threads: list[threading.Thread] = []

    def starting() -> None:
        threads.append(threading.current_thread())
        if threads[-1] is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # as Ray does

    stand_in.starting = starting
    before = signal.getsignal(signal.SIGTERM)
    first = beside()
    assert first.entered.wait(60)
    with ray_session():
        first.end()
        assert threads[0].is_alive()
    assert not threads[0].is_alive()
    with ray_session():
        assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_while_ray_starts_leaves_nothing(stand_in: StandIn) -> None:
    def starting() -> None:
        os.kill(os.getpid(), signal.SIGINT)  # the main thread, which waits, is interrupted
        time.sleep(0.2)

    stand_in.starting = starting
    with pytest.raises(KeyboardInterrupt), ray_session():
        raise AssertionError("it has started")
    assert stand_in.ended == [1]
    stand_in.starting = lambda: None
    with ray_session():
        assert stand_in.running == 2


@pytest.mark.parametrize(
    ("memory", "store"),
    [
        ({"machine": 100 * 2**30}, None),
        ({"machine": 100 * 2**30, "cgroup": 10 * 2**30}, 3 * 2**30),
        ({"machine": 100 * 2**30, "cgroup": 2**20}, 80 * 2**20),
        ({"machine": 100 * 2**30, "cgroup": 90 * 2**30}, 10**10),
    ],
)
def test_a_local_ray_has_the_share_of_this_process(
    stand_in: StandIn, memory: dict[str, int], store: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "usable_cores", lambda: 3)
    monkeypatch.setattr(session, "memory_limits", lambda: memory)
    with ray_session():
        assert stand_in.asked[0]["num_cpus"] == 3
        assert stand_in.asked[0].get("object_store_memory") == store


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("nowhere", "is no folder"),
        ("file", "is no folder"),
        ("closed", "cannot be written to"),
        ("long" * 8, "has too long a path for the sockets of Ray: .* a link with a short path will do"),
        ("full", "is full: 3 MiB are free, at least 100 are needed"),
    ],
)
@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_where_no_session_can_lie(
    variable: str, folder: str, told: str, short: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = short / folder
    if folder == "file":
        place.touch()
    elif folder != "nowhere":
        place.mkdir()
    usage, access = shutil.disk_usage, os.access
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: SimpleNamespace(free=3 << 20) if folder == "full" else usage(path)
    )
    monkeypatch.setattr(os, "access", lambda path, mode: folder != "closed" and access(path, mode))  # root may all
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, str(place))
    monkeypatch.setattr(tempfile, "tempdir", None if variable == "RAY_TMPDIR" else str(place))
    if variable == "TMPDIR" and folder.startswith("long"):
        with ray_session():
            assert stand_in.asked[0]["_temp_dir"].startswith("/tmp/ray-")
        return
    for check in (check_ray, lambda: ray_session().__enter__()):
        with pytest.raises(
            ExperimentError, match=f"^{'RAY_TMPDIR=' if variable == 'RAY_TMPDIR' else ''}{place}.* {told}"
        ) as raised:
            check()
        assert "RAY_TMPDIR" in str(raised.value)  # what to set
    assert not stand_in.asked


@pytest.mark.parametrize("folder", ["a b", "größer", "it's", "😀"])
def test_folders_that_will_do(folder: str, short: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    (short / folder).mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(short / folder))
    with ray_session():
        assert stand_in.asked[0]["_temp_dir"].startswith(f"{short / folder}/ray-")
        (made,) = (short / folder).iterdir()
    assert not made.exists()


@pytest.mark.parametrize("given", ["", " "])
def test_an_empty_variable_is_none(given: str, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", given)
    monkeypatch.setenv("RAY_ADDRESS", given)
    with ray_session():
        assert stand_in.asked[0]["address"] == "local"


def test_no_folder_for_temporary_files_at_all(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(ExperimentError, match="RAY_TMPDIR"):
        check_ray()


def test_a_run_that_finds_no_ray_leaves_nothing(
    stand_in: StandIn, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(workplace)
    before = set(workplace.iterdir())
    for address, kind in (("nonsense", ExperimentError), ("nobody.invalid:6379", FederationError)):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(kind, match=f"^RAY_ADDRESS='?{address}"):
            run()
        assert set(workplace.iterdir()) == before


SESSION = """
import os, stat
from pathlib import Path

import ray

from fedrobust.federation.session import ray_session

os.umask(0)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # as: taskset -c 0
with ray_session():
    session = Path(ray._private.worker._global_node.get_session_dir_path())

    @ray.remote
    def umask():
        return os.umask(0)

    private = session.parents[1]
    print(oct(stat.S_IMODE(private.stat().st_mode)), oct(ray.get(umask.remote())), end=" ")
    print(session.parent.name, ray.cluster_resources()["CPU"])
print(private.exists(), private.parent)
"""


TOO_LONG = "a folder for temporary files whose path is too long for Ray's sockets"


@pytest.mark.parametrize("root", ["", pytest.param(TOO_LONG, marks=pytest.mark.long)])
def test_only_its_owner_can_enter_the_session_of_ray(tmp_path: Path, root: str) -> None:
    temporary = tmp_path / root
    temporary.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_TMPDIR", "TMPDIR")}
    done = subprocess.run(
        [sys.executable, "-c", SESSION],
        env=kept | ({"TMPDIR": str(temporary)} if root else {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.splitlines()[-2:] == ["0o700 0o77 r 1.0", "False /tmp"], done.stdout + done.stderr
