"""Sweep files: the experiments that they compose, and what they refuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from refused import check, refused

from fedrobust.errors import ExperimentError, Origin
from fedrobust.experiment_file import dump, load
from fedrobust.tuning import SweepPlan, load_sweep

BASE = """
name: base
seed: 9
data: {source: {name: histology, patients: 20}}
federation: {clients: 10, rounds: 12}
attacks: [{name: sign_flip, fraction: 0.3}]
"""
SWEEP = """
name: small
experiment: base.yaml
changes: {federation.rounds: 4}
space:
  learning.local.optimizer.lr: {log: [0.001, 0.3]}
  trust.acts: {choice: [true, false]}
  aggregation:
    choice:
      clipping: {rule: {name: centered_clipping, tau: {log: [0.1, 10.0]}}}
      krum: {stages: [nnm], rule: multi_krum, f: {int: [1, 3]}}
seeds: [1, 2]
attacks:
  nobody: []
  ipm: {name: ipm, fraction: 0.2}
objectives:
  - metric: test/balanced_accuracy
sampler: {name: tpe, startup: 5}
pruner: none
trials: 8
"""


@pytest.fixture(autouse=True)
def _files(workplace: Path) -> None:
    Path("base.yaml").write_text(BASE)
    Path("sweep.yaml").write_text(SWEEP)


def changed(old: str, new: str) -> None:
    text = Path("sweep.yaml").read_text()
    assert old in text
    Path("sweep.yaml").write_text(text.replace(old, new))


CHOSEN = {
    "learning.local.optimizer.lr": 0.02,
    "trust.acts": True,
    "aggregation": "krum",
    "aggregation.krum.f": 3,
}


def test_the_experiment_of_a_trial_has_what_was_chosen() -> None:
    plan = load_sweep("sweep.yaml")
    values = plan.space.chosen(CHOSEN)
    found = plan.experiment(values, "ipm", 2, trial=3)
    assert found.learning.local.optimizer.lr == 0.02
    assert found.trust.acts
    assert ([stage.name for stage in found.aggregation.stages], found.aggregation.rule.name) == (["nnm"], "multi_krum")
    assert found.aggregation.f == 3
    assert [(attack.name, attack.fraction) for attack in found.attacks] == [("ipm", 0.2)]
    assert (found.seed, found.federation.rounds, found.federation.clients) == (2, 4, 10)
    assert found.tracking.run_name == "trial 3 | ipm | seed 2 | small: lr 0.02, acts True, aggregation multi_krum"
    assert not found.tracking.model
    assert plan.experiment(values, "nobody", 1).attacks == ()
    assert plan.runs == [("nobody", 1), ("ipm", 1), ("nobody", 2), ("ipm", 2)]
    assert (plan.rounds, plan.trials, plan.samples[0].tracking.experiment) == (4, 8, "fedrobust")


def test_the_best_trial_is_an_experiment_file_that_runs_as_it_is() -> None:
    plan = load_sweep("sweep.yaml")
    best = plan.experiment(plan.space.chosen(CHOSEN))
    Path("best.yaml").write_text(dump(best))
    assert load("best.yaml") == best
    assert (best.seed, best.attacks[0].name, best.tracking.run_name) == (9, "sign_flip", None)


def test_without_attacks_each_trial_meets_those_of_its_experiment() -> None:
    changed("attacks:\n  nobody: []\n  ipm: {name: ipm, fraction: 0.2}\n", "")
    changed("  trust.acts: {choice: [true, false]}", "  attacks.0.fraction: {float: [0.1, 0.4], step: 0.1}")
    plan = load_sweep("sweep.yaml")
    assert plan.runs == [("own", 1), ("own", 2)]
    values = plan.space.chosen({**CHOSEN, "attacks.0.fraction": 0.30000000000000004})
    assert plan.experiment(values, *plan.runs[1]).attacks[0].fraction == 0.3


def test_the_digest_is_that_of_all_that_decides() -> None:
    def digest(*overrides: str) -> str:
        return load_sweep("sweep.yaml", overrides).digest

    first = digest()
    assert digest() == digest("trials=99", "hours=2", "name=other") == first
    others = ["seed=1", "seeds=[1, 3]", "parallel=3", "sampler=random", "pruner=none", "changes={federation.rounds: 5}"]
    assert [digest(each) == first for each in others] == [False, False, False, False, True, False]
    Path("base.yaml").write_text(BASE.replace("patients: 20", "patients: 21"))
    assert digest() != first
    Path("base.yaml").write_text(BASE + "workers: {count: 1}\n")
    assert digest() == first, "workers cannot change a result"
    changed("  trust.acts: {choice: [true, false]}\n", "")
    changed("space:\n", "space:\n  trust.acts: {choice: [true, false]}\n")
    assert digest() != first, "the order of what is searched is the order of the draws"


ACTS, LR = "trust.acts: {choice: [true", "{log: [0.001, 0.3]}"
TPE = "sampler: {name: tpe, startup: 5}"
LR_PATH = "learning.local.optimizer.lr"


@pytest.mark.parametrize(
    ("old", "new", "line", "problem"),
    [
        ("local.optimizer.lr:", "local.optimizer.lrr:", 6, {"entry": f"space.{LR_PATH}r", "path": f"{LR_PATH}r"}),
        ("trust.acts:", "trsut.acts:", 7, {"entry": "space.trsut.acts", "path": "trsut", "allows": "trust"}),
        ("learning.local.optimizer", "learning.locl.optimizer", 6, {"path": "learning.locl", "allows": "local"}),
        (LR, "{log: [0.3, 0.001]}", 6, {"entry": f"space.{LR_PATH}.log", "says": "below"}),
        (LR, "{float: [-0.1, 0.3]}", 6, {"path": LR_PATH, "found": "-0.1"}),
        (
            "tau: {log: [0.1, 10.0]}",
            "tau: {log: [0.1]}",
            10,
            {"entry": "space.aggregation.choice.clipping.rule.tau.log", "says": "two ends"},
        ),
        ("tau:", "tao:", 8, {"entry": "space.aggregation", "path": "aggregation.rule.tao", "allows": "tau"}),
        ("rule: multi_krum", "rule: multikrum", 8, {"found": "'multikrum'", "note": "aggregation: krum and 2 more"}),
        ("f: {int: [1, 3]}", "f: {int: [-1, 3]}", 8, {"path": "aggregation.f", "note": "aggregation.krum.f: -1"}),
        (f"{ACTS}, false]}}", f"{ACTS}, 1]}}", 7, {"entry": "space.trust.acts.choice.1", "says": "once"}),
        (f"{ACTS}, false]}}", f"{ACTS}, no]}}", 7, {"path": "trust.acts", "found": "'no'", "note": "trust.acts: no"}),
        (ACTS, "aggregation.f: {choice: [true", 7, {"entry": "space.aggregation.f", "says": "whole"}),
        (ACTS, "seed: {choice: [true", 7, {"entry": "space.seed", "says": "seeds"}),
        (ACTS, "workers.count: {choice: [true", 7, {"entry": "space.workers.count", "says": "workers"}),
        (ACTS, "attacks.0.scale: {choice: [true", 7, {"entry": "space.attacks.0.scale", "says": "attacks"}),
        ("name: ipm, fraction", "name: ipn, fraction", 15, {"entry": "attacks.ipm", "path": "attacks.0.name"}),
        ("nobody: []", "nobody: 3", 14, {"path": "attacks.nobody"}),
        ("seeds: [1, 2]", "seeds: [1, 1]", 12, {"path": "seeds", "says": "once"}),
        (
            "federation.rounds: 4",
            "federation.rounds: 0",
            4,
            {"entry": "changes", "path": "federation.rounds", "found": "0"},
        ),
        (TPE, "sampler: cmaes", 18, {"path": "sampler", "hint": "did you mean 'cma_es'?"}),
        (TPE, "sampler: cma_es", 18, {"entry": "sampler", "says": "trust.acts"}),
        (TPE, "sampler: grid", 18, {"entry": "sampler", "says": LR_PATH}),
        ("pruner: none", "pruner: wilcoxon", 19, {"path": "pruner", "says": "5 runs"}),
        ("pruner: none", "pruner: medain", 19, {"path": "pruner", "hint": "did you mean 'median'?"}),
        ("  - metric: test/balanced_accuracy", "  - metrics: x", 17, {"path": "objectives.0.metrics"}),
        ("trials: 8", "trails: 8", 20, {"path": "trails", "hint": "did you mean 'trials'?"}),
    ],
)
def test_what_is_wrong_is_told_with_its_place(old: str, new: str, line: int, problem: dict[str, Any]) -> None:
    changed(old, new)
    with pytest.raises(ExperimentError) as caught:
        load_sweep("sweep.yaml")
    check(caught.value.problems[0], file="sweep.yaml", line=line, **problem)


def test_an_experiment_that_is_not_there_is_told_with_the_line_that_names_it() -> None:
    changed("experiment: base.yaml", "experiment: bass.yaml")
    with refused(origins=(Origin(Path("sweep.yaml"), 3, path="experiment"), Origin(Path("bass.yaml")))):
        load_sweep("sweep.yaml")


def test_everything_that_is_wrong_is_told_once() -> None:
    changed("tau:", "tao:")
    changed("rule: multi_krum", "rule: multikrum")
    with pytest.raises(ExperimentError) as caught:
        load_sweep("sweep.yaml")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("sampler", "pruner", "who"),
    [("cma_es", "none", "cma_es"), ("tpe", "median", "median"), ("nsga_ii", "none", None)],
)
def test_several_objectives_need_who_can_have_them(sampler: str, pruner: str, who: str | None) -> None:
    changed(
        "  - metric: test/balanced_accuracy", "  - metric: test/auroc\n  - {metric: test/loss, direction: minimize}"
    )
    overrides = [f"sampler={sampler}", f"pruner={pruner}"]
    if who is None:
        assert len(load_sweep("sweep.yaml", overrides).sweep.objectives) == 2
    else:
        with refused(says=who):
            load_sweep("sweep.yaml", overrides)


@pytest.mark.parametrize(
    ("override", "path", "found", "limit"),
    [
        ("trials=0", "trials", "0", "1"),
        ("trials=1000000000000", "trials", "1000000000000", "1000000"),
        ("parallel=1000000000", "parallel", "1000000000", "1000"),
        ("seeds=[1, 9223372036854775808]", "seeds.1", "9223372036854775808", "9223372036854775807"),
        ("fresh=[9223372036854775808]", "fresh.0", "9223372036854775808", "9223372036854775807"),
        ("hours=.inf", "hours", "inf", "finite"),
        ("sampler={name: tpe, candidates: 1000000000000}", "sampler.candidates", "1000000000000", "100000"),
        ("sampler={name: nsga_ii, population: 1000000000}", "sampler.population", "1000000000", "10000"),
    ],
)
def test_numbers_that_no_sweep_can_have(override: str, path: str, found: str, limit: str) -> None:
    with refused(override=override, path=path, found=found, says=limit):
        load_sweep("sweep.yaml", [override])


@pytest.mark.parametrize("path", ["", ".", "federation..rounds", "federation."])
def test_what_is_no_path_is_told_with_its_place(path: str) -> None:
    text = Path("sweep.yaml").read_text()
    Path("sweep.yaml").write_text(text.replace("trust.acts: {choice", f"'{path}': {{choice"))
    with refused(file="sweep.yaml", line=7, entry=f"space.{path}", says="dotted path"):
        load_sweep("sweep.yaml")


def test_a_grid_has_no_more_trials_than_points() -> None:
    changed("{log: [0.001, 0.3]}", "{float: [0.1, 0.3], step: 0.1}")
    changed("tau: {log: [0.1, 10.0]}", "tau: {choice: [1.0, 10.0]}")
    changed("trials: 8", "trials: 1000")
    assert load_sweep("sweep.yaml", ["sampler=grid"]).trials == 3 * 2 * (2 + 3)
    changed("{float: [0.1, 0.3], step: 0.1}", "{float: [0.1, 0.3], step: 0.00001}")
    with refused(entry="sampler", says="200010"):
        load_sweep("sweep.yaml", ["sampler=grid"])


def test_rounds_may_be_searched() -> None:
    changed("trust.acts: {choice: [true, false]}", "federation.rounds: {int: [3, 30]}")
    plan: SweepPlan = load_sweep("sweep.yaml")
    assert plan.rounds == 30


def test_reading_a_sweep_imports_neither_optuna_nor_torch() -> None:
    script = (
        "import sys\n"
        "from fedrobust.tuning import load_sweep\n"
        "load_sweep('sweep.yaml')\n"
        "heavy = {'optuna', 'torch', 'ray', 'mlflow', 'pytorch_lightning'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_overrides_reach_keys_that_have_dots_themselves() -> None:
    plan = load_sweep("sweep.yaml", ["changes.federation.rounds=3", "space.learning.local.optimizer.lr.log=[0.5,0.6]"])
    found = plan.experiment(plan.space.chosen(plan.space.middle), "nobody", 1)
    assert (found.federation.rounds, found.federation.clients) == (3, 10)
    assert 0.5 < found.learning.local.optimizer.lr < 0.6
    override = f"space.{LR_PATH}.log=[1]"
    with refused(override=override, entry=f"space.{LR_PATH}.log"):
        load_sweep("sweep.yaml", [override])
