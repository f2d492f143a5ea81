"""The search space of a sweep: templates of option values, with a range or a choice wherever a value is searched.

A template is any YAML value. A mapping with one of these keys stands for a searched value, at any depth:

- `{float: [low, high]}`, with `step` for a grid of values, with `log: true` uniform on a logarithmic scale;
- `{log: [low, high]}`, short for that;
- `{int: [low, high]}`, with `step` or `log: true` as well;
- `{choice: [a, b]}` of plain values, or `{choice: {name: template}}` of whole objects.

Ranges include both ends. A value nested in a choice is searched only if that choice is taken. The name of a searched
value is its dotted path, with the names of the choices that lead to it, e.g. `aggregation.clipping.rule.tau`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from typing import TYPE_CHECKING, Any

from fedrobust.errors import Problem
from fedrobust.options import nearest
from fedrobust.texts import visible

if TYPE_CHECKING:
    import optuna

Template = Any
"""Plain values, mappings and lists, with a `Number` or a `Choice` for each searched value."""
Values = dict[str, Any]
"""Name of a searched value → chosen value, or dotted path of an option → value."""

LARGEST = 2**53
"""Largest whole number of a range, and largest number of its steps: larger ones would not be exact in samplers."""
MOST_CHOICES = 1000
"""Most values of a choice; each is tried when a file is read."""
KINDS = ("float", "log", "int", "choice")
"""The words by which templates begin."""


class TemplateError(ValueError):
    """A template that is wrong: the reason, and the keys of the wrong part."""

    def __init__(self, keys: tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.keys = keys


@dataclass(frozen=True)
class Number:
    """A number that is searched between two ends."""

    name: str
    low: int | float
    high: int | float
    step: int | float | None = None
    """Distance of neighbouring values; a whole number of steps lies between the ends. None: all values are allowed."""
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is an integer."""
        return isinstance(self.low, int)

    @property
    def size(self) -> int | None:
        """Number of possible values; None if it is not limited."""
        if self.step is None:
            return None
        return int((_exact(self.high) - _exact(self.low)) / _exact(self.step)) + 1

    def nth(self, index: int) -> int | float:
        """Return the value at `index` of a range with a step, without accumulated rounding errors."""
        exact = _exact(self.low) + index * _exact(self.step or 1)
        return int(exact) if self.whole else float(exact)

    def tidied(self, value: int | float) -> int | float:
        """Return a value of Optuna's without rounding errors: 0.6 for 0.6000000000000001."""
        if self.step is None or self.whole:
            return value
        return self.nth(round((value - self.low) / self.step))

    def at(self, share: float) -> int | float:
        """Return the value at the fraction `share`, in [0, 1), of the range, on the scale of the range."""
        if self.size is not None and not self.log:
            return self.nth(int(share * self.size))
        low, high = float(self.low), float(self.high) + self.whole  # each integer gets an equal part of the scale
        if self.log and math.isinf(high / low):
            value = math.exp((1 - share) * math.log(low) + share * math.log(high))
        else:
            value = low * (high / low) ** share if self.log else low + share * (high - low)
        return min(max(int(value), int(self.low)), int(self.high)) if self.whole else min(max(value, low), high)

    @property
    def ends(self) -> list[Any]:
        """The values to try if there are too many to try all."""
        return [self.low, self.high]

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """Return the range as an Optuna distribution."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), self.log, int(self.step or 1))
        return FloatDistribution(self.low, self.high, self.log, self.step)


@dataclass(frozen=True)
class Choice:
    """One of several values, or one of several named objects."""

    name: str
    templates: tuple[tuple[Any, Template], ...]
    """The values that Optuna chooses from, and the template of each."""

    @property
    def ends(self) -> list[Any]:
        """All values that can be chosen."""
        return [label for label, _ in self.templates]

    @property
    def size(self) -> int:
        """How many values can be chosen."""
        return len(self.templates)

    def of(self, chosen: Any) -> Template:
        """Return the template of the value `chosen`."""
        return next(template for label, template in self.templates if label == chosen)

    def tidied(self, value: Any) -> Any:
        """Return the value itself."""
        return value

    def at(self, share: float) -> Any:
        """Return the value at the fraction `share`, in [0, 1), of the list."""
        return self.templates[int(share * len(self.templates))][0]

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """Return the choice as an Optuna distribution."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.ends)


Searched = Number | Choice


