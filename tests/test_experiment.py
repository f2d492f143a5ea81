"""Experiment files: what is read, what is refused, and what the refusal tells."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from refused import refused

import fedrobust
from fedrobust import runner
from fedrobust.cli import main
from fedrobust.duels import load_duel
from fedrobust.errors import ExperimentError
from fedrobust.experiment import Evaluation, Experiment
from fedrobust.experiment_file import dump
from fedrobust.matrices import load_matrix
from fedrobust.tuning import load_sweep

EXPERIMENTS = Path(__file__).parent.parent / "experiments"

LARGEST = "expected a number between -9223372036854775807 and 9223372036854775807"
WRONG = [
    # (what is wrong, the file, what the problem holds)
    ("unknown key", "sede: 3\n", {"line": 1, "path": "sede", "allows": "seed", "hint": "did you mean 'seed'?"}),
    ("unknown key below", "federation:\n  client: 3\n", {"line": 2, "path": "federation.client", "allows": "clients", "hint": "did you mean 'clients'?"}),  # noqa: E501
    ("unknown rule", "aggregation:\n  rule: krun\n", {"line": 2, "path": "aggregation.rule", "found": "'krun'", "allows": "median", "hint": "did you mean 'krum'?"}),  # noqa: E501
    ("unknown stage", "aggregation:\n  stages: [clip, nmm]\n", {"line": 2, "path": "aggregation.stages.1", "found": "'nmm'", "allows": "nnm"}),  # noqa: E501
    ("unknown option", "attacks:\n  - {name: sign_flip, fraction: 0.2, scal: 4}\n", {"line": 2, "path": "attacks.0.scal", "hint": "did you mean 'scale'?"}),  # noqa: E501
    ("text for a number", "seed: one\n", {"line": 1, "path": "seed", "found": "'one'", "says": "integer"}),
    ("number in quotes", "learning:\n  local:\n    batch_size: '32'\n", {"line": 3, "path": "learning.local.batch_size", "found": "'32'"}),  # noqa: E501
    ("fraction of a client", "federation: {clients: 2.5}\n", {"line": 1, "path": "federation.clients", "found": "2.5", "says": "integer"}),  # noqa: E501
    ("negative rounds", "federation:\n  rounds: -1\n", {"line": 2, "path": "federation.rounds", "found": "-1", "says": "1"}),  # noqa: E501
    ("not a number", "learning:\n  local:\n    optimizer: {name: sgd, lr: .nan}\n", {"line": 3, "path": "learning.local.optimizer.lr", "found": "nan", "says": "finite"}),  # noqa: E501
    ("list for a mapping", "data: [histology]\n", {"line": 1, "path": "data", "found": "a list"}),
    ("entry that is none", "trust:\n  detector: {parts: [nrom]}\n", {"line": 2, "path": "trust.detector.parts.0", "found": "'nrom'"}),  # noqa: E501
    ("list without entries", "trust:\n  detector: {parts: []}\n", {"line": 2, "path": "trust.detector.parts", "found": "a list"}),  # noqa: E501
    ("missing name", "attacks:\n  - {fraction: 0.2}\n", {"line": 2, "path": "attacks.0.name", "allows": "sign_flip"}),
    ("who attacks is not said", "attacks:\n  - {name: sign_flip}\n", {"line": 2, "path": "attacks.0", "found": "none"}),
    ("everybody attacks", "federation: {clients: 4}\nattacks:\n  - {name: sign_flip, count: 4}\n", {"line": 2, "path": "attacks", "says": "honest"}),  # noqa: E501
    ("attacker that is not there", "federation: {clients: 4}\nattacks:\n  - {name: ipm, clients: [7]}\n", {"line": 3, "path": "attacks.0.clients", "found": "7", "allowed": ("0 to 3",)}),  # noqa: E501
    ("f too large", "federation: {clients: 10}\naggregation:\n  rule: krum\n  f: 4\n", {"line": 4, "path": "aggregation.f", "found": "4", "says": "2f + 3"}),  # noqa: E501
    ("sample weights for a rule without", "aggregation: {rule: median, weighting: samples}\n", {"line": 1, "path": "aggregation.weighting", "found": "'samples'", "says": "median"}),  # noqa: E501
    ("steps and epochs", "learning:\n  local: {steps: 4, epochs: 1}\n", {"line": 2, "path": "learning.local.steps", "found": "4", "says": "epochs"}),  # noqa: E501
    ("unknown timm model", "learning:\n  model: timm:resnet81\n", {"line": 2, "path": "learning.model", "found": "'resnet81'", "hint": "did you mean 'resnet18'?"}),  # noqa: E501
    ("user's class that is not there", "aggregation: {rule: 'no.such.module:Rule'}\n", {"line": 1, "path": "aggregation.rule", "found": "'no.such.module:Rule'", "says": "ModuleNotFoundError"}),  # noqa: E501
    ("user's class of another family", "aggregation: {rule: 'fedrobust.attacks:SignFlip'}\n", {"line": 1, "path": "aggregation.rule", "found": "'fedrobust.attacks:SignFlip'", "says": "subclass of Rule"}),  # noqa: E501
    ("not YAML", "seed: [1\n", {"line": 2, "says": "YAML"}),
    ("number beyond all", f"data:\n  source: {{name: histology, patients: {10**400}}}\n", {"line": 2, "path": "data.source.patients", "message": LARGEST}),  # noqa: E501
    ("number beyond all in a list", f"learning: {{model: {{name: cnn, channels: [4, {2**63}]}}}}\n", {"line": 1, "path": "learning.model.channels.1", "found": str(2**63), "message": LARGEST}),  # noqa: E501
    ("name that no database takes", f"tracking: {{experiment: {'x' * 251}}}\n", {"line": 1, "path": "tracking.experiment", "says": "250"}),  # noqa: E501
    ("same key twice", "seed: 1\nseed: 2\n", {"line": 2, "says": "seed"}),
    ("not a mapping", "- seed\n", {"line": None, "path": "", "found": "a list"}),
]  # fmt: skip


SMALL = "data: {source: {name: histology, patients: 20, size: 24}}\n"


@contextmanager
def no_pool(*_: object) -> Iterator[Callable[[], object]]:
    """In place of actors that start while the data are read, and take seconds to end."""
    yield lambda: pytest.fail("actors are waited for")


def command_refuses(
    arguments: list[str], workplace: Path, capsys: pytest.CaptureFixture[str], actors: bool = False
) -> str:
    """Run the command in this process; return its error, having checked its form.

    actors: whether Ray really starts while the data are read.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not actors:
            patch.setattr(runner, "pool_beside", no_pool)
        patch.setattr(sys, "argv", ["fedrobust", "run", *arguments])
        patch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as stop:
            main()
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert "Traceback" not in shown.out + shown.err
    assert len(shown.err.splitlines()) == 1, shown.err
    assert [path.name for path in workplace.iterdir()] == ["wrong.yaml"], "something was written"
    return shown.err.removeprefix("error: ").removesuffix("\n")


