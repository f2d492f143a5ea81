"""Experiment files: what is read, what is refused, and what the refusal tells."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fedrobust
from fedrobust.cli import main
from fedrobust.duel import load_duel
from fedrobust.errors import ExperimentError
from fedrobust.experiment import Evaluation, Experiment
from fedrobust.experiment_file import dump
from fedrobust.matrix import load_matrix
from fedrobust.tuning import load_sweep

EXPERIMENTS = Path(__file__).parent.parent / "experiments"

WRONG = [
    # (what is wrong, the file, the line of the culprit, what the error must tell)
    ("unknown key", "sede: 3\n", 1, ["sede", "did you mean 'seed'"]),
    ("unknown key below", "federation:\n  client: 3\n", 2, ["federation.client", "did you mean 'clients'"]),
    ("unknown rule", "aggregation:\n  rule: krun\n", 2, ["aggregation.rule", "'krun'", "did you mean 'krum'"]),
    ("unknown stage", "aggregation:\n  stages: [clip, nmm]\n", 2, ["aggregation.stages.1", "'nmm'", "'nnm'"]),
    ("unknown option", "attacks:\n  - {name: sign_flip, fraction: 0.2, scal: 4}\n", 2, ["attacks.0.scal", "did you mean 'scale'"]),  # noqa: E501
    ("text for a number", "seed: one\n", 1, ["seed", "integer", "'one'"]),
    ("number in quotes", "learning:\n  local:\n    batch_size: '32'\n", 3, ["learning.local.batch_size", "'32'"]),
    ("fraction of a client", "federation: {clients: 2.5}\n", 1, ["federation.clients", "integer", "2.5"]),
    ("negative rounds", "federation:\n  rounds: -1\n", 2, ["federation.rounds", "greater than or equal to 1", "-1"]),
    ("not a number", "learning:\n  local:\n    optimizer: {name: sgd, lr: .nan}\n", 3, ["learning.local.optimizer.lr", "finite"]),  # noqa: E501
    ("list for a mapping", "data: [histology]\n", 1, ["data", "found a list"]),
    ("missing name", "attacks:\n  - {fraction: 0.2}\n", 2, ["attacks.0.name", "missing", "sign_flip"]),
    ("who attacks is not said", "attacks:\n  - {name: sign_flip}\n", 2, ["attacks.0", "fraction", "count", "clients"]),
    ("everybody attacks", "federation: {clients: 4}\nattacks:\n  - {name: sign_flip, count: 4}\n", 2, ["attacks", "4", "honest"]),  # noqa: E501
    ("attacker that is not there", "federation: {clients: 4}\nattacks:\n  - {name: ipm, clients: [7]}\n", 3, ["attacks.0.clients", "7", "0 to 3"]),  # noqa: E501
    ("f too large", "federation: {clients: 10}\naggregation:\n  rule: krum\n  f: 4\n", 4, ["aggregation.f", "krum", "2f + 3", "n = 10"]),  # noqa: E501
    ("sample weights for a rule without", "aggregation: {rule: median, weighting: samples}\n", 1, ["aggregation", "median", "samples"]),  # noqa: E501
    ("steps and epochs", "learning:\n  local: {steps: 4, epochs: 1}\n", 2, ["learning.local", "steps", "epochs"]),
    ("unknown timm model", "learning:\n  model: timm:resnet81\n", 2, ["learning.model", "resnet81", "resnet18"]),
    ("user's class that is not there", "aggregation: {rule: 'no.such.module:Rule'}\n", 1, ["aggregation.rule", "no.such.module:Rule", "cannot import"]),  # noqa: E501
    ("user's class of another family", "aggregation: {rule: 'fedrobust.attacks:SignFlip'}\n", 1, ["aggregation.rule", "not a subclass of Rule"]),  # noqa: E501
    ("not YAML", "seed: [1\n", 2, ["not valid YAML"]),
    ("number beyond all", f"data:\n  source: {{name: histology, patients: {10**400}}}\n", 2, ["data.source.patients", "number between -9223372036854775807"]),  # noqa: E501
    ("number beyond all in a list", f"learning: {{model: {{name: cnn, channels: [4, {2**63}]}}}}\n", 1, ["learning.model.channels.1", "number between -9223372036854775807"]),  # noqa: E501
    ("name that no database takes", f"tracking: {{experiment: {'x' * 251}}}\n", 1, ["tracking.experiment", "250"]),
    ("same key twice", "seed: 1\nseed: 2\n", 2, ["seed"]),
    ("not a mapping", "- seed\n", None, ["expected a mapping"]),
    ("missing data", "data:\n  source: {name: npz, path: nowhere.npz}\n", None, ["nowhere.npz"]),
]  # fmt: skip


SMALL = "data: {source: {name: histology, patients: 20, size: 24}}\n"


def refused(arguments: list[str], workplace: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command in this process; return its error, having checked its form."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fedrobust", "run", *arguments])
        patch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as stop:
            main()
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert "Traceback" not in shown.out + shown.err
    assert len(shown.err.splitlines()) == 1, shown.err
    assert [path.name for path in workplace.iterdir()] == ["wrong.yaml"], "something was written"
    return shown.err.removeprefix("error: ")


@pytest.mark.parametrize(("text", "line", "tells"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong_files_give_one_clear_line(
    text: str, line: int | None, tells: list[str], workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "wrong.yaml").write_text(text)
    message = refused(["wrong.yaml"], workplace, capsys)
    if line is not None:
        assert message.startswith(f"wrong.yaml:{line}: "), message
    for word in tells:
        assert word in message, message


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
    ],
    ids=lambda text: text[:40],
)
def test_odd_files_are_refused_in_one_line_too(text: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workplace / "wrong.yaml").write_text(text)
    assert len(refused(["wrong.yaml"], workplace, capsys)) < 700


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedrobust.cli", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("aggregation: {rule: krun}\n", []),
        ("data: {source: {name: npz, path: nowhere.npz}}\n", []),
        ("seed: 1\n", ["federation.rounds=many"]),
        (
            "data: {source: {name: histology, patients: 20}, partition: {name: iid, minimum: 100000}}\n",
            [],
        ),
    ],
)
def test_the_command_refuses_without_traceback_and_writes_nothing(
    text: str, overrides: list[str], workplace: Path
) -> None:
    (workplace / "wrong.yaml").write_text(text)
    done = command("run", "wrong.yaml", *overrides, cwd=workplace)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert [path.name for path in workplace.iterdir()] == ["wrong.yaml"]


def test_all_errors_of_a_file_are_told_at_once(workplace: Path) -> None:
    Path("wrong.yaml").write_text("seed: x\nfederation: {clients: 0}\n")
    with pytest.raises(ExperimentError) as caught:
        fedrobust.load("wrong.yaml")
    assert [line.split(": ")[:2] for line in str(caught.value).splitlines()] == [
        ["wrong.yaml:1", "seed"],
        ["wrong.yaml:2", "federation.clients"],
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
    ("override", "tells"),
    [
        ("seed", "expected path=value"),
        ("=3", "expected path=value"),
        ("seed=[1", "not valid YAML"),
        ("seed.x=3", "has no 'x'"),
        ("attacks.1.scale=4", "0 entries"),
        ("²=3", "unknown key"),
        ("seed=!!int x", "not valid YAML"),
        ("sed=3", "did you mean 'seed'"),
        ("aggregation.rule=krun", "did you mean 'krum'"),
    ],
)
def test_wrong_overrides_name_themselves(override: str, tells: str, workplace: Path) -> None:
    Path("e.yaml").write_text("seed: 1\nattacks: []\n")
    with pytest.raises(ExperimentError) as caught:
        fedrobust.load("e.yaml", [override])
    assert str(caught.value).startswith(f"override '{override}'")
    assert tells in str(caught.value)


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
    with pytest.raises(ExperimentError, match=r"aggregation\.rule\.shar.*did you mean 'share'"):
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
    message = refused(["wrong.yaml"], workplace, capsys)
    assert message.startswith("learning.model: ") and ("weights need" in message or "cannot be made" in message)
