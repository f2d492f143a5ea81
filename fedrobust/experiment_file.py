"""Reading experiment files: YAML with overrides by dotted path, and errors that name path, line and remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from fedrobust.draft import Changes, Draft
from fedrobust.errors import ExperimentError, Origin, Problem
from fedrobust.validation import plain
from fedrobust.yaml_tree import has_anchors, read_tree

if TYPE_CHECKING:
    from fedrobust.experiment import Experiment


def load(path: str | PathLike[str], overrides: Changes = ()) -> Experiment:
    """Read an experiment from a YAML file.

    path: the file.
    overrides: a mapping, e.g. `{"aggregation.rule": "krum", "attacks.0.scale": 4}`, or texts such as
        `"aggregation.rule=krum"`, whose values are read as YAML.

    Raises `ExperimentError` with a `Problem` for each error: its position (file, line, dotted path), what was found,
    what is allowed, and the nearest correct spelling.
    """
    from fedrobust.experiment import Experiment

    return Draft.read(path, overrides).checked(Experiment)


def load_recorded(path: Path) -> Experiment:
    """Read the experiment that `dump` wrote into a run's folder. No code from that folder is loaded.

    Raises `ExperimentError` as `load` does.
    """
    from fedrobust.experiment import Experiment

    return replace(Draft.read(path), beside=()).checked(Experiment)


def read_options(path: Path) -> dict[str, Any]:
    """Read the values of a YAML file that `dump` wrote, without validation; classes that it names are not imported.

    Raises `ExperimentError` as `load` does, and for anchors, because a few lines of them can expand to gigabytes.
    """
    tree = read_tree(path)
    if has_anchors(path):
        raise ExperimentError(Problem("has an anchor, which no recorded experiment has").at(Origin(path)))
    found: dict[str, Any] = plain(tree)
    return found


def dump(experiment: Experiment) -> str:
    """Return the experiment as YAML with every option resolved; `load` reads it back."""
    return dump_options(experiment.resolved())


def dump_options(options: Mapping[str, Any]) -> str:
    """Return options, all of them resolved, as `dump` writes them."""
    out = StringIO()
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(options, out)
    return out.getvalue()
