"""Ray, for as long as anything in this process needs it: the first user starts it, the last one ends it."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.job_config import JobConfig

from fedrobust.errors import ExperimentError, FederationError, FedRobustError, NoPlaceError
from fedrobust.federation.joining import check_answer, check_joining, cluster_address, first_sentence
from fedrobust.federation.token import ensure_token
from fedrobust.machine import memory_limits, usable_cores
from fedrobust.private import private_files
from fedrobust.users_code import folders

LONGEST_ROOT = (103 if sys.platform == "darwin" else 107) - 79
"""Most bytes in the path of a folder for Ray's session: the limit for a socket's path, less what Ray appends."""
ROOM = 100 * 2**20
"""Bytes that must be free there: logs alone need some."""
STORE = 0.3
"""The share of the machine's memory that Ray reserves for objects."""
STORES = 80 * 2**20, 10**10
"""Bytes for objects: the least that Ray wants, and the most that it takes where `/dev/shm` is smaller."""


class _Session:
    """A Ray that has been started, or a cluster that has been joined, and how many blocks use it.

    It has a thread of its own: the processes that Ray starts are killed with the thread that started them, and in the
    main thread Ray would replace the user's handler of SIGTERM.
    """

    def __init__(self) -> None:
        """Raises `FederationError` if Ray cannot be started, or the cluster cannot be reached."""
        self.users = 0
        self._identity: tuple[str, str] | None = None
        self._begun, self._over = Future[None](), threading.Event()
        # A daemon: otherwise it, and Ray with it, would end before the functions registered with atexit.
        self._thread = threading.Thread(target=self._live, name="ray", daemon=True)
        try:
            self._thread.start()
            self._begun.result()
        except BaseException:
            self.end()
            raise

    def running(self) -> bool:
        """Whether Ray is still this one: users may shut it down, and start their own."""
        return ray.is_initialized() and _identity() == self._identity

    def end(self) -> None:
        """Leave Ray, unless another one is running by now, and remove what it has left."""
        self._over.set()
        with suppress(RuntimeError):  # after a Ctrl-C before the thread began; it then ends by itself
            self._thread.join()

    def _live(self) -> None:
        with ExitStack() as stack:
            try:
                self._start(stack)
            except BaseException as error:
                self._begun.set_exception(error)
                return
            self._begun.set_result(None)
            self._over.wait()

    def _start(self, stack: ExitStack) -> None:
        address, options = cluster_address(), dict[str, Any]()
        if address == "local":
            options = _share() | {"_temp_dir": stack.enter_context(_session_folder())}
            ensure_token()
        else:
            check_answer(address)
            check_joining(address)
        # A job's actors look for modules in the folder that was sent; those of a client, where its server does.
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ and not address.startswith("ray://"):
            options["job_config"] = where_actors_look()
        stack.callback(self._leave)
        try:
            with private_files():
                ray.init(address=address, logging_level="ERROR", **options)
        except Exception as error:  # Ray raises many kinds; all mean that there is no cluster
            reason = first_sentence(" ".join(str(error).split()))
            raise FederationError(f"Ray could not be started at '{address}': {reason}") from error
        self._identity = _identity()

    def _leave(self) -> None:
        if self._identity is None or self.running():
            ray.shutdown()


