"""Studies on disk: the same trials whether the driver died or not, none lost, none counted twice."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from shutil import copyfile
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState
from sqlalchemy.engine import Engine

from fedrobust.errors import ExperimentError
from fedrobust.tuning.objectives import Direction
from fedrobust.tuning.pruners import HyperbandPruner, MedianPruner, NoPruner, Pruner, WilcoxonPruner
from fedrobust.tuning.samplers import CmaEs, Grid, NsgaII, Qmc, Random, Sampler, Tpe
from fedrobust.tuning.space import Space, Values, parsed
from fedrobust.tuning.study import Asked, Completed, Failed, Outcome, Pruned, SweepStudy, open_sweep

pytestmark = pytest.mark.slow

NUMBERS = {"lr": {"log": [0.001, 1.0]}, "steps": {"int": [2, 16]}, "share": {"float": [0.0, 1.0], "step": 0.1}}
CHOICES = {
    "rule": {"choice": {"mean": "mean", "clip": {"tau": {"log": [0.1, 10]}}, "krum": {"f": {"int": [1, 4]}}}},
    "steps": {"int": [2, 9]},
    "acts": {"choice": [True, False]},
}
SAMPLERS: list[tuple[Sampler, dict[str, Any]]] = [
    (Tpe(startup=3), CHOICES),
    (CmaEs(population=5), NUMBERS),
    (Qmc(), CHOICES),
    (NsgaII(population=3), CHOICES),
    (Grid(), CHOICES | {"rule": {"choice": {"mean": "mean", "krum": {"f": {"int": [1, 4]}}}}}),
    (Random(), CHOICES),
]


@pytest.fixture(scope="module", autouse=True)
def _quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Databases that need not outlive the machine; their tables are made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "EMPTY", tmp_path_factory.mktemp("empty") / "optuna.db")

        def unsafe(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA journal_mode = MEMORY")

        sqlalchemy.event.listen(Engine, "connect", unsafe)
        optuna.storages.RDBStorage(f"sqlite:///{EMPTY}")
        yield
        sqlalchemy.event.remove(Engine, "connect", unsafe)


def named(given: tuple[Sampler, dict[str, Any]]) -> str:
    return f"{given[0].name}-{'numbers' if given[1] is NUMBERS else 'choices'}"


ROUNDS = 6
EMPTY = Path()
"""A database without studies, once `_quick` has made it."""


class KilledError(Exception):
    """The driver is gone."""


class Sweep:
    """A sweep of a made-up function of the parameters, on disk in the working folder."""

    def __init__(
        self,
        sampler: Sampler,
        space: dict[str, Any] = CHOICES,
        pruner: Pruner = NoPruner(),  # noqa: B008  options are frozen
        directions: tuple[Direction, ...] = ("maximize",),
        batch: int = 3,
        trials: int = 11,
        seed: int = 5,
    ) -> None:
        self.options: dict[str, Any] = {
            "space": Space({path: parsed(path, template) for path, template in space.items()}),
            "sampler": sampler,
            "pruner": pruner,
            "directions": directions,
            "seed": seed,
            "trials": trials,
            "batch": batch,
            "rounds": ROUNDS,
        }
        self.run: list[int] = []
        self.pruned_at: dict[int, int] = {}

    def open(self, place: str) -> SweepStudy:
        if not Path(place).exists():
            Path(place).mkdir()
            copyfile(EMPTY, Path(place, "optuna.db"))
        return open_sweep(f"sqlite:///{place}/optuna.db", "tune", "digest", **self.options)

    def drive(self, place: str, deaths: Sequence[int] = (), order: Callable[[Any], Any] = list) -> SweepStudy:
        """Run all trials; each driver but the last dies after so many steps of its own, and another one takes over."""
        for fuse in (*deaths, math.inf):
            self.fuse = fuse
            try:
                study = self.open(place)
                while batch := study.ask():
                    self.step()
                    outcomes = {trial.number: self.outcome(study, trial) for trial in order(batch)}
                    study.tell(outcomes)
                    self.step()
                return study
            except KilledError:
                continue
        raise AssertionError("the last driver does not die")

    def step(self) -> None:
        self.fuse -= 1
        if self.fuse < 0:
            raise KilledError

    def outcome(self, study: SweepStudy, trial: Asked) -> Outcome:
        self.run.append(trial.number)
        value = score(trial.values)
        for step in range(ROUNDS):
            self.step()
            if study.report(trial.number, step, value * (step + 1) / ROUNDS + 0.1 * math.sin(step + trial.number)):
                self.pruned_at[trial.number] = step
                return Pruned()
        if trial.number == 7:
            return Failed("no number")
        return Completed((value, -value * value)[: len(self.options["directions"])])


def score(values: Values) -> float:
    """A number of the parameters that a search can get better at."""
    rule = values.get("rule", "mean")
    tau = math.log(rule.get("tau", rule.get("f", 1))) if isinstance(rule, dict) else 0.5
    return tau - abs(values["steps"] - 6) / 10 + abs(math.log(values.get("lr", 1.0))) * values.get("share", 0)


@pytest.mark.parametrize("given", SAMPLERS, ids=named)
def test_the_same_seed_gives_the_same_trials_whether_the_driver_died_or_not(
    given: tuple[Sampler, dict[str, Any]], workplace: Path
) -> None:
    whole, broken = Sweep(*given), Sweep(*given)
    expected = whole.drive("whole").trials()
    assert [trial.number for trial in expected] == list(range(11))
    assert whole.run == list(range(11))
    assert len({str(trial.values) for trial in expected}) > 7, "a search that stays where it is"
    found = broken.drive("broken", [0, 25, 22])
    assert found.trials() == expected
    assert found.finished == 11
    assert len(broken.run) > 11
    assert found.best() == whole.open("whole").best()
    assert Sweep(*given, seed=6).open("other").ask()[0].values != expected[0].values
    if given[0].name in ("tpe", "cma_es", "nsga_ii"):  # or any list of trials would do
        down = Sweep(*given, directions=("minimize",)).drive("down").trials()
        assert [trial.values for trial in down[:3]] == [trial.values for trial in expected[:3]], "nothing is known yet"
        assert [trial.values for trial in down] != [trial.values for trial in expected]


@pytest.mark.parametrize("given", [SAMPLERS[0], SAMPLERS[2], SAMPLERS[3]], ids=named)
def test_a_driver_that_dies_in_the_middle_of_a_batch(
    given: tuple[Sampler, dict[str, Any]], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With some of its trials in the storage and some not, or with some of them finished and some not."""
    expected = Sweep(*given).drive("whole").trials()
    for method in ("add_trial", "tell"):
        original, calls = getattr(optuna.Study, method), [0]

        def dying(self: optuna.Study, *args: Any, original: Any = original, calls: list[int] = calls) -> Any:
            if self.user_attrs:  # the study on disk, not a copy of it
                calls[0] += 1
                if calls[0] in (2, 7):
                    raise KilledError
            return original(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(optuna.Study, method, dying)
            assert Sweep(*given).drive(method, [10**6] * 2).trials() == expected
        assert calls[0] == 11 + 2


@pytest.mark.parametrize("given", SAMPLERS, ids=named)
def test_more_trials_are_those_that_there_would_have_been_from_the_start(
    given: tuple[Sampler, dict[str, Any]], workplace: Path
) -> None:
    """The rest of a batch that was cut short is chosen as if nothing were known of its other trials."""
    whole = Sweep(*given, batch=4, trials=19).drive("whole").trials()
    for trials in (2, 9, 15, 19):
        assert Sweep(*given, batch=4, trials=trials).drive("grown").trials() == whole[:trials]


def test_running_trials_are_handed_out_again_under_their_numbers(workplace: Path) -> None:
    sweep = Sweep(Tpe(), batch=2, trials=3)
    first = sweep.open("here").ask()
    assert [trial.number for trial in first] == [0, 1]
    study = sweep.open("here")
    assert study.finished == 0
    assert study.ask() == first
    assert study.ask() == first, "asking twice makes no more of them"
    study.tell({0: Completed((1.0,)), 1: Failed("it broke")})
    assert [trial.number for trial in study.ask()] == [2]
    study.tell({2: Completed((0.5,))})
    assert study.ask() == []
    assert sweep.open("here").ask() == []
    assert [trial.outcome for trial in study.trials()] == [Completed((1.0,)), Failed("it broke"), Completed((0.5,))]
    assert [trial.number for trial in study.best()] == [0]
    assert [trial.state for trial in study.study.trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]


def test_only_whole_batches_of_numbers_are_told(workplace: Path) -> None:
    study = Sweep(Random(), batch=2).open("here")
    study.ask()
    with pytest.raises(ValueError, match=r"trials \[0, 1\], found \[0\]"):
        study.tell({0: Completed((1.0,))})
    with pytest.raises(ValueError, match="finite"):
        study.tell({0: Completed((1.0,)), 1: Completed((math.nan,))})
    assert study.finished == 0


@pytest.mark.parametrize(
    "pruner", [MedianPruner(startup=3, warmup=2), HyperbandPruner(), WilcoxonPruner()], ids=lambda each: each.name
)
def test_a_pruner_sees_finished_batches_only(pruner: Pruner, workplace: Path) -> None:
    """Whichever trial of a batch is ahead of the others, and wherever the driver dies, the same ones are ended."""
    sweep, behind, broken = (Sweep(Random(), pruner=pruner, batch=3, trials=12) for _ in range(3))
    expected = sweep.drive("whole").trials()
    assert 0 < len(sweep.pruned_at) < 11
    assert all(number >= 3 for number in sweep.pruned_at if pruner.name != "hyperband")
    assert behind.drive("behind", order=lambda batch: list(reversed(batch))).trials() == expected
    assert behind.pruned_at == sweep.pruned_at
    assert broken.drive("broken", [8, 30]).trials() == expected
    assert broken.pruned_at == sweep.pruned_at


def test_the_median_of_finished_trials_by_hand(workplace: Path) -> None:
    study = Sweep(Random(), pruner=MedianPruner(startup=2, warmup=1), batch=2, trials=4).open("here")
    study.ask()
    for step in range(3):
        assert not study.report(0, step, 1.0)
        assert not study.report(1, step, 3.0)
    study.tell({0: Completed((1.0,)), 1: Completed((3.0,))})
    study.ask()
    assert not study.report(2, 0, 0.0), "it is still warming up"
    assert study.report(2, 1, 1.9), "the median of 1 and 3 is 2"
    assert not study.report(3, 1, 2.1)
    study.tell({2: Pruned(), 3: Completed((2.1,))})
    assert [trial.reports for trial in study.trials()][2:] == [{0: 0.0, 1: 1.9}, {1: 2.1}]


def test_what_a_dead_driver_wrote_of_a_batch_is_not_compared_with(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finished one trial of the batch, and died when it had written the reports of the other."""
    sweep = Sweep(Random(), pruner=MedianPruner(startup=2, warmup=1), batch=2, trials=4)
    study = sweep.open("here")
    study.ask()
    for step, (low, high) in enumerate([(0.0, 0.0), (1.0, 3.0), (1.0, 7.0)]):
        study.report(0, step, low)
        study.report(1, step, high)
    study.tell({0: Completed((1.0,)), 1: Completed((7.0,))})

    def ended() -> list[bool]:
        return [study.report(3, 1, 2.5), study.report(3, 2, 2.6)]  # the medians are 2 and 4

    def dying(self: optuna.Study, number: int, *args: Any, original: Any = optuna.Study.tell) -> Any:
        if number == 3:
            raise KilledError
        return original(self, number, *args)

    asked = study.ask()
    assert not any(study.report(2, step, 10.0) for step in range(3))
    assert ended() == [False, True]
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(optuna.Study, "tell", dying)
        study.tell({2: Completed((10.0,)), 3: Pruned()})
    study = sweep.open("here")
    assert study.finished == 3
    assert study.ask() == asked[1:]
    assert ended() == [False, True]


def test_several_objectives_leave_what_no_other_beats(workplace: Path) -> None:
    sweep = Sweep(NsgaII(population=4), directions=("maximize", "minimize"), batch=4, trials=4)
    study = sweep.open("here")
    study.ask()
    values = [(1.0, 5.0), (2.0, 6.0), (0.5, 7.0), (2.0, 5.5)]
    study.tell({number: Completed(each) for number, each in enumerate(values)})
    assert [trial.number for trial in study.best()] == [0, 3]


def test_a_whole_grid_is_run_once(workplace: Path) -> None:
    space = {"rule": {"choice": {"mean": "mean", "krum": {"f": {"int": [1, 4]}}}}, "acts": {"choice": [True, False]}}
    sweep = Sweep(Grid(), {**space, "steps": {"int": [6, 7]}}, trials=20)
    found = [str(trial.values) for trial in sweep.drive("grid").trials()]
    assert len(found) == len(set(found)) == (1 + 4) * 2 * 2
    assert found != [str(sweep.options["space"].chosen(point)) for point in sweep.options["space"].points()]


def test_qmc_fills_every_choice_evenly(workplace: Path) -> None:
    study = Sweep(Qmc(), {"acts": {"choice": [True, False]}, "steps": {"int": [1, 4]}}, batch=8, trials=16)
    counts: dict[str, int] = {}
    for trial in study.drive("qmc").trials():
        counts[str(trial.values)] = counts.get(str(trial.values), 0) + 1
    assert sorted(counts.values()) == [2] * 8


def test_studies_are_found_by_name_and_refused_where_they_do_not_fit(workplace: Path) -> None:
    sweep = Sweep(Random())
    url = "sqlite:///a/new/folder/optuna.db"
    open_sweep(url, "tune", "digest", **sweep.options).ask()
    assert len(sweep.open("a/new/folder").ask()) == len(open_sweep(url, "tune", "digest", **sweep.options).ask())
    with pytest.raises(ExperimentError, match="objective function"):
        open_sweep(url, "tune", "digest", "another function", **sweep.options)
    with pytest.raises(ExperimentError, match="file or its experiment"):
        open_sweep(url, "tune", "other digest", **sweep.options)
    assert open_sweep(url, "other", "other digest", **sweep.options).finished == 0
    for wrong in ("nonsense", "nosuchdb://x/y", "mysql+nosuchdriver://x/y"):
        with pytest.raises(ExperimentError, match=f"no Optuna storage at '{wrong}'".replace("+", r"\+")):
            open_sweep(wrong, "tune", "digest", **sweep.options)


def test_trials_with_the_same_options_are_one_of_the_best(workplace: Path) -> None:
    sweep = Sweep(Random(), space={"side": {"choice": ["left", "right"]}}, batch=8, trials=8)
    study = sweep.open("here")
    sides = [trial.values["side"] for trial in study.ask()]
    study.tell({number: Completed((float(side == "left"),)) for number, side in enumerate(sides)})
    assert [trial.number for trial in study.best(8)] == [sides.index("left"), sides.index("right")]
