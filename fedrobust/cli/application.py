"""What the commands have in common: the application that they belong to, and how they end."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import fedrobust
from fedrobust.errors import Interrupted
from fedrobust.extras import require
from fedrobust.job import in_job

_TAG = re.compile(r"\[(?=[a-z#/@][^\[]*\])")
"""What begins a tag of rich's markup."""


class LiteralHelp(TyperGroup):
    """Shows help texts as they are written: rich would take `[mean,median]` for markup, and leave it out."""

    def __init__(self, **settings: Any) -> None:
        """`settings`: those of a group of commands."""
        super().__init__(**settings)
        commands = self.commands.values()
        described: list[Any] = [self, *commands, *(option for each in commands for option in each.params)]
        for each in described:
            if each.help:
                each.help = _TAG.sub(r"\[", each.help)


app = typer.Typer(
    name="fedrobust",
    cls=LiteralHelp,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train a federation of hospitals, attack it, defend it, and record every round.",
)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="PATH=VALUE", help="Overrides, e.g. seed=3 or aggregation.rule=krum,mean.")
]
"""Of options of an experiment."""
CORE = {"doctor", "init", "list", "schema"}
"""Commands that work without any extra."""
CLUSTER = {"submit", "jobs", "logs", "stop", "fetch"}
"""Commands that need `fedrobust[cluster]`; all others need `fedrobust[platform]`."""
INTERRUPTED = 130
"""The exit code after a Ctrl-C or a SIGTERM, as in shells."""
GOING_ON = ("run", "matrix", "sweep", "duel", "benchmark")
"""Commands that go on when their output can no longer be written."""

checking: ContextVar[list[str] | None] = ContextVar("checking", default=None)
"""If a list is set, commands only check their files and options, and add the names of MLflow's experiments to it."""


def only_checked(mlflow_experiment: str) -> bool:
    """Return whether the command ends here, because `submit` makes the checks of a command before it sends it.

    mlflow_experiment: the name of the MLflow experiment of its runs.
    """
    found = checking.get()
    if found is None:
        return False
    found.append(mlflow_experiment)
    return True


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"fedrobust {fedrobust.__version__}")
        raise typer.Exit


@app.callback()
def _before(
    command: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    name = command.invoked_subcommand
    if name not in CORE and "--help" not in sys.argv:
        require("cluster" if name in CLUSTER else "platform", f"fedrobust {name}")


@contextmanager
def stoppable(goes_on: bool) -> Iterator[None]:
    """After a Ctrl-C in the block, say how to continue: a run that has committed something by its id, and, if
    `goes_on`, the study by the same command; a job is to be submitted again."""
    try:
        yield
    except KeyboardInterrupt as stop:
        resume = ["--resume", stop.run] if isinstance(stop, Interrupted) else []
        resumed = any(word.partition("=")[0] == "--resume" for word in sys.argv)
        words = shlex.join(["fedrobust", *sys.argv[1:], *([] if resumed else resume)])
        said = f"go on with: {words}" if goes_on or resume else "nothing is committed yet"
        if in_job() and (goes_on or resume):  # its words are not those that were typed
            added = f" with {' '.join(resume)}" if resume and not resumed else ""
            said = f"to go on, submit the same command again{added}"
        print(f"stopped; {said}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
