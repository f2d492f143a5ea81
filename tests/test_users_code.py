"""Classes of the user's: where they are looked for, and what else of a working folder is never imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from refused import refused
from tiny import YAML, write_patches

import fedrobust
from fedrobust import users_code
from fedrobust.aggregation import Rule
from fedrobust.errors import ExperimentError
from fedrobust.experiment_file import load_recorded
from fedrobust.matrices import load_matrix

RULE = """
from fedrobust.aggregation import (Combination, Rule)
class First(Rule):
    def combine(self, gram, context):
        return Combination(gram.prior)
"""
PLANTED = """
import pathlib, sys
pathlib.Path(__file__).with_name("PLANTED").write_text(__name__)
sys.exit("planted")
"""
PACKAGES = ("mlflow", "numpy", "torch", "ray", "pydantic", "ruamel", "typer", "rich", "matplotlib", "yaml", "sklearn")
PYTHONS = ("json", "logging", "colorsys", "sitecustomize", "usercustomize", "fedrobust")
"""What Python itself, or its `-m`, looks for before a program can say where."""


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test imports goes with it."""
    before = set(sys.modules)
    monkeypatch.setattr(users_code, "_folders", [])
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("my_rules", "ours"):
            del sys.modules[name]


def planted(folder: Path, names: Sequence[str]) -> None:
    """Files with the names of packages: whoever imports one leaves a file that tells."""
    for name in names:
        (folder / f"{name}.py").write_text(PLANTED)


@pytest.mark.parametrize(
    ("command", "names", "rule"),
    [
        (["-m", "fedrobust"], PACKAGES, "my_rules:First"),
        pytest.param(["-P", "-m", "fedrobust"], (*PACKAGES, *PYTHONS), "mean", marks=pytest.mark.long),
        (
            ["-P", "-c", "from fedrobust.cli import main; main()"],
            (*PACKAGES, *PYTHONS),
            "my_rules:First",
        ),  # as installed
    ],
)
def test_nothing_that_lies_beside_the_file_is_imported_in_place_of_a_package(
    command: list[str], names: Sequence[str], rule: str, workplace: Path
) -> None:
    planted(workplace, names)
    (workplace / "my_rules.py").write_text(RULE)
    (workplace / "e.yaml").write_text(
        f"aggregation: {{rule: '{rule}'}}\ndata: {{source: {{name: npz, path: nowhere.npz}}}}\n"
    )
    done = subprocess.run(
        [sys.executable, *command, "run", "e.yaml"],
        cwd=workplace,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert not (workplace / "PLANTED").exists(), (workplace / "PLANTED").read_text()
    assert done.returncode == 2 and "nowhere.npz" in done.stderr, done.stderr
    assert (f"your code: my_rules:First from {workplace / 'my_rules.py'}" in done.stdout) == (rule != "mean")


def test_the_folder_comes_last_and_only_where_a_class_of_the_users_is_named(workplace: Path) -> None:
    (workplace / "my_rules.py").write_text(RULE)
    (workplace / "plain.yaml").write_text("seed: 1\naggregation: {rule: krum}\n")
    (workplace / "mine.yaml").write_text("aggregation: {rule: 'my_rules:First'}\n")
    before = list(sys.path)
    fedrobust.load("plain.yaml")
    assert sys.path == before
    assert fedrobust.load("mine.yaml").aggregation.rule.name == "my_rules:First"
    assert sys.path == [*before, str(workplace)]
    assert users_code.folders() == [str(workplace)]
    assert users_code.loaded()["my_rules:First"] == str(workplace / "my_rules.py")


@pytest.mark.parametrize(
    "name",
    ["../mine:First", "mine:", ":First", "mine/../mine:First", "mine..x:First", ".mine:First", "mine.:First",
     "mine:First\n", "mine :First", "mine:First()", "mine:First.x", "1mine:First", "mine:First:First", "-c:First"],
)  # fmt: skip
@pytest.mark.parametrize("field", ["aggregation.rule", "learning.local.callbacks"])
def test_a_name_of_another_form_imports_nothing(
    name: str, field: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "my_rules.py").write_text(RULE)
    (workplace / "e.yaml").write_text("learning: {local: {engine: trainer}}\n")
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"{name} was imported"))
    value = [{"name": name}] if "callbacks" in field else {"name": name}
    from fedrobust.draft import Draft
    from fedrobust.experiment import Experiment

    with pytest.raises(ExperimentError) as caught:
        Draft.read("e.yaml").changed({field: value}, "a test").checked(Experiment)
    assert all(each.path.startswith(field) and each.origin.text == "a test" for each in caught.value.problems)


def test_a_name_that_an_installed_module_has_is_told(workplace: Path) -> None:
    (workplace / "colorsys.py").write_text(RULE)
    (workplace / "e.yaml").write_text("aggregation: {rule: 'colorsys:First'}\n")
    with refused(path="aggregation.rule", found="'colorsys:First'", says=f"not {workplace / 'colorsys.py'}"):
        fedrobust.load("e.yaml")


