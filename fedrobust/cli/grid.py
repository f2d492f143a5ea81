"""Several values of an override, separated by commas: `fedrobust run FILE seed=1,2,3` makes a run of each."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedrobust.cli.application import INTERRUPTED
from fedrobust.errors import ExperimentError, FedRobustError, Interrupted, Origin, Problem
from fedrobust.screen import harmless

if TYPE_CHECKING:
    from fedrobust.experiment import Experiment
    from fedrobust.result import Result
    from fedrobust.sessions import Session
    from fedrobust.terminal import Screen

OneRun = tuple[str, ...]
"""The overrides of one run."""


def combinations(overrides: Iterable[str]) -> list[OneRun]:
    """Return the overrides of each run: every combination of the values that commas separate.

    Commas inside of brackets, braces, parentheses and quotes separate nothing: `attacks=[sign_flip,ipm]` is one value.

    >>> combinations(["seed=1,2", "aggregation.rule=mean"])
    [('seed=1', 'aggregation.rule=mean'), ('seed=2', 'aggregation.rule=mean')]

    Raises `ExperimentError` for an empty value, and for a value or such a path that is there twice.
    """
    ways = list[list[str]]()
    for override in overrides:
        path, equals, text = override.partition("=")
        values = [value.strip() for value in _separated(text)]
        if len(values) > 1:
            origin = Origin(text=f"override '{override}'")
            if "" in values:
                hint = f"if the comma belongs to the value: '{path}=\"{text}\"'"
                raise ExperimentError(Problem("an empty value beside a comma", path, hint=hint).at(origin))
            if twice := [value for value in values if values.count(value) > 1]:
                raise ExperimentError(Problem("a value is there twice", path, found=twice[0]).at(origin))
        ways.append([f"{path}{equals}{value}" for value in values] if len(values) > 1 else [override])
    paths = [way[0].partition("=")[0] for way in ways]
    if twice := [path for path, way in zip(paths, ways, strict=True) if len(way) > 1 and paths.count(path) > 1]:
        raise ExperimentError(Problem("has several values, and is given once more", twice[0]))
    return list(product(*ways))


def make_grid(
    file: Path, runs: Mapping[OneRun, Experiment], differing: Mapping[OneRun, str], out: Screen
) -> tuple[dict[OneRun, Result], list[str]]:
    """Make the runs one after the other, with one start of Ray and the actors; return the results, and the failures.

    file: the experiment file, for the command that goes on.
    runs: overrides → experiment.
    differing: the overrides that tell the runs apart, as a text.
    out: the terminal.

    A run that fails costs no other. A Ctrl-C ends the command, and says which runs are there.
    """
    from fedrobust.failures import ends_all, reason
    from fedrobust.job import tell
    from fedrobust.sessions import Session
    from fedrobust.terminal.elements import plain

    results, failures = dict[OneRun, Any](), list[str]()
    workers = [experiment.workers for experiment in runs.values()]
    with ExitStack() as stack:
        session = stack.enter_context(Session(workers[0])) if workers.count(workers[0]) == len(workers) else None
        for number, (words, experiment) in enumerate(runs.items(), start=1):
            label = f"{number}/{len(runs)} runs: {differing[words]}"
            out.print(plain(label), soft_wrap=True)
            try:
                results[words] = _run(experiment, session, out)
            except KeyboardInterrupt as stop:
                _tell_stopped(file, words, stop, results, len(runs))
                raise typer.Exit(INTERRUPTED) from None
            except Exception as error:
                if ends_all(error):
                    raise
                failures.append(f"{differing[words]}: {reason(error)}")
                out.print(plain(f"failed: {reason(error)}"), soft_wrap=True)
            tell(done=number, of=len(runs), what="runs")
    return results, failures


def show_grid(results: Mapping[OneRun, Result], failures: Sequence[str], out: Screen) -> None:
    """Compare the results, or show the only one.

    failures: why other runs failed.

    Raises `FedRobustError` if there is any failure, after everything is shown.
    """
    from fedrobust.report import write_comparison
    from fedrobust.runner import COMPARISONS, RUNS
    from fedrobust.terminal import show_comparison, show_result

    found = list(results.values())
    if len(found) > 1:
        comparison = partial(write_comparison, [result.run_id for result in found], RUNS, COMPARISONS)
        harmless(lambda show: show(out, *comparison()))(show_comparison)
    elif found:
        harmless(lambda what: show_result(out, what))(found[0])
    if failures:
        raise FedRobustError(*(f"failed: {failure}" for failure in failures))


def told_apart(combined: Sequence[OneRun]) -> dict[OneRun, str]:
    """Return what tells each of the runs apart: its overrides that not all have."""
    shared = set.intersection(*map(set, combined))
    return {words: " ".join(word for word in words if word not in shared) for words in combined}


def _run(experiment: Experiment, session: Session | None, out: Screen) -> Result:
    from fedrobust.runner import run
    from fedrobust.terminal import Progress

    with Progress(out, experiment) as progress:
        hooks, say = [harmless(progress.on_record)], harmless(progress.say)
        if session is None:
            return run(experiment, hooks=hooks, say=say)
        with session.for_run(experiment, say) as (pool, hospitals):
            return run(experiment, hooks=hooks, say=say, pool=pool, hospitals=hospitals)


def _tell_stopped(
    file: Path, words: OneRun, stop: KeyboardInterrupt, results: Mapping[OneRun, Result], runs: int
) -> None:
    made = [result.run_id for result in results.values()]
    there = f"; compare them with: fedrobust compare {' '.join(made)}" if len(made) > 1 else ""
    print(f"stopped; {len(made)} of {runs} runs are made{there}", file=sys.stderr)
    if isinstance(stop, Interrupted):
        command = shlex.join(["fedrobust", "run", str(file), *words, "--resume", stop.run])
        print(f"go on with the one that was stopped: {command}", file=sys.stderr)


def _separated(text: str) -> Iterator[str]:
    """Yield the parts of a value between the commas that stand outside of brackets and quotes."""
    part, depth, quote = "", 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'" and not part.strip():  # a quote inside of a plain text is a letter
            quote = sign
        elif sign in "[({":
            depth += 1
        elif sign in "])}":
            depth = max(0, depth - 1)
        elif sign == "," and not depth:
            yield part
            part = ""
            continue
        part += sign
    yield part
