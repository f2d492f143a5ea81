"""What an option may be, in words, from the JSON schema that editors check experiment files with."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

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
"""A choice of more names than these is not listed: the page of the family does."""


def kind(schema: dict[str, Any]) -> str:
    """The allowed values of a JSON schema, e.g. "whole number ≥ 1, or null"."""
    if "$ref" in schema:
        return f":py:obj:`.{schema['$ref'].rpartition('/')[2]}`"
    if "const" in schema:
        return f"always ``{schema['const']}``" if "default" in schema else f"``{schema['const']}``"
    if "enum" in schema:
        return ", ".join(f"``{each}``" for each in schema["enum"])
    if "anyOf" in schema:
        names = next((each["enum"] for each in schema["anyOf"] if "enum" in each), None)
        if names and {"pattern": ":", "type": "string"} in schema["anyOf"]:
            few = ", ".join(f"``{each}``" for each in names) if len(names) <= MANY else "a name of the family"
            return f"{few}, or a class of your own"
        kinds = [kind(each) for each in schema["anyOf"]]
        return f"{', '.join(kinds[:-1])} or {kinds[-1]}"
    if schema.get("type") == "array":
        items = schema.get("items")
        return f"list of: {kind(items)}" if items else "list"
    bounds = [f"{sign} {schema[key]:g}" for key, sign in BOUNDS.items() if key in schema and schema[key] != LARGEST]
    return " ".join([TYPES.get(schema.get("type", ""), "anything"), ", ".join(bounds)]).strip()


def default(schema: dict[str, Any], required: bool) -> str:
    """The default, as an experiment file would have it; empty where it is empty, too."""
    if "default" not in schema:
        return "required" if required else ""
    value = schema["default"]
    if isinstance(value, dict):
        return f"default ``{value['name']}``" if "name" in value else ""
    if "const" in schema:
        return ""
    return f"default ``{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}``"


def options_of(option: type[Options], plain: Callable[[str], str]) -> list[str]:
    """The options of a class as a definition list; those that are its family's as they are there are not repeated."""
    family = next(
        (each for each in reversed(option.__mro__[1:]) if issubclass(each, Options) and each != Options), None
    )
    shared = family.model_json_schema()["properties"] if family and "name" in family.model_fields else {}
    made: list[str] = []
    whole = option.model_json_schema()
    for name, schema in whole.get("properties", {}).items():
        which = name == "name" and ("const" in schema or "description" not in schema)
        if which or shared.get(name) == schema:
            continue
        words = "; ".join(word for word in (kind(schema), default(schema, name in whole.get("required", ()))) if word)
        text = plain(" ".join(schema.get("description", "").split()))
        made += [f"``{name}``: {words}", *([f"   {text}"] if text else ["   \\ "]), ""]
    if shared.keys() - {"name"} and family:
        made += [f"Also the options of :py:obj:`.{family.__name__}`.", ""]
    return [".. rubric:: Options", "", *made] if made else []