_lock = threading.Lock()
"""Held while Ray starts or ends, and while its users are counted."""
_session: _Session | None = None


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray, for as long as the block runs: the one that is already running, the cluster at RAY_ADDRESS, or a local one.

    Blocks may overlap in threads: the first one starts Ray, the others wait for it, and the last one ends it. A Ray
    that was not started here is never ended here. A bare `ray.init()` would join any cluster that happens to run on the
    machine.

    Raises `ExperimentError` if `RAY_ADDRESS` or `RAY_TMPDIR` is unusable, `FederationError` if no Ray can be had, and
    `NoPlaceError` if Ray was gone before the block ended.
    """
    session = _entered()
    keep_sigterm()
    try:
        yield
    except Exception as error:
        if session is None or session.running() or isinstance(error, FedRobustError):
            raise
        raise NoPlaceError("Ray was shut down, or has ended, while it was in use") from error
    finally:
        if session is not None:
            _left(session)


def keep_sigterm() -> None:
    """In the main thread: install Python's handler of SIGTERM again. Ray's own, below Python, prints its stack."""
    asked_to_end = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread() and asked_to_end is not None:
        signal.signal(signal.SIGTERM, asked_to_end)


@atexit.register
def _end_with_the_process() -> None:
    """Remove what is left if daemon threads were still using Ray."""
    if _session is not None:
        _session.end()


def check_ray() -> None:
    """Check what can be checked about Ray before anything runs: its address, whether it answers, its session's folder.

    Raises `ExperimentError` and `FederationError`, as `ray_session`.
    """
    if ray.is_initialized():
        return
    if (address := cluster_address()) == "local":
        _place()
    else:
        check_answer(address)


def _entered() -> _Session | None:
    global _session
    with _lock:
        if not ray.is_initialized():
            _session = _Session()
        elif _session is None or not _session.running():
            return None
        _session.users += 1
        return _session


def _left(session: _Session) -> None:
    global _session
    with _lock:
        session.users -= 1
        if session.users:
            return
        if _session is session:
            _session = None
        session.end()


def _share() -> dict[str, Any]:
    """What a local Ray may use: by default it would take the cores and the memory of the whole machine, whatever the
    job's limits are."""
    options: dict[str, Any] = {"include_dashboard": False, "num_cpus": usable_cores()}
    memory = memory_limits()
    if "cgroup" in memory:
        least, most = STORES
        options["object_store_memory"] = max(least, min(most, int(STORE * memory["cgroup"])))
    return options


def where_actors_look() -> JobConfig:
    """Actors look for modules where this process does.

    By default they would look in the current folder first: a `torch.py` there would be imported instead of torch. Ray
    leaves that out only in what it does for a client of a remote cluster.
    """
    here = Path.cwd()
    trusted = any(Path(folder).absolute() == here for folder in sys.path if folder not in folders())
    return JobConfig(_client_job=True, _py_driver_sys_path=[str(here)] if trusted else [])


def _identity() -> tuple[str, str]:
    """What distinguishes the running Ray from one that is started after it."""
    context = ray.get_runtime_context()
    return context.get_node_id(), context.get_job_id()


@contextmanager
def _session_folder() -> Iterator[str]:
    """A folder for Ray's session, removed with it, inside one that only its owner may enter.

    Ray lets everyone write to the folder that it is given and to its session in it, with sockets, logs and objects that
    did not fit into memory. The path of a socket has 107 bytes at most, and Ray needs 80 of them.
    """
    place = _place()
    try:
        private = tempfile.mkdtemp(prefix="ray-", dir=place)
    except OSError as error:
        raise FederationError(f"{place}, where Ray's session goes, cannot be written to: {error.strerror}") from None
    try:
        yield f"{private}/r"
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _place() -> Path:
    """The parent folder of Ray's session folder: RAY_TMPDIR, or that for temporary files, or `/tmp`.

    Raises `ExperimentError` if none of them is usable.
    """
    given = os.environ.get("RAY_TMPDIR", "").strip()
    try:
        place = Path(given or tempfile.gettempdir()).absolute()
    except OSError as error:  # Python finds no folder that it can write to, or the working folder is gone
        raise ExperimentError(f"{error.strerror}; set RAY_TMPDIR to a folder with a short path") from None
    length = len(os.fsencode(place))
    if length > LONGEST_ROOT and not given:
        place, length = Path("/tmp"), 4
    told = f"RAY_TMPDIR={given}" if given else f"{place}, where Ray's session goes,"
    advice = "" if given else "; set RAY_TMPDIR to another folder with a short path"
    if not place.is_dir():
        raise ExperimentError(f"{told} is no folder{advice}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ExperimentError(f"{told} cannot be written to{advice}")
    if length > LONGEST_ROOT:
        allowed = f"{length} bytes, at most {LONGEST_ROOT}; a link with a short path will do"
        raise ExperimentError(f"{told} has too long a path for the sockets of Ray: {allowed}")
    if (free := shutil.disk_usage(place).free) < ROOM:
        left = f"{free / 2**20:.0f} MiB are free, at least {ROOM / 2**20:.0f} are needed"
        raise ExperimentError(f"{told} is full: {left}{advice}")
    return place
