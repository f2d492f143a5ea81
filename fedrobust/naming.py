"""Names and tags of runs, and the study that a run is part of."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fedrobust.experiment import Experiment, Learning
from fedrobust.options import Options
from fedrobust.secure import ClearPrivacy, SecretSharing
from fedrobust.texts import fit, visible
from fedrobust.trust import AFTER_DEFENCE, Trust

NOT_SECRET = "not secret"
"""The tag `secrecy` of runs that derive their secrets from the experiment's seed."""


@dataclass(frozen=True)
class Part:
    """Marks a run as one of many: it leaves only its journal, and `fedrobust sync` can send the curves to MLflow."""

    parent: str
    """Id of the MLflow run that contains it."""
    tags: Mapping[str, str]
    """Additional tags; they override those that every run has."""
    opened: list[str] = field(default_factory=list)
    """The ids of the MLflow runs that were begun for it are appended here: one, or more if it is restarted."""
    go_on: Callable[[], object] = lambda: None
    """Called when there is a team of actors for it, before anything is written; raises if it is no longer wanted."""
    say: Callable[[str], None] = lambda what: None
    """Is told what takes long before its first round; raises if it is no longer wanted."""


SIZES = ("fraction", "count", "clients")
"""Options of an attack that say how many hospitals it has."""
LONGEST = 200
"""Characters of a run's name into which details must fit; the least important ones are left out first."""


def run_name(experiment: Experiment) -> str:
    """Return what distinguishes the run in a list: defence, attacks, protocol, partition, the options of these and of
    the learning that are not the defaults, seed, experiment."""
    if experiment.tracking.run_name:
        return visible(experiment.tracking.run_name)
    clients, aggregation, plain = experiment.federation.clients, experiment.aggregation, tags(experiment)
    last = [f"seed {experiment.seed}", experiment.name]
    protocol = [] if experiment.privacy == ClearPrivacy() else [experiment.privacy]
    # The defence first, because lists cut the ends of long names.
    found = [
        " + ".join(_told(stage) for stage in (*aggregation.stages, aggregation.rule)),
        " + ".join(_told(each, f" {each.attackers(clients)}/{clients}", SIZES) for each in experiment.attacks)
        or "none",
        *(_told(each) for each in protocol),
        plain["partition"],
    ]
    if len(" | ".join([*found, *last])) > LONGEST:
        found = [plain["defence"], plain["attack"], *(each.name for each in protocol), plain["partition"]]
    for detail in _details(experiment):
        if len(" | ".join([*found, detail, *last])) <= LONGEST:
            found.append(detail)
    return visible(" | ".join([*found, *last]))


def _details(experiment: Experiment) -> list[str]:
    """Return what else is not the default, the most important things first."""
    learning, trust, usual = experiment.learning, experiment.trust, Learning()
    parts: list[tuple[Options, Options]] = [
        (learning.local.optimizer, usual.local.optimizer),
        (learning.local.loss, usual.local.loss),
        (learning.server, usual.server),
        (learning.model, usual.model),
        (trust.detector, Trust().detector),
    ]
    optimizer, *others = [_told(part) if part != default else "" for part, default in parts]
    details = [
        optimizer,
        *_changed(experiment.aggregation, ("stages", "rule")),
        *(["trust acts"] if trust.acts else []),
        *(_with(name, option) for name in AFTER_DEFENCE if (option := getattr(trust, name)) is not None),
        *others,
        *_changed(experiment.federation, ("clients",)),
        *_changed(learning.local, ("optimizer", "loss", "engine", "callbacks")),
    ]
    return [detail for detail in details if detail and detail != f"epochs {usual.local.epochs}"]


def _with(name: str, option: Options) -> str:
    """Return a name and what is not the default of an option, e.g. "repair (every 5)"."""
    changed = ", ".join(_changed(option))
    return f"{name} ({changed})" if changed else name


def _told(option: Options, size: str = "", without: Collection[str] = ()) -> str:
    """Return the name of an option and what is not its default, e.g. "sgd (lr 0.01)"."""
    changed = ", ".join(_changed(option, without))
    return f"{option.name}{size}{f' ({changed})' if changed else ''}"  # type: ignore[attr-defined]


def _changed(options: Options, without: Collection[str] = ()) -> list[str]:
    """Return the options that are not the default, e.g. "lr 0.01"."""
    fields = {name: field for name, field in type(options).model_fields.items() if name not in ("name", *without)}
    values = {name: getattr(options, name) for name in fields}
    changed = {name: value for name, value in values.items() if value not in (None, fields[name].get_default())}
    return [
        (name if value else f"no {name}") if isinstance(value, bool) else f"{name} {short(value)}"
        for name, value in changed.items()
    ]


def short(value: Any) -> str:
    """Return the value of an option as a text of at most 20 characters; of an object, its name."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Options):
        return str(getattr(value, "name", type(value).__name__))
    if isinstance(value, Mapping):
        named = value.get("name", value.get("rule"))
        return short(named) if named else fit(",".join(f"{key} {short(each)}" for key, each in value.items()), 20)
    if isinstance(value, tuple | list):
        return fit(",".join(map(short, value)), 20)
    return fit(str(value), 20)


def tags(experiment: Experiment) -> dict[str, str]:
    """Return the tags by which users filter runs."""
    sizes = [
        f"{attack.name} {attack.attackers(experiment.federation.clients)}/{experiment.federation.clients}"
        for attack in experiment.attacks
    ]
    stages = [*experiment.aggregation.stages, experiment.aggregation.rule]
    partition = experiment.data.partition
    alpha = getattr(partition, "alpha", None)
    found = {
        "experiment": experiment.name,
        "attack": " + ".join(sizes) or "none",
        "defence": " + ".join(stage.name for stage in stages),
        "partition": f"{partition.name}{'' if alpha is None else f' {alpha:g}'}",
        "unit": partition.unit,
        "protocol": experiment.privacy.name,
        **({"secrecy": "real" if secret(experiment) else NOT_SECRET} if shared(experiment) else {}),
        "source": experiment.data.source.name,
        "seed": str(experiment.seed),
        "deterministic": str(repeatable(experiment)).lower(),
        "git_commit": commit(),
    }
    return {name: visible(value) for name, value in found.items()}


def shared(experiment: Experiment) -> bool:
    """Return whether the updates are split into secret shares between servers."""
    return isinstance(experiment.privacy, SecretSharing)


def secret(experiment: Experiment) -> bool:
    """Return whether the protocol's secrets are really secret; they are not if they derive from the seed, which is
    public."""
    return not (isinstance(experiment.privacy, SecretSharing) and experiment.privacy.randomness == "seed")


def repeatable(experiment: Experiment) -> bool:
    """Return whether the same experiment gives the same bits; with a deadline or with newly drawn secrets it does
    not."""
    return experiment.federation.deadline is None and not (shared(experiment) and secret(experiment))


@cache
def commit() -> str:
    """Return the commit of the running code, marked if files differ from it; 'unknown' outside of a repository.

    On a cluster, where the repository is missing, a job reads it from the environment variable FEDROBUST_COMMIT.
    """
    if given := os.environ.get("FEDROBUST_COMMIT"):
        return given
    repository = Path(__file__).parent.parent
    if not (repository / ".git").exists():  # an installed package may be inside the repository of another project
        return "unknown"
    command = ["git", "-C", os.fspath(repository), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip() or "unknown"
