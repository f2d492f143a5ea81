"""What the options of a class may be, in words, from the JSON schema that editors check experiment files with.

>>> class Window(Options):
...     size: int = 3
>>> [(each.name, each.words) for each in own_options(Window)]
[('size', 'whole number; default `3`')]
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from fedrobust.options import LARGEST, Options

TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
MANY = 12
"""A choice of more names than these is not listed: the list of the family does it."""


class OptionText(NamedTuple):
    """One option of a class. Values and names of classes are between backticks, as in docstrings."""

    name: str
    kind: str
    """The allowed values, e.g. "whole number ≥ 1 or `null`"."""
    default: str
    """"default `1`", "required", or empty if an experiment file would have an empty value."""
    description: str

    @property
    def words(self) -> str:
        """Return the allowed values and the default."""
        return "; ".join(filter(None, (self.kind, self.default)))


def own_options(option: type[Options]) -> list[OptionText]:
    """Return the options of a class, without its name and without those that it has as its family has them."""
    family = family_of(option)
    shared = family.model_json_schema()["properties"] if family else {}
    return [each for each, schema in _options(option) if shared.get(each.name) != schema]


def shared_options(option: type[Options]) -> list[OptionText]:
    """Return the options that all members of a class's family have, without the name."""
    family = family_of(option)
    return [each for each, _ in _options(family) if each.name != "name"] if family else []


def family_of(option: type[Options]) -> type[Options] | None:
    """Return the class that `option` and its kin derive from, e.g. `Attack`; None for a class without a family."""
    bases = [each for each in reversed(option.__mro__[1:]) if issubclass(each, Options) and each != Options]
    return next((each for each in bases[:1] if "name" in each.model_fields), None)


def _options(option: type[Options]) -> list[tuple[OptionText, dict[str, Any]]]:
    whole = option.model_json_schema()
    required = whole.get("required", ())
    found = []
    for name, schema in whole.get("properties", {}).items():
        if name == "name" and ("const" in schema or "description" not in schema):
            continue
        text = " ".join(schema.get("description", "").split())
        found.append((OptionText(name, kind(schema), _default(schema, name in required), text), schema))
    return found


def kind(schema: dict[str, Any]) -> str:
    """Return the allowed values of a JSON schema, e.g. "whole number ≥ 1 or null"."""
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    if "const" in schema:
        return f"always `{schema['const']}`" if "default" in schema else f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if "anyOf" in schema:
        names = next((each["enum"] for each in schema["anyOf"] if "enum" in each), None)
        if names and {"pattern": ":", "type": "string"} in schema["anyOf"]:
            few = ", ".join(f"`{each}`" for each in names) if len(names) <= MANY else "a name of the family"
            return f"{few}, or a class of your own"
        kinds = [kind(each) for each in schema["anyOf"]]
        return f"{', '.join(kinds[:-1])} or {kinds[-1]}"
    if schema.get("type") == "array":
        items = schema.get("items")
        return f"list of: {kind(items)}" if items else "list"
    bounds = [f"{sign} {schema[key]:g}" for key, sign in BOUNDS.items() if key in schema and schema[key] != LARGEST]
    return " ".join([TYPES.get(schema.get("type", ""), "anything"), ", ".join(bounds)]).strip()


def _default(schema: dict[str, Any], required: bool) -> str:
    if "default" not in schema:
        return "required" if required else ""
    value = schema["default"]
    if isinstance(value, dict):
        return f"default `{value['name']}`" if "name" in value else ""
    if "const" in schema:
        return ""
    return f"default `{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}`"
