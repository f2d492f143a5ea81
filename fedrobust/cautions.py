"""What a user should hear before a run: options that are allowed, and may be meant, but seldom are. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from fedrobust.errors import Problem
from fedrobust.experiment import Experiment, Learning
from fedrobust.learning import Encoder
from fedrobust.portions import portion


def cautions(experiment: Experiment) -> tuple[str, ...]:
    """One line for each thing that a user should know before the run: what will happen, and what to change.

    experiment: checked as a whole. Its attackers and the hospitals of each round are drawn as the run draws them.
    """
    drawn = experiment.federation.participants()
    doubt = experiment.privacy.doubt(experiment.aggregation, experiment.most_there(), drawn)
    found = (_outnumbered(experiment), doubt, _encodes_anew(experiment.learning), _jury_outnumbered(experiment))
    return tuple(str(problem) for problem in found if problem is not None)


def shared_cautions(experiments: Sequence[Experiment]) -> list[str]:
    """The cautions of many runs, one line for each kind of caution: that of the first run that has it.

    experiments: those of the runs.
    """
    found: dict[str, list[str]] = {}
    for experiment in experiments:
        for problem in cautions(experiment):
            found.setdefault(problem.partition(":")[0], []).append(problem)
    return [
        said[0] + (f" (and {len(said) - 1} more of {len(experiments)} runs)" if len(said) > 1 else "")
        for said in found.values()
    ]


class Worst(NamedTuple):
    """The round with the most malicious rows above the Byzantine f."""

    attackers: int
    """Hospitals that attack in it."""
    hospitals: int
    """Hospitals that send an update in it."""
    rows: int
    """Rows that the defence sees: updates, or the means of groups."""
    malicious: int
    """Rows that may be malicious."""
    f: int
    rounds: int
    """Number of rounds with more malicious rows than f."""


def outnumbered(experiment: Experiment) -> Worst | None:
    """The round in which most malicious rows exceed the Byzantine f of the defence; None if no round has more than f.

    experiment: the count, fraction or bound that `aggregation.f` stands for is worked out anew for each round, for the
        hospitals that are drawn in it and are not absent. `auto` counts as the largest f that it could estimate.

    Hospitals that are absent send nothing, so they are not counted. In groups, each attacker may be in a group of its
    own. Rounds that are skipped in any case, because there are too few updates, are not counted.
    """
    federation, attackers, found = experiment.federation, experiment.attackers, list[Worst]()
    if not attackers.drawn:
        return None

    @cache
    def f_of(rows: int) -> int | None:
        refused = experiment.aggregation.refusal(rows, federation.participants())
        return None if refused else experiment.aggregation.byzantine_f(rows, federation.participants())

    for round in range(1, federation.rounds + 1):
        there = sorted(set(federation.drawn(experiment.seed, round)) - attackers.absent(round))
        rows, attacking = experiment.privacy.rows(len(there)), len(attackers.active(there, round))
        if attacking and len(there) >= federation.needed() and (f := f_of(rows)) is not None:
            malicious = min(attacking, rows)
            if malicious > f:
                found.append(Worst(attacking, len(there), rows, malicious, f, 0))
    if not found:
        return None
    return max(found, key=lambda each: each.malicious - each.f)._replace(rounds=len(found))


def _encodes_anew(learning: Learning) -> Problem | None:
    """A frozen encoder whose features could be computed once."""
    frozen = isinstance(learning.model, Encoder) and learning.model.trainable == "head"
    if not frozen or learning.on_features:
        return None
    reason = "the encoder looks at each patch again in each step, as "
    if learning.local.engine == "stacked":
        return Problem(
            f"{reason}hospitals are trained in stacks", "learning.local.engine", hint="engine: lean does not"
        )
    hint = "learning.model.views: 8 keeps the features of all of them, augment: false those of the patches alone"
    return Problem(f"{reason}patches are turned and flipped", "learning.local.augment", hint=hint)


def _outnumbered(experiment: Experiment) -> Problem | None:
    """More malicious updates than the defence allows for. A mean makes no promise that could be broken."""
    aggregation = experiment.aggregation
    if all(part.needs == {"sum"} for part in (*aggregation.stages, aggregation.rule)):
        return None
    if (worst := outnumbered(experiment)) is None:
        return None
    parts = " → ".join(part.name for part in (*aggregation.stages, aggregation.rule))
    spoilt = "" if experiment.privacy.single else f", and may spoil {worst.malicious} of {worst.rows} groups"
    reason = (
        f"{worst.attackers} of {worst.hospitals} hospitals attack in a round{spoilt}, and {parts} allows for f = "
        f"{worst.f}: more than it promises to withstand, in {worst.rounds} of {experiment.federation.rounds} rounds"
    )
    enough = aggregation.model_copy(update={"f": worst.malicious})
    if 2 * worst.malicious >= worst.rows:
        seen = "updates" if experiment.privacy.single else "groups"
        hint = f"no rule can promise anything if half of the {seen} or more are malicious"
    elif enough.refusal(worst.rows):
        hint = f"f = {worst.f} is the most that it allows here: take fewer attackers, more hospitals or another rule"
    else:
        hint = f"use aggregation.f={worst.malicious}"
    return Problem(reason, "aggregation.f", hint=hint)


def _jury_outnumbered(experiment: Experiment) -> Problem | None:
    """More malicious hospitals than the jury allows for."""
    if experiment.trust.jury is None:
        return None
    clients, malicious = experiment.federation.clients, len(experiment.attackers.drawn)
    allowed = portion(experiment.trust.jury.fraction, clients)
    if malicious <= allowed:
        return None
    reason = f"{malicious} of {clients} hospitals are malicious, and the jury allows for {allowed}: it may do harm"
    return Problem(reason, "trust.jury.fraction", hint="a referee has no such limit, but needs patches")