@dataclass(frozen=True)
class Space:
    """The templates of a sweep, by dotted path of the option that each is for."""

    templates: Mapping[str, Template]

    @property
    def searched(self) -> dict[str, Searched]:
        """Every searched value by name, including those that are searched only if another value is chosen."""
        return {found.name: found for found in _searched(dict(self.templates))}

    @property
    def distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        """Every searched value by name, as an Optuna distribution."""
        return {name: found.distribution() for name, found in self.searched.items()}

    def filled(self, choose: Callable[[Searched], Any]) -> Values:
        """Return values of the options by dotted path; `choose` is called for each relevant searched value, in
        order."""
        return {path: _filled(template, choose) for path, template in self.templates.items()}

    def suggest(self, trial: optuna.trial.BaseTrial) -> Values:
        """Return values of the options by dotted path, as suggested for a trial."""
        from optuna.distributions import FloatDistribution, IntDistribution

        def choose(searched: Searched) -> Any:
            given = searched.distribution()
            if isinstance(given, FloatDistribution):
                return trial.suggest_float(searched.name, given.low, given.high, step=given.step, log=given.log)
            if isinstance(given, IntDistribution):
                return trial.suggest_int(searched.name, given.low, given.high, step=given.step, log=given.log)
            assert isinstance(searched, Choice)
            return trial.suggest_categorical(searched.name, searched.ends)

        return self.filled(choose)

    def chosen(self, params: Mapping[str, Any]) -> Values:
        """Return values of the options by dotted path; `params`: name → chosen value."""
        return self.filled(lambda searched: params[searched.name])

    def at(self, shares: Mapping[str, float]) -> Values:
        """Return the chosen values, by name, at a point of the unit cube; `shares`: name → coordinate in [0, 1)."""
        found: Values = {}

        def choose(searched: Searched) -> Any:
            found[searched.name] = searched.at(shares[searched.name])
            return found[searched.name]

        self.filled(choose)
        return found

    @property
    def middle(self) -> Values:
        """The first of every choice and the middle of every range, by name, including values that are not relevant."""
        return {
            name: each.ends[0] if isinstance(each, Choice) else each.at(0.5) for name, each in self.searched.items()
        }

    def variants(self) -> Iterator[tuple[str, Values]]:
        """Yield the middle, with each choice and both ends of each range tried once: the varied name, and all values by
        name."""
        middle = self.middle
        for name, forced in _variants(dict(self.templates), {}):
            yield name, {**middle, **forced}

    def endless(self) -> list[str]:
        """Return the names of continuous parameters, for which no grid is possible."""
        return [name for name, each in self.searched.items() if each.size is None]

    @property
    def size(self) -> int:
        """The number of points of a grid of all values; values in choices not taken do not count. No value may be
        continuous."""
        return _size(dict(self.templates))

    def points(self) -> list[Values]:
        """Return all points of that grid: the chosen values, by name."""
        return _points(dict(self.templates))


def parsed(path: str, template: Any) -> Template:
    """Check and return the template of the option at `path`. Raises `TemplateError`."""
    return _parsed(template, path, (path,))


def _parsed(value: Any, name: str, keys: tuple[str | int, ...]) -> Template:
    if isinstance(value, Mapping):
        if kind := _kind(value, keys):
            return _choice(value, name, keys) if kind == "choice" else _number(value, kind, name, keys)
        return {key: _parsed(each, f"{name}.{key}", (*keys, key)) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_parsed(each, f"{name}.{index}", (*keys, index)) for index, each in enumerate(value)]
    return value


def _kind(value: Mapping[str, Any], keys: tuple[str | int, ...]) -> str | None:
    """Return which kind of searched value a mapping stands for, if any."""
    kinds = [kind for kind in KINDS if kind in value and kind != "log"]
    if not kinds:
        if "log" not in value or isinstance(value["log"], bool):
            return None
        kinds = ["log"]
    if len(kinds) > 1:
        raise TemplateError(keys, f"expected one of {', '.join(KINDS)}; found {' and '.join(kinds)}")
    _only(value, keys, kinds[0], *(("step", "log") if kinds[0] in ("float", "int") else ()))
    return kinds[0]


def _only(value: Mapping[str, Any], keys: tuple[str | int, ...], *allowed: str) -> None:
    """Raise `TemplateError` if the mapping has any other key."""
    for key in value:
        if key not in allowed:
            raise TemplateError((*keys, key), str(Problem("unknown key", "", "", allowed, nearest(str(key), allowed))))


