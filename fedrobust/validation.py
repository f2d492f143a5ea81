"""What pydantic finds wrong with options, as problems: with the dotted path, what was found, and what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError

from fedrobust.errors import Origin, Problem

_TYPES = {
    "bool_type": "true or false",
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "string_type": "a text",
}
_LISTS = (list, tuple)
KEY = "[key]"
"""What pydantic adds to the keys of an error that is about a key itself."""
_SHOWN = (str, int, float, complex, bytes, type(None), Mapping, *_LISTS)


def problems_of(error: ValidationError, values: Any, origin: Callable[..., Origin]) -> list[Problem]:
    """Return the problems of options; if a value fits none of several types, one problem lists what each of them
    expected.

    values: the options that were checked, mappings and lists, or objects made of them.
    origin: called with the keys of a value; returns where the value comes from.
    """
    expected: dict[Problem, list[str]] = {}
    items = list(map(dict[str, Any], error.errors()))
    for item in items:
        below = (each["loc"][: len(item["loc"])] for each in items if len(each["loc"]) > len(item["loc"]))
        if item["type"] == "too_short" and item["loc"] in below:
            continue  # a second error about a list whose entries are wrong
        keys, node = _located(item, values)
        problem, text = _reason(item, node)
        problem = replace(problem, path=dotted(keys), origins=(origin(*keys),))
        expected.setdefault(problem, []).extend([text] if text else [])
    return [
        replace(problem, message=f"expected {' or '.join(dict.fromkeys(texts))}") if texts else problem
        for problem, texts in expected.items()
    ]


def dotted(keys: Iterable[str | int]) -> str:
    """Return keys as a dotted path."""
    return ".".join(map(str, keys))


def plain(node: Any) -> Any:
    """Return a tree from a YAML file without ruamel's own types, which strict validation would refuse."""
    if isinstance(node, Mapping):
        return {key: plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [plain(value) for value in node]
    for each in (bool, int, float, str):
        if isinstance(node, each):
            return each(node)
    return node


def has(node: Any, key: str | int) -> bool:
    """Return whether a mapping or list has this key."""
    return key in node if isinstance(node, Mapping) else isinstance(node, _LISTS) and key in range(len(node))


def kind(value: Any) -> str:
    """Return what messages call this kind of value."""
    if isinstance(value, Mapping):
        return "mapping"
    if isinstance(value, _LISTS):
        return "list"
    return {str: "text", bool: "truth value", type(None): "null"}.get(type(value), "number")


def shown(value: Any) -> str:
    """Return a value in the form in which problems quote it."""
    if isinstance(value, BaseModel) or not isinstance(value, _SHOWN):
        name = type(value).__name__
        return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
    if isinstance(value, (Mapping, *_LISTS)):
        return f"a {kind(value)}"
    try:
        return short(repr(plain(value)))
    except ValueError:  # a whole number of thousands of digits
        return "a number that is too large"


def short(text: str) -> str:
    """Return a text as messages quote it: its first 100 characters."""
    return text if len(text) <= 100 else f"{text[:99]}…"


def _located(error: Mapping[str, Any], values: Any) -> tuple[list[str | int], Any]:
    """Return the keys of the value that a pydantic error is about, and the value found there."""
    keys, node = list[str | int](), values
    entered = False
    for part in error["loc"]:
        if entered and isinstance(node, Mapping) and node.get("name") == part:
            entered = False  # the tag of a union, even if the class has a field of that name
        elif has(node, part):
            node, entered = node[part], True
            keys.append(part)
        elif error["type"] == "missing" and part == error["loc"][-1]:
            keys.append(part)  # parts that the values do not have are tags of unions
    raised: Problem = error.get("ctx", {}).get("problem", Problem())
    if raised.path and not isinstance(node, str):  # `rule: krum` is short for `rule: {name: krum}`
        for part in raised.path.split("."):
            key = int(part) if part.isdecimal() else part
            node = _at(node, key)
            keys.append(key)
    return keys, node


def _at(node: Any, key: str | int) -> Any:
    """Return the value under `key` of a mapping, a list or an object of options; None if there is none."""
    if isinstance(node, BaseModel):
        return getattr(node, key, None) if key in type(node).model_fields else None
    return node[key] if has(node, key) else None


def _reason(error: Mapping[str, Any], node: Any) -> tuple[Problem, str]:
    """Return the problem, and what was expected if there is nothing else to say."""
    if error["type"] == "refused":
        raised: Problem = error["ctx"]["problem"]
        scalar = node is not None and not isinstance(node, (Mapping, BaseModel, *_LISTS))
        found = shown(node) if raised.found is None and scalar else raised.found
        return replace(raised, message=_line(raised.message), found=found), ""
    if error["loc"][-1:] == (KEY,):
        return Problem("a name must be a text; put it in quotes", found=shown(error["loc"][-2])), ""
    if error["type"] == "missing":
        return Problem("missing, and it has no default"), ""
    problem = Problem(found=shown(node), hint=_meant(node))
    if error["type"] in ("value_error", "assertion_error"):  # from a validator of the user's own class
        return replace(problem, message=_line(str(error["ctx"]["error"]))), ""
    return problem, _line(_TYPES.get(error["type"], str(error["msg"]).removeprefix("Input should be ")))


def _line(text: str) -> str:
    return " ".join(text.split())


def _meant(found: Any) -> str:
    """Return what to write instead of a word that has a different meaning in YAML."""
    if not isinstance(found, str):
        return ""
    return "for nothing at all, write null" if found.lower() in ("none", "nil") else ""