def test_two_files_of_one_name_are_not_mistaken_for_each_other(workplace: Path) -> None:
    for name in ("a", "b"):
        (workplace / name).mkdir()
        (workplace / name / "ours.py").write_text(RULE)
        (workplace / name / "e.yaml").write_text("aggregation: {rule: 'ours:First'}\n")
    fedrobust.load("a/e.yaml")
    with refused(path="aggregation.rule", says=f"not {workplace / 'b' / 'ours.py'}"):
        fedrobust.load("b/e.yaml")
    (workplace / "c").symlink_to("a")
    fedrobust.load("c/e.yaml")


def test_a_class_may_lie_beside_the_matrix_that_names_the_experiment(workplace: Path) -> None:
    (workplace / "base").mkdir()
    (workplace / "base" / "e.yaml").write_text("federation: {clients: 10}\n")
    (workplace / "my_rules.py").write_text(RULE)
    (workplace / "m.yaml").write_text(
        "name: m\nexperiment: base/e.yaml\nsettings: {few: {fraction: 0.2}}\nattacks: {flip: sign_flip}\n"
        "defences: {mean: {aggregation.rule: mean}, mine: {aggregation.rule: 'my_rules:First'}}\n"
    )
    load_matrix("m.yaml")


def test_code_that_lies_in_a_runs_folder_is_not_loaded(workplace: Path) -> None:
    (workplace / "theirs.py").write_text(PLANTED)
    (workplace / "experiment.yaml").write_text("aggregation: {rule: 'theirs:First'}\n")
    with refused(path="aggregation.rule", found="'theirs:First'", says="ModuleNotFoundError"):
        load_recorded(workplace / "experiment.yaml")
    assert not (workplace / "PLANTED").exists()


def test_actors_look_where_the_driver_looks(ray_local: None, workplace: Path) -> None:
    import ray

    from fedrobust.federation.actors import setup

    class Actor:
        def setup(self, rule: Rule) -> list[str]:
            return [rule.name, *sys.path[-1:]]

    (workplace / "sub").mkdir()
    (workplace / "sub" / "my_rules.py").write_text(RULE)
    (workplace / "sub" / "e.yaml").write_text("aggregation: {rule: 'my_rules:First'}\n")
    rule = fedrobust.load("sub/e.yaml").aggregation.rule
    actor = ray.remote(Actor).options(num_cpus=0.01).remote()
    assert setup([actor], [rule], "an actor", 60) == [["my_rules:First", str(workplace / "sub")]]
    ray.kill(actor)


@pytest.mark.parametrize(
    ("entry", "trusted"), [(None, False), ("", True), (".", True), ("{here}", True), ("{here}/sub", False)]
)
def test_the_current_folder_is_trusted_by_actors_only_where_the_driver_trusts_it(
    entry: str | None, trusted: bool, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedrobust.federation.session import where_actors_look

    path = [each for each in sys.path if Path(each).absolute() != workplace]
    monkeypatch.setattr(sys, "path", path if entry is None else [entry.format(here=workplace), *path])
    users_code.look_in([str(workplace)])  # a class beside an experiment file: that is no trust
    assert where_actors_look()._py_driver_sys_path == ([str(workplace)] if trusted else [])


@pytest.mark.parametrize(
    ("address", "told"), [("local", True), ("10.0.0.1:6379", True), ("ray://10.0.0.1:10001", False)]
)
def test_ray_is_told_where_actors_look_unless_it_has_a_client(
    address: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray sends what a client is started with as JSON, which a job's settings are not."""
    from fedrobust.errors import FederationError
    from fedrobust.federation import session

    seen: list[set[str]] = []

    def init(**options: object) -> None:
        seen.append(set(options))
        raise ConnectionError("no cluster")

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(session.ray, "init", init)
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    for name in ("check_answer", "check_joining"):
        monkeypatch.setattr(session, name, lambda address: None)
    with pytest.raises(FederationError, match="no cluster"), session.ray_session():
        pass
    assert [("job_config" in options) for options in seen] == [told]


def test_actors_of_a_job_look_in_their_own_copy_of_the_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedrobust.federation.actors import _in_the_copy

    assert _in_the_copy("/copy/sub") == "/copy/sub"
    monkeypatch.setenv("FEDROBUST_SHIPPED", "/copy")
    assert [_in_the_copy(folder) for folder in ("/copy/sub", "/copy", "/other")] == ["sub", ".", "/other"]


@pytest.mark.long
def test_a_run_imports_nothing_from_the_working_folder_but_the_class_that_is_named(workplace: Path) -> None:
    planted(workplace, (*PACKAGES, *PYTHONS, "timm", "pytorch_lightning", "torchvision", "scipy"))
    (workplace / "sub").mkdir()
    planted(workplace / "sub", (*PACKAGES, *PYTHONS))
    write_patches(workplace / "patches.npz")
    (workplace / "sub" / "my_rules.py").write_text(RULE)
    (workplace / "sub" / "e.yaml").write_text(YAML.replace("rule: geometric_median", "rule: 'my_rules:First'"))
    options = ["federation.rounds=2", "workers.count=2", "data.source.path=patches.npz"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fedrobust", "run", "sub/e.yaml", *options],
        cwd=workplace,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not [*workplace.glob("**/PLANTED")]
    assert f"your code: my_rules:First from {workplace / 'sub' / 'my_rules.py'}" in done.stdout
