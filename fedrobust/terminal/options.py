"""The classes that an experiment file can name, by family: all of them in short, or some with their options."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedrobust.errors import ExperimentError, Problem
from fedrobust.option_texts import OptionText, own_options, shared_options
from fedrobust.options import Options, members, nearest, summary
from fedrobust.terminal.elements import plain

Classes = Mapping[str, type[Options]]
"""Name → class."""

ALSO = {"privacy": ("protocol",)}
"""Other words for a family."""


def families() -> dict[str, dict[str, type[Options]]]:
    """Return every family of options of experiment files: heading → name → class."""
    from fedrobust.aggregation import RowRule, Rule, Stage
    from fedrobust.attacks import Attack, Identity, Schedule
    from fedrobust.data import Partition, Source, StainNormalisation
    from fedrobust.learning import LocalLoss, LocalOptimizer, Model, ServerOptimizer
    from fedrobust.metrics import Metric
    from fedrobust.secure import Privacy
    from fedrobust.trust import Detector, Reputation

    return {
        "data.source": members(Source),
        "data.partition": members(Partition),
        "data.stain_normalisation": members(StainNormalisation),
        "learning.model": members(Model),
        "learning.local.optimizer": members(LocalOptimizer),
        "learning.local.loss": members(LocalLoss),
        "learning.server": members(ServerOptimizer),
        "attacks": members(Attack),
        "attacks.schedule": members(Schedule),
        "attacks.identity": members(Identity),
        "aggregation.stages": members(Stage),
        "aggregation.rule": members(Rule, RowRule),
        "trust.detector": members(Detector),
        "trust.reputation": members(Reputation),
        "privacy": members(Privacy),
        "evaluation.metrics": members(Metric),
    }


def show_options(out: Console, word: str | None = None) -> None:
    """Print all families with one line for each class; with `word`, one family or class with its options and defaults.

    word: a family by its path in the file or the last part of that, e.g. `attacks` or `rules`, or the name of a class.

    Raises `ExperimentError` if nothing is called `word`.
    """
    if word is None:
        for family, classes in families().items():
            out.print(Text(family, "bold"))
            out.print(_table((name, plain(summary(option))) for name, option in classes.items()))
        out.print("more about some of them: fedrobust list attacks, fedrobust list krum", markup=False)
    else:
        for family, found in _called(word).items():
            whole = len(found) == 1
            out.print(Text(family, "bold"))
            out.print(_table((name, _described(option, whole)) for name, option in found.items()))
            if shared := shared_options(next(iter(found.values()))):
                out.print(Text(f"all {family} have", "bold"))
                out.print(_options(shared))
    out.print('A class of your own goes wherever these go: name: "package.module:Class"', markup=False)


def _called(word: str) -> Mapping[str, Classes]:
    """Return the families called `word`, or the class of this name in each family that has one."""
    every, given = families(), word.casefold().replace("-", "_")
    found: dict[str, Classes] = {family: classes for family, classes in every.items() if given in _words(family)}
    found = found or {family: {given: classes[given]} for family, classes in every.items() if given in classes}
    if found:
        return found
    names = [family.rpartition(".")[2] for family in every]
    hint = nearest(given, [*names, *(name for classes in every.values() for name in classes)])
    raise ExperimentError(Problem("", "list", f"'{word}'", (*names, "or one of their names"), hint))


def _words(family: str) -> set[str]:
    """Return what a family may be called: its path, its last part, that in the singular and in the plural."""
    named = {family.rpartition(".")[2], *ALSO.get(family, ())}
    named |= {each.removesuffix("s") for each in named}
    plurals = {f"{each.removesuffix('y')}{end}" for each in named for end in ("s", "es", "ies")}
    return {family} | named | plurals


def _described(option: type[Options], whole: bool) -> RenderableType:
    """Return what a class is, with the source in its first line, and its options; `whole`: all of its docstring."""
    text = plain(_unwrapped(inspect.cleandoc(option.__doc__ or "")), keep="\n") if whole else plain(summary(option))
    return Group(text, _options(own_options(option)))


def _unwrapped(docstring: str) -> str:
    """Return a docstring with one line for each paragraph and each item of a list, to be broken by the terminal."""
    return re.sub(r"(?<=\S)\n *(?=[^\s>-]|-\w)", " ", docstring)


def _options(options: Iterable[OptionText]) -> Table:
    return _table((each.name, Text(f"{each.words.replace('`', '')}. {each.description}".strip())) for each in options)


def _table(rows: Iterable[tuple[str, RenderableType]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, body in rows:
        table.add_row(plain(name), body)
    return table