@pytest.mark.parametrize(("text", "problem"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong_files_give_one_clear_line(
    text: str, problem: dict[str, Any], workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "wrong.yaml").write_text(text)
    with refused(file="wrong.yaml", **problem) as caught:
        fedrobust.load("wrong.yaml")
    assert command_refuses(["wrong.yaml"], workplace, capsys) == str(caught.value)


def test_missing_data_give_one_clear_line_too(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workplace / "wrong.yaml").write_text("data:\n  source: {name: npz, path: nowhere.npz}\n")
    told = command_refuses(["wrong.yaml"], workplace, capsys)
    assert told.startswith("data.source: ") and "nowhere.npz" in told


@pytest.mark.parametrize(
    "text",
    [
        "aggregation: {rule: {name: [krum]}}\n",
        "aggregation: {rule: 'fedrobust.aggregation:Rule'}\n",
        "aggregation: {f: many}\n",
        "aggregation: {f: null}\n",
        "workers: {count: aut}\n",
        "seed: !!bool x\n",
        "seed: 2024-13-45\n",
        f"seed: {'9' * 5000}\n",
        f"name: [{'x' * 5000}]\n",
        "data: &a {source: *a}\n",
        "federation: {clients: 10000000000000}\n",
        "1.5: 3\n",
        "'': 3\n",
        "'a\\nb': 3\n",
        "data: null\n",
        "attacks: {name: sign_flip}\n",
        "learning: {model: {name: cnn, channels: [4, 4, 4, 4, 4, 4, 4]}}\n" + SMALL,
        "attacks: [{name: patch_backdoor, count: 1, target: 9}]\n" + SMALL,
        "data: {source: {name: npz, path: nowhere.npz}}\n",
        "data: {source: {name: histology, patients: 20}, partition: {name: iid, minimum: 100000}}\n",
    ],
    ids=lambda text: text[:40],
)
def test_odd_files_are_refused_in_one_line_too(text: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workplace / "wrong.yaml").write_text(text)
    assert len(command_refuses(["wrong.yaml"], workplace, capsys)) < 700


def test_a_command_in_a_process_of_its_own_refuses_without_traceback_and_writes_nothing(workplace: Path) -> None:
    (workplace / "wrong.yaml").write_text("seed: 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "fedrobust.cli", "run", "wrong.yaml", "federation.rounds=many"],
        cwd=workplace,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert [path.name for path in workplace.iterdir()] == ["wrong.yaml"]


def test_all_errors_of_a_file_are_told_at_once(workplace: Path) -> None:
    Path("wrong.yaml").write_text("seed: x\nfederation: {clients: 0}\n")
    with pytest.raises(ExperimentError) as caught:
        fedrobust.load("wrong.yaml")
    assert [(each.file, each.line, each.path, each.found) for each in caught.value.problems] == [
        (Path("wrong.yaml"), 1, "seed", "'x'"),
        (Path("wrong.yaml"), 2, "federation.clients", "0"),
    ]


def test_overrides_by_dotted_path(workplace: Path) -> None:
    Path("e.yaml").write_text("aggregation: {rule: krum}\nattacks:\n  - {name: sign_flip, fraction: 0.2}\n")
    experiment = fedrobust.load(
        "e.yaml",
        [
            "seed=3",
            "attacks.0.scale=4",
            "attacks.1={name: ipm, count: 1}",
            "aggregation.rule.name=geometric_median",
            "learning.local.optimizer.lr=1e-2",
            "data.partition={name: dirichlet, alpha: 0.1}",
        ],
    )
    assert experiment.seed == 3
    assert [attack.name for attack in experiment.attacks] == ["sign_flip", "ipm"]
    assert experiment.resolved()["attacks"][0]["scale"] == 4.0
    assert experiment.aggregation.rule.name == "geometric_median"
    assert experiment.resolved()["learning"]["local"]["optimizer"]["lr"] == 0.01
    assert experiment.resolved()["data"]["partition"]["alpha"] == 0.1


def test_overrides_begin_lists_that_the_file_lacks(workplace: Path) -> None:
    Path("e.yaml").write_text("seed: 1\n")
    experiment = fedrobust.load("e.yaml", ["attacks.0={name: ipm, count: 1}", "aggregation.stages.0=clip"])
    assert [attack.name for attack in experiment.attacks] == ["ipm"]
    assert [stage.name for stage in experiment.aggregation.stages] == ["clip"]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("seed", {"says": "path=value"}),
        ("=3", {"says": "path=value"}),
        ("seed=[1", {"says": "YAML"}),
        ("seed.x=3", {"path": "seed", "says": "number"}),
        ("attacks.1.scale=4", {"path": "attacks", "found": "'1'", "says": "0 entries"}),
        ("²=3", {"path": "²", "message": "unknown key"}),
        ("seed=!!int x", {"says": "YAML"}),
        ("sed=3", {"path": "sed", "hint": "did you mean 'seed'?"}),
        ("aggregation.rule=krun", {"path": "aggregation.rule", "found": "'krun'", "hint": "did you mean 'krum'?"}),
    ],
)
def test_wrong_overrides_name_themselves(override: str, problem: dict[str, Any], workplace: Path) -> None:
    Path("e.yaml").write_text("seed: 1\nattacks: []\n")
    with refused(override=override, file=None, **problem):
        fedrobust.load("e.yaml", [override])


def shipped_experiments() -> list[Path]:
    """The files that are experiments; the others are matrices."""
    found = [file for file in EXPERIMENTS.glob("*.yaml") if "$schema=schemas/experiment.schema" in file.read_text()]
    assert found
    return found


def test_a_dumped_experiment_reads_back_as_itself(workplace: Path) -> None:
    for shipped in shipped_experiments():
        experiment = fedrobust.load(shipped, ["data.source={name: histology}"])
        Path("again.yaml").write_text(dump(experiment))
        again = fedrobust.load("again.yaml")
        assert again == experiment
        assert again.digest() == experiment.digest()


def test_users_classes_come_in_by_path_and_survive_the_round_trip(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine.py").write_text(
        "from fedrobust.aggregation import Combination, Rule\n"
        "class First(Rule):\n"
        '    """The first row."""\n'
        "    share: float = 1.0\n"
        "    def combine(self, gram, context):\n"
        "        weights = gram.prior * 0\n"
        "        weights[0] = self.share\n"
        "        return Combination(weights)\n"
    )
    monkeypatch.syspath_prepend(str(workplace))
    Path("e.yaml").write_text("aggregation: {rule: {name: 'mine:First', share: 0.5}}\n")
    experiment = fedrobust.load("e.yaml")
    assert experiment.resolved()["aggregation"]["rule"] == {"name": "mine:First", "share": 0.5}
    Path("again.yaml").write_text(dump(experiment))
    assert fedrobust.load("again.yaml").digest() == experiment.digest()
    with refused(path="aggregation.rule.shar", allows="share", hint="did you mean 'share'?"):
        fedrobust.load("e.yaml", ["aggregation.rule={name: 'mine:First', shar: 0.5}"])


def test_the_digest_knows_what_can_change_a_result() -> None:
    plain = Experiment()
    assert (
        Experiment.model_validate({"workers": {"count": 2}, "tracking": {"experiment": "x"}}).digest() == plain.digest()
    )
    assert Experiment.model_validate({"seed": 1}).digest() != plain.digest()


@pytest.mark.parametrize(
    ("options", "due"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7]),
        ({"every": 3}, [3, 6, 7]),
        ({"last": 2}, [6, 7]),
        ({"every": 3, "last": 5}, [3, 6, 7]),
        ({"every": 4, "last": 2}, [7]),
        ({"last": 20}, [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_rounds_that_are_evaluated(options: dict[str, int], due: list[int]) -> None:
    evaluation = Evaluation.model_validate(options)
    assert [round for round in range(1, 8) if evaluation.due(round, 7)] == due


def test_experiments_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Experiment().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_files_name_their_schema_for_editors_and_can_be_run(file: Path) -> None:
    loaders = {"experiment": fedrobust.load, "matrix": load_matrix, "sweep": load_sweep, "duel": load_duel}
    first = file.read_text().splitlines()[0]
    schema = file.parent / first.removeprefix("# yaml-language-server: $schema=")
    assert schema.is_file()
    loaders[schema.name.removesuffix(".schema.json")](file)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        "channels: [1000000000]",
        "hidden: 1000000000000",
        "channels: [100000, 100000]",
        "channels: [9223372036854775807]",
    ],
)
def test_a_model_that_no_memory_holds_is_refused_before_it_is_made(
    model: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "wrong.yaml").write_text(f"learning: {{model: {{name: cnn, {model}}}}}\n" + SMALL)
    message = command_refuses(["wrong.yaml"], workplace, capsys, actors="hidden" in model)
    assert message.startswith("learning.model: ") and ("weights need" in message or "cannot be made" in message)
