"""The command `benchmark`: how a defence ranks beside those that others have measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrobust.cli.application import app, stoppable
from fedrobust.cli.federations import TeamsOption
from fedrobust.errors import ExperimentError, Problem
from fedrobust.screen import harmless

if TYPE_CHECKING:
    from fedrobust.benchmark import BenchmarkEntry, BenchmarkRow, Suite

FOLDER = Path("mlruns/benchmark/rows")
"""Where rows are written by default: a folder for each suite."""


@app.command()
def benchmark(
    entries: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ENTRY",
            help="A rule (median), a class of yours (mine:Rule, mine.py:Rule), a YAML file with aggregation and trust; "
            "or a row's file (.json), which is shown and not run.",
        ),
    ] = None,
    suite: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="By default histology-v1.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer attacks and seeds: some minutes.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file of the row; of several entries, a folder.")
    ] = None,
    teams: TeamsOption = None,
    check: Annotated[
        Path | None, typer.Option("--verify", metavar="FILE", help="Compute some cells of a row again, and compare.")
    ] = None,
    cells: Annotated[int, typer.Option(min=1, help="How many cells --verify computes.")] = 6,
    suites: Annotated[bool, typer.Option("--list", help="List the suites.")] = False,
) -> None:
    """Rank defences: robustness against the worst attack of a suite, backdoors, and cost with nobody attacking.

    Without an entry, the stored rows are shown. The same command continues where it was stopped.
    """
    from fedrobust.benchmark import (
        DEFAULT,
        comparable,
        load_suite,
        ranked,
        read_entry,
        read_row,
        shipped_suites,
        stored_rows,
    )
    from fedrobust.terminal import MatrixProgress, console, show_code, show_left_out, show_ranking, show_suites

    screen, words = console(), entries or []
    if suites:
        show_suites(screen, list(map(load_suite, shipped_suites())))
        return
    if check is not None:
        if ignored := "the entry" * bool(words) or "--out" * (out is not None) or "--quick" * quick:
            raise ExperimentError(Problem(f"computes cells of this row again; leave {ignored} out", "--verify"))
        _verify(check, suite, cells, teams)
        return
    chosen = load_suite(suite or DEFAULT)
    rows = [read_row(Path(word), chosen) for word in words if _is_row(word)]
    made = [read_entry(word, chosen) for word in words if not _is_row(word)]
    files = _files(made, chosen.name, quick, out)
    if made:
        chosen.check_data()
    for entry, file in zip(made, files, strict=True):
        _make_room(file)
        _may_replace(file, entry, chosen, quick)
    stored, refused = stored_rows(chosen)
    show_code(screen)
    show_left_out(screen, refused)
    for entry, file in zip(made, files, strict=True):
        with stoppable(goes_on=True), MatrixProgress(screen) as progress:
            from fedrobust.benchmark.running import run_entry

            rows.append(_with_source(run_entry(entry, chosen, quick, progress, teams=teams), file))
        file.write_text(rows[-1].written(), encoding="utf-8")
    if not stored:
        screen.print(f"no rows are stored for {chosen.name}")
    for part, own, beside in comparable(rows, stored, quick, chosen):
        show = partial(show_ranking, screen, suite=chosen, quick=part, own=own)
        harmless(show)(ranked([*own, *beside], chosen))
    for file in files:
        screen.print(f"row: {file}", soft_wrap=True)


def _verify(file: Path, suite: str | None, cells: int, teams: int | None) -> None:
    """Compute some cells of a row again. Ends with exit code 1 if one of them differs, or if together they do."""
    from fedrobust.benchmark import load_suite, read_row
    from fedrobust.benchmark.row import parsed_row
    from fedrobust.benchmark.verifying import measured_entry, moved, verify
    from fedrobust.terminal import MatrixProgress, console, show_code, show_reproduced

    chosen = load_suite(suite or parsed_row(file).suite)
    row = read_row(file, chosen)
    screen = console()
    with measured_entry(row, file, chosen) as entry:
        show_code(screen)
        with stoppable(goes_on=False), MatrixProgress(screen) as progress:
            found = verify(row, entry, chosen, cells, progress, teams=teams)
    harmless(lambda what: show_reproduced(screen, what))(found)
    if moved(found) or any(each.verdict == "differs" for each in found):
        raise typer.Exit(1)


def _files(entries: Sequence[BenchmarkEntry], suite: str, quick: bool, out: Path | None) -> list[Path]:
    """Return where the row of each entry goes. Raises `ExperimentError` if two would go to one file."""
    names = [entry.name for entry in entries]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ExperimentError(Problem("two entries have this name", "entry", f"'{twice[0]}'"))
    if out is not None and not entries:
        raise ExperimentError(Problem("needs an entry, whose row is written", "--out"))
    if out is not None and _is_row(out.name):
        if len(names) > 1 or out.is_dir():
            raise ExperimentError(Problem("of several entries, give a folder", f"--out {out}"))
        return [out]
    if out is not None and out.is_file():
        raise ExperimentError(Problem("expected a folder, or a file that ends in .json", f"--out {out}"))
    folder = FOLDER / suite if out is None else out
    return [folder / f"{name}{'-quick' if quick else ''}.json" for name in names]


def _is_row(word: str) -> bool:
    """Whether a word of the command names the file of a row."""
    return word.lower().endswith(".json")


def _may_replace(file: Path, entry: BenchmarkEntry, suite: Suite, quick: bool) -> None:
    """Raise `ExperimentError` if a file is there that is not an earlier row of this entry with as many cells."""
    from fedrobust.benchmark.row import parsed_row

    if not file.exists():
        return
    try:
        earlier = parsed_row(file)
        same = (earlier.suite, earlier.name, earlier.quick) == (suite.name, entry.name, quick)
    except ExperimentError:
        same = False
    if not same:
        part = "quick row" if quick else "row"
        raise ExperimentError(Problem(f"is there, and no {part} of {entry.name}; give another --out").at(file))


def _with_source(row: BenchmarkRow, file: Path) -> BenchmarkRow:
    """Return a row with the source that its author has written into the earlier file of the same code."""
    from fedrobust.benchmark.row import parsed_row

    if not file.exists() or (earlier := parsed_row(file).entry).code != row.entry.code:
        return row
    return row.model_copy(update={"entry": row.entry.model_copy(update={"source": earlier.source})})


def _make_room(file: Path) -> None:
    """Make the folder of a file. Raises `ExperimentError` if the file may not be written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ExperimentError(Problem("may not be written").at(file))
