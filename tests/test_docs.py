"""What the guides show runs as written."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from refused import refused

import fedrobust
from fedrobust.aggregation import Context, RowRule, Rule
from fedrobust.attacks import Attackers, craft
from fedrobust.benchmark import load_suite, read_entry
from fedrobust.duels import Duel, load_duel
from fedrobust.metrics import Predictions, measured
from fedrobust.options import members
from fedrobust.secure import MessageError, OneMessage
from fedrobust.tuning import Sweep, load_sweep
from fedrobust.tuning.pruners import Pruner
from fedrobust.tuning.samplers import Sampler
from fedrobust.updates import ClearUpdates

DOCS = Path(__file__).parent.parent / "docs"
EXPERIMENTS = DOCS.parent / "experiments"
FENCE = re.compile(r"^```(\w*) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    file: str
    text: str


def save(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a file that a guide says to save; an earlier test's module of that name is forgotten."""
    (folder / block.file).write_text(block.text, encoding="utf-8")
    monkeypatch.delitem(sys.modules, Path(block.file).stem, raising=False)


def blocks(guide: str) -> list[Block]:
    return [Block(*found) for found in FENCE.findall((DOCS / guide).read_text(encoding="utf-8"))]


@pytest.fixture
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the guide says to save, from which modules can be imported."""
    for block in blocks("write-a-rule.md"):
        if block.file:
            save(block, tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_code_of_write_a_rule_runs(own_files: Path) -> None:
    code = [block for block in blocks("write-a-rule.md") if block.language == "python"]
    assert len(code) == 7
    for block in code:
        exec(compile(block.text, f"write-a-rule.md: {block.file or block.text[:60]}", "exec"), {"__name__": "guide"})


def test_the_rule_of_write_a_rule_is_short() -> None:
    rule = next(block for block in blocks("write-a-rule.md") if block.file == "ordinary_norm.py")
    assert len(rule.text.splitlines()) <= 30


def test_the_experiment_of_write_a_rule_can_be_run(own_files: Path) -> None:
    experiment = fedrobust.load("ours.yaml")
    assert experiment.aggregation.rule.name == "ordinary_norm:OrdinaryNorm"
    assert experiment.resolved()["aggregation"]["rule"]["keep"] == 6
    with refused(path="aggregation.rule.keep", found="'six'"):
        fedrobust.load("ours.yaml", ["aggregation.rule.keep=six"])


@pytest.mark.slow
def test_the_commands_of_write_a_rule(own_files: Path) -> None:
    commands = [line for block in blocks("write-a-rule.md") if not block.language for line in block.text.splitlines()]
    assert commands == [
        "fedrobust run ours.yaml",
        "python -m pytest test_ordinary_norm.py",
        "fedrobust benchmark ordinary_norm:OrdinaryNorm --quick",
    ]
    assert read_entry(commands[2].split()[2], load_suite("histology-v1")).name == "ordinary_norm_OrdinaryNorm"
    done = subprocess.run([sys.executable, *commands[1].split()[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_metric_of_write_a_metric_is_measured(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, options = blocks("write-a-metric.md")
    save(code, workplace, monkeypatch)
    Path("own.yaml").write_text("data: {source: histology}\n" + options.text, encoding="utf-8")
    (metric,) = fedrobust.load("own.yaml").evaluation.metrics
    certain, labels = np.eye(2, dtype=np.float32)[[0, 1, 1, 0]], np.array([0, 1, 1, 1])
    found = measured(Predictions(certain, labels, np.zeros(4, dtype=np.int64)), [metric])
    assert found["Sensitivity"] == pytest.approx(2 / 3)


def test_the_pipelines_of_aggregation_run_as_written(own_files: Path) -> None:
    shown = blocks("aggregation.md")
    assert [block.language for block in shown] == ["yaml", "python"]
    Path("shown.yaml").write_text(shown[0].text, encoding="utf-8")
    assert [part.name for part in fedrobust.load("shown.yaml").aggregation.pipeline().parts] == [
        "clip",
        "nnm",
        "multi_krum",
    ]
    exec(compile(shown[1].text, "aggregation.md", "exec"), {})


def test_the_table_of_aggregation_has_every_rule() -> None:
    table = (DOCS / "aggregation.md").read_text(encoding="utf-8").partition("<!-- table: begin -->")[2]
    names = {line.split("|")[1].strip() for line in table.partition("<!-- table: end -->")[0].splitlines()[1:]}
    missing = {f"`{name}`" for name in members(Rule, RowRule)} - names
    assert not missing, "run docs/make/robustness_table.py"


@pytest.mark.long
def test_the_script_of_the_table() -> None:
    script = DOCS / "make" / "robustness_table.py"
    command = [sys.executable, str(script), "--seconds", "0.2", "bulyan", "nnm+trimmed_mean"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    bulyan, mixed = ([cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines())
    assert bulyan[:4] == ["`bulyan`", "rows, Gram", "n ≥ 4f + 3", "yes"]
    assert (bulyan[4], bulyan[6]) == ("–", "–")
    assert bulyan[7].startswith("The mean around the median")
    assert mixed[:4] == ["`nnm` + `trimmed_mean`", "rows, Gram", "n ≥ 2f + 1", "yes"]
    assert float(mixed[4]) >= 0.33


@pytest.mark.parametrize("guide", ["adversaries.md", "trust.md"])
def test_the_experiments_of_the_guides_are_experiments(
    guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for block in blocks(guide):
        if block.language == "python":
            save(block, tmp_path, monkeypatch)
    files = [block for block in blocks(guide) if block.language == "yaml"]
    assert len(files) == 2
    for block in files:
        (tmp_path / "shown.yaml").write_text(block.text, encoding="utf-8")
        fedrobust.load(tmp_path / "shown.yaml")


def test_an_attack_and_a_detector_of_ones_own_do_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for guide in ("adversaries.md", "trust.md"):
        for block in blocks(guide):
            if block.file:
                save(block, tmp_path, monkeypatch)
    rows = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    (push,) = fedrobust.load(tmp_path / "push.yaml").attacks
    sent = craft(Attackers([push], 5, {1: 0, 3: 0}), range(5), dict(enumerate(rows)), 2, 0, step=rows[0])
    assert sorted(sent) == [1, 3]
    assert all(np.allclose(row, -3 * rows[0]) for row in sent.values())
    detector = fedrobust.load(tmp_path / "longest.yaml").trust.detector
    found = detector.score(ClearUpdates([rows]).gram(), Context(f=0))
    assert np.allclose(found.score, np.linalg.norm(rows, axis=1) / np.linalg.norm(rows, axis=1).max())


def test_a_protocol_of_ones_own_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in blocks("secrecy.md"):
        if block.file:
            save(block, tmp_path, monkeypatch)
    protocol = fedrobust.load(tmp_path / "halves.yaml").privacy
    assert isinstance(protocol, OneMessage)
    sent = protocol.write(np.float32([0.1, -2]), np.random.default_rng(0))
    assert len(sent) == 4
    assert np.allclose(protocol.read(sent, 2), [0.1, -2], rtol=1e-3)
    with pytest.raises(MessageError):
        protocol.read(sent, 3)


@pytest.fixture
def sweeps(workplace: Path) -> Path:
    """A folder as a clone has it, with the files that the guide says to save."""
    shutil.copytree(EXPERIMENTS, workplace / "experiments")
    for block in blocks("sweeps.md"):
        if block.file:
            (workplace / "experiments" / block.file).write_text(block.text, encoding="utf-8")
    return workplace


def commands_of_sweeps() -> list[list[str]]:
    found = [line for block in blocks("sweeps.md") if not block.language for line in block.text.splitlines()]
    return [shlex.split(line) for line in found]


def test_the_commands_of_sweeps_are_accepted(sweeps: Path) -> None:
    loaded = [
        {"sweep": load_sweep, "duel": load_duel}[words[1]](words[2], words[3:])
        for words in commands_of_sweeps()
        if words[:2] in (["fedrobust", "sweep"], ["fedrobust", "duel"])
    ]
    assert len(loaded) == 6
    parts = load_sweep("experiments/parts.yaml")
    assert {"aggregation.clipping.rule.tau", "attacks.0.schedule.sleeper.rounds"} <= set(parts.space.searched)
    text = (DOCS / "sweeps.md").read_text(encoding="utf-8")
    (overrides,) = re.findall(r"on the keys of this file: (.*?)\. A", text, re.DOTALL)
    load_sweep("experiments/first.yaml", re.findall(r"`(\S+)`", overrides))


def test_the_tables_of_sweeps_have_every_key_sampler_and_pruner() -> None:
    lines = (DOCS / "sweeps.md").read_text(encoding="utf-8").splitlines()
    first = {word for line in lines if line.startswith("| `") for word in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert set(Sweep.model_fields) | members(Sampler).keys() | members(Pruner).keys() <= first
    assert set(Duel.model_fields) <= first


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_commands_of_sweeps_do_what_they_say(sweeps: Path) -> None:
    """All but the searches on the IDC patches, which take from nine minutes to an hour."""
    programs = Path(sys.executable).parent
    for words in commands_of_sweeps():
        if not any(name in " ".join(words) for name in ("worst_case", "tune_defense", "duel")):
            done = subprocess.run([programs / words[0], *words[1:]], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    (code,) = [block.text for block in blocks("sweeps.md") if block.language == "python"]
    script = sweeps / "guide.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "aggregation.rule" in done.stdout


def test_the_script_of_sweeps_composes_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(EXPERIMENTS / "search.py"))
    monkeypatch.chdir(EXPERIMENTS.parent)
    monkeypatch.setattr("sys.argv", ["search.py", "2"])
    composed = []
    monkeypatch.setattr(
        "fedrobust.tuning.running.run_sweep", lambda plan, *_, **options: composed.append(plan) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        script["main"]()
    assert (composed[0].trials, composed[0].sweep.fresh) == (2, (11, 12))


def test_the_studies_of_python_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Accepted(Exception):  # noqa: N818
        """Raised where a study would start."""

    def accept(*_: object, **__: object) -> None:
        raise Accepted

    monkeypatch.setattr("fedrobust.tuning.running.run_sweep", accept)
    monkeypatch.setattr("fedrobust.matrices.running.run_matrix", accept)
    names = {"fedrobust": fedrobust, "small": fedrobust.Experiment(attacks=[])}
    starts = ("= fedrobust.sweep(", "= fedrobust.matrix(")
    code = [block.text for block in blocks("python.md") if any(start in block.text for start in starts)]
    assert len(code) == 3
    for text in code:
        with pytest.raises(Accepted):
            exec(compile(text, f"python.md: {text[:60]}", "exec"), dict(names))


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_code_of_python_runs_block_by_block(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As somebody would type it in a notebook, in one folder."""
    (workplace / "experiments").symlink_to(EXPERIMENTS)
    code = [block.text for block in blocks("python.md") if block.language == "python"]
    assert len(code) == 12
    names: dict[str, object] = {}
    for text in code:
        exec(compile(text, f"python.md: {text[:60]}", "exec"), names)
    said = capsys.readouterr().out
    assert "did you mean 'median'?" in said
    assert "good enough after round" in said


def test_all_code_is_python() -> None:
    """A text that was wrapped with its code would not be."""
    for guide in [DOCS.parent / "README.md", *DOCS.glob("*.md"), *DOCS.glob("tutorials/*.md")]:
        for block in blocks(str(guide)):
            if block.language == "python":
                compile(block.text, guide.name, "exec")


def test_the_table_of_which_defence_is_current() -> None:
    script = runpy.run_path(str(DOCS / "make" / "which_defence.py"))
    page = (DOCS / "which-defence.md").read_text(encoding="utf-8")
    shown = page.partition(script["BEGIN"])[2].partition(script["END"])[0].strip().splitlines()
    assert shown == script["table"](), "run docs/make/which_defence.py"
