"""What a matrix has no figure for, and why: cells that failed or are missing, and oracles that have learnt nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fedrobust.intervals import FEWEST
from fedrobust.matrices.grid import ORACLE
from fedrobust.metrics.chance import MORE, against, at_chance
from fedrobust.texts import enumerated

AT_CHANCE = "the oracle is at chance"
NO_ORACLE = "the oracle has no figure"
FEW = "too few seeds"
_OF_THE_ORACLE = (AT_CHANCE, NO_ORACLE)
"""Reasons that all attacks on a seed have in common, so that the seed can be left out."""


class Ceiling(NamedTuple):
    """What the oracle of a setting reaches on one seed."""

    accuracy: float
    """Its balanced accuracy."""
    chance: float
    """1 / number of labels that occur in the test."""

    @property
    def at_chance(self) -> bool:
        """Whether it has learnt nothing."""
        return at_chance(self.accuracy, self.chance)


def ceilings(own: Any) -> dict[int, Ceiling]:
    """Return seed → oracle, for the oracles that are measured.

    own: the cells of one setting, see `results.table_of`.
    """
    lines = own[(own["attack"] == ORACLE) & own["balanced_accuracy"].notna()]
    return {int(line.seed): Ceiling(line.balanced_accuracy, line.chance) for line in lines.itertuples()}


def unlearnt(table: Any, rounds: Mapping[str, int]) -> str:
    """Return one sentence about the oracles that are at chance, with the settings and seeds unless all of them are;
    empty if every oracle has learnt something.

    table: the cells, see `results.table_of`.
    rounds: setting → rounds of its runs.
    """
    flat: dict[str, dict[int, Ceiling]] = {}
    everywhere = True
    for setting in table["setting"].unique():
        found = ceilings(table[table["setting"] == setting])
        low = {seed: ceiling for seed, ceiling in found.items() if ceiling.at_chance}
        everywhere &= len(low) == len(found) > 0
        if low:
            flat[setting] = low
    if not flat:
        return ""
    kinds = {(rounds[setting], ceiling.chance) for setting, low in flat.items() for ceiling in low.values()}
    if everywhere and len(kinds) == 1:
        ((after, _),) = kinds
        return f"{AT_CHANCE} ({_mean(c for low in flat.values() for c in low.values())}) {_after(after)}: {MORE}"
    places = [
        f"in {setting} ({_mean(low.values())}) {_after(rounds[setting])}"
        + ("" if len(low) == len(ceilings(table[table["setting"] == setting])) else f" on {_seeds(list(low))}")
        for setting, low in flat.items()
    ]
    return f"{AT_CHANCE} {'; '.join(places)}: {MORE}"


def hopeless(table: Any, seeds: Sequence[int]) -> bool:
    """Return whether every setting's oracle is at chance on all these seeds.

    table: the cells, see `results.table_of`.
    """
    for setting in table["setting"].unique():
        found = ceilings(table[table["setting"] == setting])
        if not all(seed in found and found[seed].at_chance for seed in seeds):
            return False
    return True


def why_not(cells: Any, column: str, oracles: Mapping[int, Ceiling]) -> str:
    """Return why cells have no figure, with their seeds; empty if each has one.

    cells: those of one attack and defence in one phase.
    column: name of the figure.
    oracles: as `ceilings` returns them.
    """
    return "; ".join(f"{reason} on {_seeds(seeds)}" for reason, seeds in _reasons(cells, column, oracles).items())


def lacking(own: Any, defence: str, column: str, attacks: Iterable[str]) -> dict[str, str]:
    """Return the attacks that were not measured although any of them may be the worst: attack → why.

    own: the cells of one setting.
    defence: the defence.
    column: name of the figure.
    attacks: the attacks in question.

    An attack that was measured again needs a figure on every fresh seed, except those on which the oracle has none. One
    that was not measured again needs a figure on a screening seed, by which it was not chosen.
    """
    oracles, cells = ceilings(own), own[own["defence"] == defence]
    begun = bool((cells["phase"] == "fresh").any())
    found = {}
    for attack in attacks:
        mine = cells[cells["attack"] == attack]
        again, first = (mine[mine["phase"] == phase] for phase in ("fresh", "screening"))
        reasons = _reasons(again, column, oracles)
        if len(again) and (again[column].isna().all() or any(reason not in _OF_THE_ORACLE for reason in reasons)):
            found[attack] = why_not(again, column, oracles)
        elif not len(again) and first[column].isna().all():
            found[attack] = why_not(first, column, oracles)
        elif not len(again) and not begun:
            found[attack] = "not measured on the fresh seeds yet"
    return found


def incomplete(lacks: Mapping[str, str], attacks: int) -> str:
    """Return a text that names the attacks without figures, by reason.

    lacks: as `lacking` returns it.
    attacks: how many attacks there are.
    """
    by_reason: dict[str, list[str]] = {}
    for attack, reason in lacks.items():
        by_reason.setdefault(reason, []).append(attack)
    if len(by_reason) == 1 and len(lacks) == attacks:
        return f"no attack has a figure: {next(iter(by_reason))}"
    return "no figure for " + "; ".join(f"{enumerated(names, 6)} ({reason})" for reason, names in by_reason.items())


def no_interval(own: Any, defence: str, column: str) -> str:
    """Return why a figure on the fresh seeds has no interval.

    own, defence, column: as in `lacking`.
    """
    cells = own[(own["defence"] == defence) & (own["phase"] == "fresh")]
    if cells["seed"].nunique() < FEWEST:
        return FEW
    reasons: dict[str, set[int]] = {}
    for _, mine in cells.groupby("attack"):
        for reason, seeds in _reasons(mine, column, ceilings(own)).items():
            reasons.setdefault(reason, set()).update(seeds)
    told = "; ".join(f"{reason} on {_seeds(sorted(seeds))}" for reason, seeds in reasons.items())
    return f"{FEW} with a figure: {told}"


def legend(cells: Any, column: str, oracles: Mapping[int, Ceiling]) -> str:
    """Return what a dash in a table of these cells means; empty if each has a figure.

    cells, column, oracles: as in `why_not`, but of any attacks and defences.
    """
    groups = [mine for _, mine in cells.groupby(["attack", "defence"], sort=False) if mine[column].isna().all()]
    reasons = dict.fromkeys(reason for mine in groups for reason in _reasons(mine, column, oracles))
    return f"–: {', or '.join(reasons)}." if reasons else ""


def _reasons(cells: Any, column: str, oracles: Mapping[int, Ceiling]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for line in cells[cells[column].isna()].itertuples():
        oracle = oracles.get(line.seed)
        relative = column == "robustness" or (column == "gain" and math.isnan(line.baseline_success))
        if line.state != "done":
            reason = "failed" if line.state == "failed" else "not finished"
        elif relative and oracle is None:
            reason = NO_ORACLE
        elif column == "robustness" and oracle is not None and oracle.at_chance:
            reason = AT_CHANCE
        else:
            reason = "without a figure"
        found.setdefault(reason, []).append(int(line.seed))
    return found


def _mean(of: Iterable[Ceiling]) -> str:
    many = list(of)
    return against(math.fsum(each.accuracy for each in many) / len(many), many[0].chance)


def _after(rounds: int) -> str:
    return f"after {rounds} round{'' if rounds == 1 else 's'}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"
