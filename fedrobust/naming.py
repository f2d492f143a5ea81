"""What a run is called, what it is a part of, and the tags that a person filters runs by."""

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
"""The tag `secrecy` of runs whose secrets come from the experiment's seed."""


@dataclass(frozen=True)
class Part:
    """A run that is one of many: its journal is all it leaves, and `fedrobust sync` can send MLflow the curves."""

    parent: str
    """Id of the MLflow run that it is nested below."""
    tags: Mapping[str, str]
    """Tags beside, or instead of, those that every run has."""
    opened: list[str] = field(default_factory=list)
    """Filled with the ids of the MLflow runs that are begun for it: one, or more where it is begun again."""


def run_name(experiment: Experiment) -> str:
    """What sets the run apart from its neighbours in a list: defence, attacks, partition, seed, experiment."""
    if experiment.tracking.run_name:
        return visible(experiment.tracking.run_name)
    parts = tags(experiment)
    # The defence first: lists cut long names off at the end.
    told = (parts["defence"], parts["attack"], parts["partition"], f"seed {experiment.seed}", parts["experiment"])
    return " | ".join(told)


def tags(experiment: Experiment) -> dict[str, str]:
    """What a person filters runs by."""
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
    """Whether its updates are shared between servers, under secrets."""
    return isinstance(experiment.privacy, SecretSharing)


def secret(experiment: Experiment) -> bool:
    """Whether the secrets of a protocol are any: not where they come from the seed, which everybody knows."""
    return not (isinstance(experiment.privacy, SecretSharing) and experiment.privacy.randomness == "seed")


def repeatable(experiment: Experiment) -> bool:
    """Whether the same experiment gives the same bits: not with a deadline, and not where secrets are drawn anew."""
    return experiment.federation.deadline is None and not (shared(experiment) and secret(experiment))


@cache
def commit() -> str:
    """The commit of the code that runs, marked where files differ from it; 'unknown' outside of a repository.

    A job on a cluster, where the repository is not, has it from the environment: FEDROBUST_COMMIT.
    """
    if given := os.environ.get("FEDROBUST_COMMIT"):
        return given
    repository = Path(__file__).parent.parent
    if not (repository / ".git").exists():  # an installed package may lie in somebody else's repository
        return "unknown"
    command = ["git", "-C", os.fspath(repository), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip() or "unknown"
