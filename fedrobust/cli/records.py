"""The commands that show existing things: runs, options, this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedrobust.cli.application import Overrides, app


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN|EXPERIMENT", help="Ids of runs, or names of experiments: all their runs."),
    ],
) -> None:
    """Compare runs: which candidate is better, by how much, and from how much data; other tasks stand apart."""
    from fedrobust.report import write_comparison
    from fedrobust.runner import COMPARISONS, RUNS
    from fedrobust.terminal import console, show_comparison

    show_comparison(console(), *write_comparison(runs, RUNS, COMPARISONS))


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or the beginning of it.")],
    officer: Annotated[
        bool, typer.Option("--officer", help="Write the one page for a security officer, too, and print its path.")
    ] = False,
) -> None:
    """Write the report of a run again, and print its path."""
    from fedrobust.report import write_again
    from fedrobust.runner import KEY, find_run

    print(write_again(find_run(run), KEY, officer))


@app.command()
def sync(run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or the beginning of it.")]) -> None:
    """Send MLflow the records of a run that it lacks, e.g. because the tracking server was away."""
    from fedrobust.records import read_run
    from fedrobust.runner import find_run
    from fedrobust.tracking import sync as sync_run

    folder = find_run(run)
    count = sync_run(folder, read_run(folder))
    print(f"{count} records sent" if count else "nothing to send: the tracking server has everything")


@app.command()
def audit(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, the beginning of it, or a folder.")],
    key: Annotated[
        Path | None, typer.Option(metavar="PUB", help="The coordinator's public key, as it was handed to you.")
    ] = None,
) -> None:
    """Check that a run's audit log is unbroken, and that everything in the run's folder matches it."""
    from fedrobust.audit.signing import AuditError, read_public
    from fedrobust.audit.verification import verify_all
    from fedrobust.terminal import console, show_verdict

    public = None if key is None else read_public(key)
    if Path(run).is_dir():
        verdict = verify_all(Path(run), public)
    else:
        from fedrobust.runner import find_run

        folder = find_run(run)
        verdict = verify_all(folder, public, folder.name)
    if verdict.broken:
        raise AuditError(f"{verdict.broken}; {verdict.lines} lines hold")
    show_verdict(console(), verdict, key)


@app.command()
def schema(
    matrix: Annotated[bool, typer.Option("--matrix", help="That of matrix files instead.")] = False,
    sweep: Annotated[bool, typer.Option("--sweep", help="That of sweep files instead.")] = False,
    duel: Annotated[bool, typer.Option("--duel", help="That of duel files instead.")] = False,
) -> None:
    """Print the JSON schema of experiment files, for editors."""
    from fedrobust.duels import Duel
    from fedrobust.experiment import Experiment
    from fedrobust.matrices import Matrix
    from fedrobust.tuning import Sweep

    model = Matrix if matrix else Sweep if sweep else Duel if duel else Experiment
    print(json.dumps(model.model_json_schema(), indent=2))


@app.command(name="list")
def list_options(
    what: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A family, e.g. attacks, rules, sources or detectors; or one name, krum."),
    ] = None,
) -> None:
    """List every source, partition, model, attack, stage and rule, with one line about each.

    With a name: the options of a family, or of one class, with their defaults and the paper.
    """
    from fedrobust.terminal import console, show_options

    show_options(console(), what)


@app.command()
def doctor(
    file: Annotated[Path | None, typer.Argument(help="An experiment file (YAML).", show_default=False)] = None,
    overrides: Overrides = None,
) -> None:
    """Show what this machine has: cores, GPUs, Ray, the MLflow store, data sets.

    With an experiment file: check its data instead, and show how they are divided (no image is opened), and what the
    benchmark says of its defence.
    """
    from fedrobust.terminal import console, show_machine

    if file is None:
        show_machine(console())
        return
    from fedrobust.benchmark import DEFAULT, advised, comparable, load_suite, ranked, stored_rows
    from fedrobust.experiment_file import load
    from fedrobust.preparation import dealt
    from fedrobust.terminal import show_advice, show_left_out
    from fedrobust.terminal.patches import show_data

    experiment = load(file, overrides or ())
    show_data(console(), experiment, *dealt(experiment))
    suite = load_suite(DEFAULT)
    stored, refused = stored_rows(suite)
    show_left_out(console(), refused)
    for quick, _, rows in comparable([], stored, False, suite)[:1]:
        show_advice(console(), advised(experiment, ranked(rows, suite)), suite, quick)
