"""Options of runs as tables show them, and their two sides: the setting, and the candidate in it. Pure.

Runs can be ranked only if they had the same task. The options that define the task are the setting's: the data and
their partition, the hospitals, the attacks, the number of rounds, the local training budget, the protocol. The options
that a person chooses for that task are the candidate's: aggregation, trust, and learning apart from its budget. An
option that is in none of the lists below belongs to the setting, so in doubt runs stand apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from fedrobust.experiment import Experiment
from fedrobust.trust import AFTER_DEFENCE

NEITHER = ("name", "seed", "tracking", "workers", "evaluation")
"""Options that separate nothing: labels, the seed, and what cannot change a model. Which rounds were evaluated is read
from the records."""
CANDIDATE = ("aggregation", "trust", "learning")
"""Options of the candidate."""
BUDGET = ("learning.local.steps", "learning.local.epochs", "learning.local.batch_size")
"""The local training budget: options of the setting, although they are below `learning`."""
DATA = "data digest"
"""The name under which different data of the same options are listed."""
AVERAGED = "averaged rounds"
"""The name under which the rounds are listed whose evaluations are averaged."""

_SPEAKING = {
    *("rule", "partition", "source", "stain_normalisation", "model", "optimizer", "loss", "server"),
    *("detector", "reputation"),
}
"""Options whose values say enough without their name."""

Texts = Mapping[str, str]
"""Dotted path of an option → its value as text."""


def short_options(experiment: Mapping[str, Any]) -> dict[str, str]:
    """Return the options by dotted path, without those of `NEITHER`; an object with a name is listed at its own path by
    that name.

    experiment: all options, nested as in an experiment file.

    So they look like overrides: `aggregation.rule: krum`, `aggregation.stages: [clip, nnm]`, `attacks.0.scale: 4.0`.
    Options newer than the run have their defaults.
    """
    try:
        experiment = Experiment.model_validate(experiment).resolved()
    except ValidationError:  # from another version, or with classes that are not available
        experiment = dict(experiment)
    return _short({key: value for key, value in experiment.items() if key not in NEITHER}, "")


def of_candidate(path: str) -> bool:
    """Return whether the option at a dotted path is one of the candidate; otherwise it is one of the setting."""
    return path.split(".")[0] in CANDIDATE and path not in BUDGET


def sides(options: Texts) -> tuple[dict[str, str], dict[str, str]]:
    """Return the options of the setting and those of the candidate.

    options: as `short_options` returns them.
    """
    setting = {path: value for path, value in options.items() if not of_candidate(path)}
    return setting, {path: value for path, value in options.items() if of_candidate(path)}


def plain_mean(candidate: Texts) -> bool:
    """Return whether a candidate is no defence at all: the mean of the updates, without stages, without trust, and
    without a referee, a jury or a repair."""
    plain = {"aggregation.rule": "mean", "aggregation.stages": "[]", "trust.acts": "false"}
    beyond = tuple(f"trust.{name}." for name in AFTER_DEFENCE)
    if "aggregation.rule" not in candidate or any(path.startswith(beyond) for path in candidate):
        return False
    return all(candidate.get(path, value) == value for path, value in plain.items())


def telling(groups: Sequence[Texts]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the paths of the options that separate the groups, and the paths of all options that differ.

    groups: the options of each group, as `short_options` returns them.

    If some groups lack an option, the name of the object that has it is enough, unless groups with the same name differ
    in the option.
    """
    paths = dict.fromkeys(path for group in groups for path in group)
    differing = tuple(path for path in paths if len({group.get(path) for group in groups}) > 1)
    return tuple(path for path in differing if not _implied(path, groups, differing)), differing


def labels(groups: Sequence[Texts], otherwise: Sequence[str]) -> list[str]:
    """Return what distinguishes each group, in words; numbers are added if that does not make the labels distinct.

    groups: the options of each group.
    otherwise: a label for each group, for the case that nothing differs.

    If the defence differs, it is written as one: `clip + nnm + geometric median`.
    """
    columns, _ = telling(groups)
    found = []
    for group, other in zip(groups, otherwise, strict=True):
        paths = [path for path in columns if path in group]
        parts = [path for path in paths if path in ("aggregation.stages", "aggregation.rule")]
        words = [defence(group)] if parts else []
        words += [_word(path, group[path]) for path in paths if path not in parts]
        found.append(" · ".join(words) or other)
    return [f"{label} ({found[: place + 1].count(label)})" if found.count(label) > 1 else label
            for place, label in enumerate(found)]  # fmt: skip


def spoken(name: str) -> str:
    """Return the name of an option's class in words: `geometric median`; a user's own class keeps its name."""
    return name if ":" in name else name.replace("_", " ")


def defence(candidate: Texts) -> str:
    """Return stages and rule of a candidate in words: `clip + nnm + geometric median`."""
    stages = candidate.get("aggregation.stages", "[]")[1:-1]
    names = [*(stages.split(", ") if stages else []), candidate.get("aggregation.rule", "…")]
    return " + ".join(map(spoken, names))


def _implied(path: str, groups: Sequence[Texts], differing: Sequence[str]) -> bool:
    if all(path in group for group in groups):
        return False
    parts = path.split(".")
    for above in (".".join(parts[:count]) for count in range(1, len(parts))):
        if above in differing:
            values: dict[str | None, set[str | None]] = {}
            for group in groups:
                values.setdefault(group.get(above), set()).add(group.get(path))
            if all(len(found) == 1 for found in values.values()):
                return True
    return False


def _short(options: Mapping[str, Any], prefix: str) -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in options.items():
        path = f"{prefix}{key}"
        if isinstance(value, (list, tuple)) and value and all(isinstance(item, Mapping) for item in value):
            flat[path] = f"[{', '.join(str(item.get('name', '…')) for item in value)}]"
            for index, item in enumerate(value):
                flat |= _short({key: option for key, option in item.items() if key != "name"}, f"{path}.{index}.")
        elif isinstance(value, Mapping) and value:
            if "name" in value:
                flat[path] = str(value["name"])
            flat |= _short({key: option for key, option in value.items() if key != "name"}, f"{path}.")
        else:
            flat[path] = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return flat


def _word(path: str, value: str) -> str:
    parts = path.split(".")
    last = " ".join(parts[-2:]) if parts[-1].isdigit() or value in ("true", "false", "null") else parts[-1]
    if value == "[]":
        return f"no {last}"
    if value.startswith("[") and value[1:2].isalpha():
        return " + ".join(map(spoken, value[1:-1].split(", ")))
    if last in _SPEAKING:
        return spoken(value)
    return f"{spoken(last)} {value}"
