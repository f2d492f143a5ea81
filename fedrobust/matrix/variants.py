"""Attacks with several values for some of their options: a column of the matrix for each combination.

So the search for the attack that is worst for a defence, on a grid or at random, is a matrix: every variant is tried on
the screening seeds, and the worst ones are judged on fresh seeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from fedrobust.options import refusal
from fedrobust.seeds import generator

BEHIND = ": "
"""Stands between the name of an attack and what sets one of its variants apart."""


def varied(attacks: Mapping[str, Any]) -> dict[str, Any]:
    """The attacks, with each one that has `vary` replaced by its variants.

    `vary` is option → list of values, the option by dotted path; `draw` is how many of the combinations are tried,
    drawn at random by the attack's name; all of them by default. Raises a refusal where they make no sense.
    """
    found: dict[str, Any] = {}
    for name, attack in attacks.items():
        if not isinstance(attack, Mapping) or not {"vary", "draw"} & set(attack):
            found[name] = attack
            continue
        own = {key: value for key, value in attack.items() if key not in ("vary", "draw")}
        for values in _combinations(name, attack.get("vary"), attack.get("draw")):
            label = ", ".join(f"{option.rpartition('.')[2]}={_short(value)}" for option, value in values.items())
            found[f"{name}{BEHIND}{label}"] = _with(own, values)
    return found


def origin(name: str) -> str:
    """The name of the attack that a variant was made of."""
    return name.partition(BEHIND)[0]


def _combinations(name: str, vary: Any, draw: Any) -> list[dict[str, Any]]:
    if not isinstance(vary, Mapping) or not vary:
        raise refusal("expected a list of values for each option, e.g. {epsilon: [0.1, 0.5]}", f"{name}.vary")
    for option, values in vary.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise refusal(f"expected a list of values; found {values}", f"{name}.vary.{option}")
        if len({_short(value) for value in values}) < len(values):
            raise refusal("must name each value once", f"{name}.vary.{option}")
    every = [dict(zip(vary, values, strict=True)) for values in product(*vary.values())]
    if draw is None:
        return every
    if isinstance(draw, bool) or not isinstance(draw, int) or not 1 <= draw <= len(every):
        raise refusal(
            f"expected a number from 1 to {len(every)}, the number of combinations; found {draw}", f"{name}.draw"
        )
    chosen = generator(0, "variants", name).choice(len(every), draw, replace=False)
    return [every[index] for index in sorted(chosen.tolist())]


def _with(attack: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The attack with some of its options, by dotted path, put in."""
    changed = dict(attack)
    for option, value in values.items():
        head, _, rest = option.partition(".")
        inner = changed.get(head)
        changed[head] = _with(inner if isinstance(inner, Mapping) else {}, {rest: value}) if rest else value
    return changed


def _short(value: Any) -> str:
    """A value as it is written in a label."""
    return value if isinstance(value, str) else json.dumps(value, default=str).replace('"', "")
