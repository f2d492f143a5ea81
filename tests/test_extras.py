"""The core works alone, and what an extra lacks is said in one line."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import typer

import fedrobust
from fedrobust.cli import app, main
from fedrobust.cli.application import CLUSTER, CORE
from fedrobust.extras import MissingExtraError, missing, require

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMMANDS = sorted(typer.main.get_group(app).commands)
PLATFORM = [
    "ray",
    "torch",
    "pytorch_lightning",
    "mlflow",
    "optuna",
    "cryptography",
    "pandas",
    "matplotlib",
    "sqlalchemy",
]
"""Modules that a core installation does not have."""


@pytest.fixture(autouse=True)
def metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the project says now, even where it was installed before that."""
    lines = [*PROJECT["dependencies"]]
    for extra, needed in PROJECT["optional-dependencies"].items():
        lines += [f'{line}{" and" if ";" in line else ";"} extra == "{extra}"' for line in needed]
    monkeypatch.setattr("fedrobust.extras.requires", lambda name: lines)


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder, and no packages."""

    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("fedrobust.extras.version", version)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_that_need_less_are_commands() -> None:
    assert set(COMMANDS) >= CORE | CLUSTER
    assert not CORE & CLUSTER


@pytest.mark.parametrize("command", [each for each in COMMANDS if each not in CORE])
def test_a_command_names_the_extra_that_is_missing(
    command: str, core: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["fedrobust", command, "x"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    extra = "cluster" if command in CLUSTER else "platform"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: fedrobust {command} needs ray, ")
    assert line.endswith(f': pip install "fedrobust[{extra}]"')
    assert not list(core.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_extra(command: str, core: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["fedrobust", command, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code


@pytest.mark.parametrize("name", ["run", "sweep", "Result"])
def test_python_names_the_extra_that_is_missing(name: str, core: Path) -> None:
    with pytest.raises(MissingExtraError, match=rf'fedrobust\.{name} needs .*"fedrobust\[platform\]"$'):
        getattr(fedrobust, name)


def test_a_version_that_is_not_admitted_is_named(core: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrobust.extras.version", lambda name: "2.1.0" if name == "torch" else "2026.1")
    assert list(missing("platform")) == ["torch>=2.11 (2.1.0 is installed)"]
    require("cluster", "this")
    with pytest.raises(ImportError, match=r"^this needs torch>=2\.11 \(2\.1\.0 is installed\): pip"):
        require("platform", "this")


def test_what_is_installed_here_is_enough() -> None:
    assert not list(missing("dev"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        *(f"main({command!r})" for command in sorted(CORE - {"init"})),
        "fedrobust.load(sys.argv[1]).aggregation.pipeline()",
        "import fedrobust.aggregation",
    ],
)
def test_the_core_needs_no_other_package(code: str, tmp_path: Path) -> None:
    script = f"""
import sys
sys.modules.update(dict.fromkeys({PLATFORM}))
import fedrobust, fedrobust.extras
fedrobust.extras.missing = lambda extra: ["ray"]
def main(command):
    sys.argv = ["fedrobust", command]
    fedrobust.cli.main()
import fedrobust.cli
{code}
"""
    quickstart = Path(__file__).parent.parent / "experiments" / "quickstart.yaml"
    done = subprocess.run(
        [sys.executable, "-c", script, str(quickstart)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_importing_the_package_imports_no_other() -> None:
    script = (
        "import sys; before = set(sys.modules); import fedrobust\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert new - set(sys.stdlib_module_names) == {'fedrobust'}, new"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
