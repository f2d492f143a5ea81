"""Shared by all tests: one Ray instance and two teams of actors; the real data if they lie beside the repository."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from fedrobust.federation.pool import Pool

settings.register_profile("any machine", deadline=None)  # no test asserts how fast a machine is
settings.load_profile("any machine")


REPOSITORY = Path(__file__).parent.parent
IDC = REPOSITORY.parent / "shared" / "data" / "idc_breast_48.npz"

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_AUTH_MODE"] = "token"
for variable in ("FEDROBUST_DATA", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
    os.environ.pop(variable, None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of every command that a shell script starts with "&"
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist, which reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the shared Ray runs one after the other in one process; another one runs the rest, file by file."""
    for item in items:
        shared = "ray_local" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("ray" if shared else item.location[0]))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Without groups, both processes would start a Ray and make what the tests of a file share."""
    if session.config.getoption("loadgroup", default=False) and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError("this pytest-xdist cannot group the tests of this pytest: see constraints.txt")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A local Ray of eight logical cores, started once."""
    import ray

    ray.init(address="local", num_cpus=8, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def pool(ray_local: None) -> Iterator[Pool]:
    """One team of two client actors, for all runs whose actors do not matter."""
    from fedrobust.experiment import Workers
    from fedrobust.federation.pool import Pool

    with Pool(Workers(count=2), clients=8) as made:
        yield made


@pytest.fixture(scope="session")
def sharded(ray_local: None) -> Iterator[Pool]:
    """A team of one client actor, whose updates lie in two shards."""
    from fedrobust.experiment import Workers
    from fedrobust.federation.pool import Pool

    with Pool(Workers(count=1, shards=2), clients=8) as made:
        yield made


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders in which a test's classes were looked for are forgotten with it."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """The command line's handlers end with the test: what ends this process, e.g. `timeout`, must still end it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder: runs, cache and tracking store of the test go below it. What was imported from it is
    forgotten, so that another test may have a module of this name.
    """
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if tmp_path in Path(getattr(module, "__file__", None) or "/").parents:
            del sys.modules[name]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with data and the experiment file `tiny.yaml`, shared by the runs of a module."""
    from tiny import write_files

    folder = tmp_path_factory.mktemp("place")
    write_files(folder)
    return folder


@pytest.fixture
def in_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs in this folder."""
    monkeypatch.chdir(place)


@pytest.fixture(scope="session")
def idc_file() -> Path:
    """The real IDC patches. Skips where they are not beside the repository, except on CI, where they must be."""
    if not IDC.exists() and os.environ.get("CI") != "true":
        pytest.skip(f"needs the real IDC patches at ../shared/data/{IDC.name}")
    return IDC
