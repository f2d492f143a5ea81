"""What the processes of a run import, and in which order a run starts: benchmarks/start.py has the seconds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from torch import nn

from fedrobust.errors import ExperimentError, FederationError
from fedrobust.experiment import Experiment
from fedrobust.federation import starting
from fedrobust.federation.starting import pool_beside
from fedrobust.learning import Cnn

HEAVY = ("torch", "torchvision", "torchmetrics", "pytorch_lightning", "timm", "sklearn", "matplotlib", "scipy.stats")
"""What the driver and the coordinator need for no round; each costs half a second of CPU or more."""
TOLD = f"print(*[name for name in {HEAVY} if name in sys.modules])\n"
RUN = """\
import sys
from contextlib import contextmanager
from typing import Any

import fedrobust.runner as runner
from fedrobust.experiment_file import load
from fedrobust.federation.measures import evaluation_record, misread
from fedrobust.terminal import Progress, console

@contextmanager
def pool_beside(experiment, first):
    def ready():
        raise KeyboardInterrupt
    yield ready

def refused(*given):
    raise RuntimeError

runner.pool_beside, runner._open_tracker = pool_beside, refused
read = []
real = runner.hospitals_of
runner.hospitals_of = lambda experiment: read.append(real(experiment)) or read[0]
experiment = load("tiny.yaml")
with Progress(console(), experiment) as progress:
    try:
        runner.run(experiment, hooks=[progress.on_record], say=progress.say)
    except KeyboardInterrupt:
        pass
(hospitals,) = read
rows = sum(len(hospitals.indices[part]) for part in ("validation", "test"))
import numpy as np
found = {"clean": np.full((rows, len(hospitals.label_names)), 0.5, dtype=np.float32)}
evaluation_record(1, hospitals, experiment, found)
misread(hospitals, found["clean"][-len(hospitals.indices["test"]):])
"""
COORDINATOR = """\
import sys
import numpy as np
from fedrobust.experiment_file import load
from fedrobust.federation.coordinator import Coordinator

experiment = load("tiny.yaml")
coordinator = Coordinator()
coordinator.setup(experiment, np.ones(4, dtype=np.int64), np.zeros(6, dtype=np.float32), {})
coordinator.aggregate(1, [[0, 1, 2, 3]], [], None, np.ones((4, 6), dtype=np.float32))
"""


def imported(workplace: Path, script: str) -> list[str]:
    """Which of the heavy packages a script imports, in a process of its own."""
    (workplace / "tiny.yaml").write_text(
        "name: tiny\n"
        "data: {source: {name: histology, patients: 12, patches_per_patient: 12}, partition: {alpha: 10.0}}\n"
        "federation: {clients: 4, rounds: 1}\n"
    )
    done = subprocess.run([sys.executable, "-c", script + TOLD], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


def test_the_driver_of_a_run_needs_no_torch(workplace: Path) -> None:
    assert imported(workplace, RUN) == []


def test_a_run_in_python_needs_nothing_of_studies() -> None:
    script = (
        "import sys, fedrobust; fedrobust.run, fedrobust.session, fedrobust.Result\n"
        "print(*[name for name in ('optuna', 'pandas', 'matplotlib', 'sklearn', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_the_coordinator_needs_nothing_heavy(workplace: Path) -> None:
    assert imported(workplace, COORDINATOR) == []


class Started:
    """Stands in for Ray and the actors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.order: list[str] = []
        monkeypatch.setattr(starting, "ray_session", partial(self._block, "ray"))
        monkeypatch.setattr(starting.Pool, "__enter__", lambda pool: self.order.append("pool") or pool)
        monkeypatch.setattr(starting.Pool, "__exit__", lambda *_: self.order.append("no pool"))

    @contextmanager
    def _block(self, name: str) -> Iterator[None]:
        self.order.append(name)
        yield
        self.order.append(f"no {name}")


def test_nothing_is_started_for_data_that_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(monkeypatch)
    with pytest.raises(ExperimentError), pool_beside(Experiment(), partial(started.order.append, "first")):
        raise ExperimentError("the model does not fit")
    assert started.order == []


def test_actors_start_when_they_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(monkeypatch)
    monkeypatch.setattr(starting, "HEAD_START", 600.0)
    with pool_beside(Experiment(), partial(started.order.append, "first")) as ready:
        assert started.order == []
        assert ready() is ready()
        assert started.order == ["first", "ray", "pool"]
    assert started.order[3:] == ["no pool", "no ray"]


def test_actors_start_while_the_data_are_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    started, first = Started(monkeypatch), Event()
    monkeypatch.setattr(starting, "HEAD_START", 0.0)
    with pool_beside(Experiment(), first.set):
        assert first.wait(60)
    assert started.order == ["ray", "pool", "no pool", "no ray"]


def test_what_prevents_the_start_is_raised_where_the_actors_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise FederationError("no Ray")

    monkeypatch.setattr(starting, "ray_session", none)
    with pool_beside(Experiment()) as ready, pytest.raises(FederationError, match="no Ray"):
        ready()


@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize("pool", ["average", "flatten"])
@pytest.mark.parametrize("hidden", [None, 7])
def test_the_weights_of_a_cnn_are_counted_without_torch(norm: str, pool: str, hidden: int | None) -> None:
    model = Cnn(channels=(5, 8, 3), norm=norm, pool=pool, hidden=hidden)
    network = model.build(3, 27, seed=0)
    assert model.parameters(3, 27) == sum(each.numel() for each in network.parameters())


def test_a_cnn_is_checked_without_torch_as_with_it() -> None:
    model = Cnn(channels=(4, 4, 4))
    model.check(2, 8, seed=0)
    with pytest.raises(ExperimentError, match="at most 2 entries in channels") as refused:
        model.check(2, 7, seed=0)
    with pytest.raises(ExperimentError) as built:
        model.build(2, 7, seed=0)
    assert str(refused.value) == str(built.value)


class Flat(Cnn):
    """A user's own model, which inherits the options of the small one."""

    name: str = "test_start:Flat"

    def network(self, classes: int, size: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, classes + 1))


def test_a_users_own_model_is_checked_by_building_it() -> None:
    assert Flat().parameters(2, 4) == 49 * 3
    with pytest.raises(ExperimentError, match=r"gives \(1, 3\) for one image"):
        Flat().check(2, 4, seed=0)


def test_the_digest_of_a_model_is_that_of_its_state_dict() -> None:
    from hashlib import sha256

    from fedrobust.learning.models import state_digest
    from fedrobust.learning.vector import parameters_to_vector, with_weights

    model = Cnn(channels=(4,))
    network = model.build(2, 8, seed=3)
    digest = sha256(b"".join(name.encode() + value.numpy().tobytes() for name, value in network.state_dict().items()))
    rebuilt = with_weights(model, 2, 8, 3, parameters_to_vector(network))
    assert state_digest(rebuilt) == digest.hexdigest()
    changed = parameters_to_vector(network) + np.float32(1)
    assert state_digest(with_weights(model, 2, 8, 3, changed)) != digest.hexdigest()
    assert torch.equal(network.state_dict()["0.weight"], rebuilt.state_dict()["0.weight"])