def _number(value: Mapping[str, Any], kind: str, name: str, keys: tuple[str | int, ...]) -> Number:
    ends, step, log = value[kind], value.get("step"), value.get("log", False) if kind != "log" else True
    whole, at = kind == "int", (*keys, kind)
    expected = "whole numbers" if whole else "numbers"
    if not isinstance(ends, list | tuple) or len(ends) != 2 or not all(_is_number(end, whole) for end in ends):
        raise TemplateError(at, f"expected the two ends of a range, {expected}, e.g. [2, 16]; found {brief(ends)}")
    low, high = (int(end) if whole else float(end) for end in ends)
    if not low < high:
        raise TemplateError(at, f"the first end must be below the second; found {brief(ends)}")
    if math.isinf(high - low):
        raise TemplateError(at, f"the ends are too far apart; found {brief(ends)}")
    if whole and max(-low, high) > LARGEST:
        raise TemplateError(at, f"expected whole numbers up to {LARGEST}; found {brief(ends)}")
    if not isinstance(log, bool):
        raise TemplateError((*keys, "log"), f"expected true or false; found {brief(log)}")
    if log and step is not None:
        raise TemplateError((*keys, "step"), "a logarithmic range has no step; leave it out")
    if log and low <= 0:
        raise TemplateError(at, f"a logarithmic range must begin above 0; found {brief(ends)}")
    if step is None:
        return Number(name, low, high, 1 if whole and not log else None, log)
    if not _is_number(step, whole) or step <= 0:
        raise TemplateError((*keys, "step"), f"expected a positive {expected.removesuffix('s')}; found {brief(step)}")
    if (_exact(high) - _exact(low)) / _exact(step) > LARGEST:
        raise TemplateError((*keys, "step"), f"there are too many steps from {low} to {high}; found {step}")
    if (_exact(high) - _exact(low)) % _exact(step):
        raise TemplateError((*keys, "step"), f"from {low} to {high} must be a whole number of steps; found {step}")
    return Number(name, low, high, int(step) if whole else float(step))


def _choice(value: Mapping[str, Any], name: str, keys: tuple[str | int, ...]) -> Choice:
    given, at = value["choice"], (*keys, "choice")
    if not isinstance(given, Mapping | list | tuple) or len(given) < 2:
        raise TemplateError(at, f"expected two values or more, or a mapping of names to objects; found {brief(given)}")
    if len(given) > MOST_CHOICES:
        raise TemplateError(at, f"expected {MOST_CHOICES} values at most, or a range; found {len(given)}")
    if isinstance(given, Mapping):
        for label in given:
            if not isinstance(label, str) or not label or "." in label or visible(label) != label:
                raise TemplateError(at, f"expected names without dots and control characters; found {brief(label)}")
        return Choice(name, tuple((k, _parsed(each, f"{name}.{k}", (*at, k))) for k, each in given.items()))
    for index, each in enumerate(given):
        if isinstance(each, Mapping | list | tuple):
            raise TemplateError((*at, index), "an object needs a name here: choice: {name: object, …}")
        if not (each is None or isinstance(each, bool | int | float | str)) or each != each:
            raise TemplateError((*at, index), f"expected a number, a text, true, false or null; found {brief(each)}")
        if each in given[:index]:
            raise TemplateError((*at, index), f"must name each value once; found {brief(each)} again")
    return Choice(name, tuple((each, each) for each in given))


def _is_number(value: Any, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return False
    return abs(value) <= sys.float_info.max  # math.isfinite fails for larger whole numbers


def brief(value: Any) -> str:
    """Return a value that was found, shortened to fit in a line."""
    try:
        text = visible(value)
    except ValueError:  # an integer with thousands of digits
        return "a number that is too large"
    return text if len(text) <= 100 else f"{text[:99]}…"


def _exact(value: float) -> Decimal:
    """Return a number exactly as it was written."""
    return Decimal(str(value))


def _children(template: Template) -> list[Template]:
    if isinstance(template, dict):
        return list(template.values())
    if isinstance(template, list):
        return template
    return [each for _, each in template.templates] if isinstance(template, Choice) else []


def _searched(template: Template) -> Iterator[Searched]:
    if isinstance(template, Number | Choice):
        yield template
    for child in _children(template):
        yield from _searched(child)


def _filled(template: Template, choose: Callable[[Searched], Any]) -> Any:
    if isinstance(template, dict):
        return {key: _filled(each, choose) for key, each in template.items()}
    if isinstance(template, list):
        return [_filled(each, choose) for each in template]
    if isinstance(template, Number):
        return template.tidied(choose(template))
    if isinstance(template, Choice):
        return _filled(template.of(choose(template)), choose)
    return template


def _variants(template: Template, forced: Values) -> Iterator[tuple[str, Values]]:
    if isinstance(template, Number):
        for end in template.ends:
            yield template.name, {**forced, template.name: end}
    elif isinstance(template, Choice):
        for label, each in template.templates:
            chosen = {**forced, template.name: label}
            yield template.name, chosen
            yield from _variants(each, chosen)
    else:
        for child in _children(template):
            yield from _variants(child, forced)


def _size(template: Template) -> int:
    if isinstance(template, Number):
        return template.size or 1
    sizes = [_size(child) for child in _children(template)]
    return sum(sizes) if isinstance(template, Choice) else math.prod(sizes)


def _points(template: Template) -> list[Values]:
    if isinstance(template, Number):
        return [{template.name: template.nth(index)} for index in range(template.size or 1)]
    if isinstance(template, Choice):
        return [{template.name: label, **rest} for label, each in template.templates for rest in _points(each)]
    return [
        {name: value for part in parts for name, value in part.items()}
        for parts in product(*(_points(child) for child in _children(template)))
    ]
