"""`fedrobust benchmark` without a run: what is listed, and one line for what is wrong."""

from __future__ import annotations

import json
import os
import py_compile
import re
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from importlib.util import cache_from_source
from pathlib import Path

import pytest
from benched import OWN, made_row, planted, usual, write_suite
from tiny import write_patches

from fedrobust.benchmark import BenchmarkEntry, BenchmarkRow, Suite, read_entry, read_row, shipped_suites
from fedrobust.benchmark.verifying import Reproduced, measured_entry
from fedrobust.cli import main


@pytest.fixture
def suite(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    sys.modules.pop("own_rule", None)
    Path("own_rule.py").write_text(OWN)
    Path("own-rule.py").write_text(OWN)
    suite = write_suite(workplace)
    for entry in ("median", "own_rule:Equal"):
        row = made_row(suite, usual, planted, entry=entry)
        Path(f"{row.name}.json").write_text(row.written())
    return suite


def ended(monkeypatch: pytest.MonkeyPatch, command: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedrobust", "benchmark", *command.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_suites_are_listed(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(shipped_suites())
    assert not list(workplace.iterdir())


def test_rows_of_others_are_ranked_without_a_run(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, "median.json own_rule_Equal.json --suite tiny.yaml") == 0
    shown = capsys.readouterr().out
    assert "no rows are stored for tiny-v1" in shown
    assert shown.count("flip") == 2
    assert "→ own_rule_Equal" in shown
    assert not Path("mlruns").exists()


def change(**fields: object) -> None:
    row = json.loads(Path("own_rule_Equal.json").read_text())
    row["entry"] |= fields
    Path("own_rule_Equal.json").write_text(json.dumps(row))


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("mdian", "did you mean 'median'?"),
        ("median --suite histology", "allowed: histology-v1, idc-v1"),
        ("median median --suite tiny.yaml", "two entries have this name; found 'median'"),
        ("median multi_krum --suite tiny.yaml --out one.json", "--out one.json: of several entries, give a folder"),
        (
            "median --suite tiny.yaml --out tiny.yaml",
            "--out tiny.yaml: expected a folder, or a file",
        ),
        ("--out one.json", "--out: needs an entry"),
        ("nowhere.json --suite tiny.yaml", "nowhere.json: cannot be read"),
        ("--verify nowhere.json", "nowhere.json: cannot be read"),
        ("--verify median.json", "suite: found 'tiny-v1'; allowed: histology-v1, idc-v1"),
        ("--verify median.json --suite histology-v1", "median.json: suite: is a row of another suite"),
        ("median --suite tiny.yaml", "patches.npz: does not exist"),
        ("nowhere.JSON --suite tiny.yaml", "nowhere.JSON: cannot be read"),
        (
            "own_rule.py --suite tiny.yaml",
            "entry: name the class, too; found 'own_rule.py'; for example 'own_rule.py:Rule'",
        ),
        ("own_rule: --suite tiny.yaml", "for example 'own_rule:Rule'"),
        ("own-rule.py:Equal --suite tiny.yaml", "own-rule.py: 'own-rule:Equal' is not a name in Python"),
        ("median --suite idc-v1", "FEDROBUST_DATA"),
    ],
)
def test_one_line(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, says: str
) -> None:
    assert ended(monkeypatch, command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not Path("mlruns").exists()


@pytest.mark.parametrize("quick", [False, True])
def test_a_row_is_written_and_ranked(
    suite: Suite, quick: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(entry: BenchmarkEntry, suite: Suite, quick: bool, *_: object, **__: object) -> BenchmarkRow:
        return made_row(suite, usual, planted, entry=entry.name, quick=quick)

    monkeypatch.setattr("fedrobust.benchmark.running.run_entry", made)
    write_patches(Path("patches.npz"))
    assert ended(monkeypatch, f"mean multi_krum median.json --suite tiny.yaml {'--quick' * quick}") == 0
    shown = capsys.readouterr().out
    folder = Path("mlruns/benchmark/rows/tiny-v1")
    files = [folder / f"{name}{'-quick' * quick}.json" for name in ("mean", "multi_krum")]
    assert [f"row: {file}" for file in files] == shown.splitlines()[-2:]
    assert [read_row(file, suite).quick for file in files] == [quick, quick]
    assert shown.count("patch") == (9 if quick else 6)  # as the worst backdoor in every row, and in every setting
    assert ended(monkeypatch, "mean --suite tiny.yaml --out rows/own.json") == 0
    assert not read_row(Path("rows/own.json"), suite).quick


def test_only_an_earlier_row_of_the_same_entry_is_replaced(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(entry: BenchmarkEntry, suite: Suite, quick: bool, *_: object, **__: object) -> BenchmarkRow:
        return made_row(suite, usual, planted, entry=entry.name.replace("_E", ":E"), quick=quick)

    monkeypatch.setattr("fedrobust.benchmark.running.run_entry", made)
    write_patches(Path("patches.npz"))
    Path("notes.json").write_text('{"mine": 1}')
    before = {file: file.read_bytes() for file in Path().glob("*.json")}
    for command in (
        "multi_krum --out median.json",  # another entry
        "median --quick --out median.json",  # fewer cells
        "median --out notes.json",
    ):
        assert ended(monkeypatch, f"{command} --suite tiny.yaml") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{command.rpartition(' ')[2]}: is there, and no " in line
    assert {file: file.read_bytes() for file in Path().glob("*.json")} == before
    for part in ("", " --quick"):  # of one folder
        assert ended(monkeypatch, f"median{part} --out rows --suite tiny.yaml") == 0
    assert [read_row(Path("rows", name), suite).quick for name in ("median.json", "median-quick.json")] == [False, True]


def test_the_source_that_was_filled_in_stays_with_its_code(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path("own_rule_Equal.json")

    def made(entry: BenchmarkEntry, suite: Suite, quick: bool, *_: object, **__: object) -> BenchmarkRow:
        return made_row(suite, usual, planted, entry="own_rule:Equal")

    monkeypatch.setattr("fedrobust.benchmark.running.run_entry", made)
    write_patches(Path("patches.npz"))
    change(source="where others find it")
    assert ended(monkeypatch, f"own_rule:Equal --suite tiny.yaml --out {file}") == 0
    assert read_row(file, suite).entry.source == "where others find it"
    change(code={"own_rule:Equal": "0" * 64})
    assert ended(monkeypatch, f"own_rule:Equal --suite tiny.yaml --out {file}") == 0
    assert read_row(file, suite).entry.source == ""


def test_a_bad_stored_row_is_named_and_the_others_are_shown(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fedrobust.benchmark.row.ROWS", Path("rows"))
    Path("rows/tiny-v1").mkdir(parents=True)
    Path("rows/tiny-v1/bad.json").write_text("{")
    Path("median.json").rename("rows/tiny-v1/median.json")
    assert ended(monkeypatch, "--suite tiny.yaml") == 0
    shown = capsys.readouterr().out
    assert "not among the rows: rows/tiny-v1/bad.json: is not the file of a row" in shown
    assert "median" in shown


def test_a_row_that_differs_ends_with_exit_code_1(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def again(row: BenchmarkRow, entry: BenchmarkEntry, suite: Suite, cells: int, *_: object, **__: object) -> object:
        others = [each.model_copy(update={"accuracy": 0.3}) if each.seed == changed else each for each in row.cells]
        pairs = zip(row.cells, others, strict=True)
        return [Reproduced(row.name, claimed, other) for claimed, other in pairs][:cells]

    monkeypatch.setattr("fedrobust.benchmark.verifying.verify", again)
    changed = 0
    assert ended(monkeypatch, "--verify median.json --suite tiny.yaml") == 0
    assert "6 of 6 cells agree: 6 to the bit" in capsys.readouterr().out
    changed = 1
    assert ended(monkeypatch, "--verify median.json --suite tiny.yaml --cells 32") == 1
    assert "24 of 32 cells agree" in capsys.readouterr().out


def test_cells_that_all_differ_in_favour_of_the_row_end_with_exit_code_1(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def again(row: BenchmarkRow, entry: BenchmarkEntry, suite: Suite, cells: int, *_: object, **__: object) -> object:
        others = [each.model_copy(update={"accuracy": each.accuracy - 0.04}) for each in row.cells]
        pairs = zip(row.cells, others, strict=True)
        return [Reproduced(row.name, claimed, other) for claimed, other in pairs][:cells]

    monkeypatch.setattr("fedrobust.benchmark.verifying.verify", again)
    assert ended(monkeypatch, "--verify median.json --suite tiny.yaml") == 1
    shown = capsys.readouterr().out
    assert "6 of 6 cells agree" in shown
    assert (
        "all cells: accuracy is better in the row than again by 0.040 in the mean of 6; rounding: at most 0.020"
        in shown
    )


@pytest.mark.parametrize("beside", ["mean", "--quick", "--out rows"])
def test_what_would_be_ignored_beside_verify_is_refused(
    beside: str, suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, f"{beside} --verify median.json --suite tiny.yaml") == 2
    assert capsys.readouterr().err.startswith("error: --verify: computes cells of this row again; leave ")


def test_other_code_is_not_verified(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not imported: it would be run."""
    sys.modules.pop("own_rule", None)
    Path("own_rule.py").write_text("raise SystemExit('imported')\n")
    assert ended(monkeypatch, "--verify own_rule_Equal.json --suite tiny.yaml") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"own_rule\.py: own_rule:Equal is not the code that was measured: its SHA-256 is \w{8}…", line)
    change(code={})
    assert ended(monkeypatch, "--verify own_rule_Equal.json --suite tiny.yaml") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "own_rule_Equal.json: entry.code: must have each class of the options" in line
    sys.modules.pop("own_rule", None)
    Path("own_rule.py").unlink()
    change(code={"own_rule:Equal": "0" * 64})
    assert ended(monkeypatch, "--verify own_rule_Equal.json --suite tiny.yaml") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "aggregation.rule.name: cannot import 'own_rule:Equal'" in line


TRAP = "from pathlib import Path\nPath('sprung').touch()\n"


def compiled_trap() -> None:
    """Bytecode that Python would run instead of the file: it names the file's size and time."""
    file = Path("own_rule.py")
    trap = Path("trap.py")
    trap.write_text((TRAP + OWN).ljust(2000))
    code = py_compile.compile(str(trap), doraise=True)
    file.write_bytes(file.read_bytes())
    data = bytearray(Path(code).read_bytes())
    info = file.stat()
    data[8:16] = int(info.st_mtime).to_bytes(4, "little") + info.st_size.to_bytes(4, "little")
    place = Path(cache_from_source(str(file)))
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(data)
    trap.unlink()


def parent_trap() -> None:
    """The measured module moves into a package."""
    Path("own_rule").mkdir()
    Path("own_rule/__init__.py").write_text(TRAP)
    Path("own_rule.py").write_text(TRAP)
    Path("own_rule/inner.py").write_text(OWN)
    change(code={"own_rule.inner:Equal": sha256(OWN.encode()).hexdigest()})
    row = json.loads(Path("own_rule_Equal.json").read_text())
    row["entry"]["options"]["aggregation"]["rule"]["name"] = "own_rule.inner:Equal"
    Path("own_rule_Equal.json").write_text(json.dumps(row))


def package_trap() -> None:
    Path("own_rule").mkdir()
    Path("own_rule/__init__.py").write_text(TRAP + OWN)


@pytest.mark.parametrize("trap", [compiled_trap, parent_trap, package_trap])
@pytest.mark.parametrize("first", [False, True], ids=["searched last", "searched first"])
def test_what_lies_beside_the_measured_file_is_not_run(
    suite: Suite, trap: Callable[[], None], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, with the folder of the row in front of all others or not, as `python -m` has it."""
    trap()
    (name,), (digest,) = zip(*json.loads(Path("own_rule_Equal.json").read_text())["entry"]["code"].items(), strict=True)
    code = f"""
import sys
from pathlib import Path
sys.path = [each for each in sys.path if each not in ("", {str(Path.cwd())!r})]
if {first}:
    sys.path.insert(0, {str(Path.cwd())!r})
from fedrobust.benchmark import load_suite, read_row
from fedrobust.benchmark.verifying import measured_entry
from fedrobust.errors import ExperimentError
suite = load_suite("tiny.yaml")
try:
    with measured_entry(read_row(Path("own_rule_Equal.json"), suite), Path("own_rule_Equal.json"), suite) as entry:
        print(entry.code[{name!r}])
except ExperimentError as error:
    print("refused", error)
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert not Path("sprung").exists()
    assert ("would be imported instead" in done.stdout) if first else done.stdout.startswith(digest), done
    subprocess.run([sys.executable, "-c", "import own_rule"], env=environment, check=True)
    assert Path("sprung").exists()  # else the trap would be none


def test_a_text_that_looks_like_a_class_is_none(suite: Suite) -> None:
    """An option of a rule may have a colon."""
    Path("worded.py").write_text(
        OWN.replace("own_rule:Equal", "worded:Worded")
        .replace("class Equal", "class Worded")
        .replace("    def bound", '    like: str = "left:right"\n\n    def bound')
    )
    entry = read_entry("worded:Worded", suite)
    assert entry.options["aggregation"]["rule"]["like"] == "left:right"
    assert entry.code.keys() == {"worded:Worded"}
    row = made_row(suite, usual, planted, entry="worded:Worded")
    with measured_entry(row, Path("worded.json"), suite) as again:
        assert again.code == entry.code
