"""`fedrobust init`: the shipped experiments in a folder of one's own."""

from __future__ import annotations

import filecmp
from pathlib import Path

import pytest

import fedrobust
from fedrobust.cli import main

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


def init(*given: str) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr("sys.argv", ["fedrobust", "init", *given])
        main()
    return int(end.value.code or 0)


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("folder", [".", "a b/c"])
def test_init_writes_what_the_repository_holds(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert init(*([] if folder == "." else [folder])) == 0
    made = Path(folder) / "experiments"
    shipped = [path.relative_to(EXPERIMENTS) for path in EXPERIMENTS.rglob("*") if "__pycache__" not in path.parts]
    names = [str(name) for name in shipped if (EXPERIMENTS / name).is_file()]
    assert sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()) == sorted(names)
    assert filecmp.cmpfiles(EXPERIMENTS, made, names, shallow=False) == (names, [], [])
    assert (Path(folder) / ".gitignore").read_text() == "/mlruns/\n"
    fedrobust.load(made / "quickstart.yaml")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["  fedrobust run experiments/quickstart.yaml", "  fedrobust ui"]
    assert ("  cd 'a b/c'" in lines) == (folder != ".")


def test_init_overwrites_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Path("experiments").mkdir()
    Path("experiments/quickstart.yaml").write_text("name: mine\n")
    Path("experiments/duel.yaml").symlink_to("elsewhere.yaml")
    Path(".gitignore").write_text("*.pyc\n")
    assert init() == 0
    assert Path("experiments/quickstart.yaml").read_text() == "name: mine\n"
    assert not Path("experiments/elsewhere.yaml").exists()
    assert Path(".gitignore").read_text() == "*.pyc\n"
    out = capsys.readouterr().out
    assert "kept as they were: experiments/duel.yaml, experiments/quickstart.yaml, .gitignore" in out
    assert "add /mlruns/ to your .gitignore" in out
    assert init() == 0
    assert "0 files written" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["file", "file/deeper", "."])
def test_a_file_in_the_place_of_a_folder_is_named(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    Path("experiments").touch()
    assert init(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "there is a file where a folder is needed" in line
    assert sorted(path.name for path in Path().iterdir()) == ["experiments", "file"]


def test_no_message_tells_to_call_make() -> None:
    """Who has installed the package has no Makefile; that of `make cluster` is for who has called it."""
    package = Path(fedrobust.__file__).parent
    found = [
        f"{path.relative_to(package)}:{number}"
        for path in package.rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for target in ("demo", "ui", "test", "lint", "bench", "schema")
        if f"make {target}" in line
    ]
    assert not found
