"""Names and tags of runs, and the study that a run is part of."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from fedrobust.experiment import Experiment
from fedrobust.secure import SecretSharing
from fedrobust.texts import visible

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


def run_name(experiment: Experiment) -> str:
    """Return what distinguishes the run in a list: defence, attacks, partition, seed, experiment."""
    if experiment.tracking.run_name:
        return visible(experiment.tracking.run_name)
    parts = tags(experiment)
    # The defence first, because lists cut the ends of long names.
    told = (parts["defence"], parts["attack"], parts["partition"], f"seed {experiment.seed}", parts["experiment"])
    return " | ".join(told)


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
