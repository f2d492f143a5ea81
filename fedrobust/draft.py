"""Options before validation: a file with overrides by dotted path, and where each value comes from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, MutableMapping, MutableSequence, Sequence, Set
from copy import deepcopy
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

import numpy as np
from pydantic import BaseModel, ValidationError
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from fedrobust.errors import ExperimentError, Origin, Problem
from fedrobust.users_code import looking_beside
from fedrobust.validation import dotted, has, kind, plain, problems_of, short, shown
from fedrobust.yaml_tree import DEEPEST, read_tree, read_value, unshared

Keys = tuple[str | int, ...]
Changes = Mapping[str, Any] | Iterable[str]
"""Changes of options: dotted path → value, or texts such as `"seed=3"`, whose values are read as YAML."""
ByPath = Mapping[str, Collection[str]]
"""The mappings whose keys are dotted paths: where, e.g. `settings.*` → words that may stand behind such a path."""
ModelT = TypeVar("ModelT", bound=BaseModel)
LONGEST_INDEX = 19
"""Digits: a longer number is a name, and no place in a list."""


@dataclass(frozen=True)
class Draft:
    """A file of options after reading and overrides, but before validation; it remembers where each value comes
    from."""

    path: Path
    tree: CommentedMap
    origin: Mapping[Keys, Origin]
    """The origins of values that were set later and do not come from the file itself, in the order in which they were
    set."""
    beside: tuple[Path, ...] = ()
    """Folders that may contain the user's classes that the file names."""

    @classmethod
    def read(
        cls,
        path: str | PathLike[str],
        overrides: Changes = (),
        beside: Sequence[Path] = (),
        by_path: ByPath = MappingProxyType({}),
    ) -> Draft:
        """Read the file at `path` and apply `overrides`.

        beside: further folders that may contain the user's classes, besides the file's own: those of files that name
            this one.
        by_path: see `overridden`.

        Raises `ExperimentError` if `path` is no path, or the file cannot be read.
        """
        if not isinstance(path, (str, PathLike)) or not isinstance(fspath(path), str) or not fspath(path):
            raise ExperimentError(Problem("expected the path of a file", found=shown(path)))
        file = Path(path)
        return cls(file, read_tree(file), {}, (file.parent, *beside)).overridden(overrides, by_path)

    @classmethod
    def of(cls, name: str, values: Mapping[str, Any]) -> Draft:
        """Return options that were made in Python; `name` stands for their file in messages.

        Raises `ExperimentError` if they are too many, or too deeply nested.
        """
        tree = _as_tree(values)
        return cls(Path(name), CommentedMap(unshared(tree, Origin(Path(name)))), {})

    def overridden(self, overrides: Changes, by_path: ByPath = MappingProxyType({})) -> Draft:
        """Return a copy with `overrides` applied; problems with these values will name the override.

        by_path: the mappings of this file whose keys are dotted paths themselves. Below them an override adds one such
            key, and no mapping, which would replace an option with all that the experiment file says below it.

        Raises `ExperimentError` if one cannot be read, or has a path that cannot be.
        """
        if isinstance(overrides, (str, bytes)) or not isinstance(overrides, Iterable):
            problem = Problem("expected a list of overrides or a mapping", "overrides", shown(overrides))
            raise ExperimentError(problem)
        tree, origin = deepcopy(self.tree), dict(self.origin)
        if isinstance(overrides, Mapping):
            for path, value in overrides.items():
                if not isinstance(path, str) or "" in path.split("."):
                    raise ExperimentError(Problem("expected a dotted path", found=repr(path)))
                origin[_set(tree, path, _as_tree(value, path), _origin_of(path), by_path)] = _origin_of(path)
        else:
            for text in overrides:
                if not isinstance(text, str):
                    raise ExperimentError(Problem("expected texts such as 'seed=3'", "overrides", shown(text)))
                origin[_override(tree, text, by_path)] = _origin_of(text)
        return replace(self, tree=tree, origin=origin)

    def changed(self, changes: Mapping[str, Any], origin: Origin | str) -> Draft:
        """Return a copy with `changes`, dotted path → value, applied; problems with these values will name `origin`."""
        origin = Origin(text=origin) if isinstance(origin, str) else origin
        tree = deepcopy(self.tree)
        keys = [_set(tree, path, value, origin) for path, value in changes.items()]
        before = {place: text for place, text in self.origin.items() if place not in keys}
        return Draft(self.path, tree, {**before, **dict.fromkeys(keys, origin)}, self.beside)

    def origin_of(self, *keys: str | int) -> Origin:
        """Return where the value at `keys` comes from: the override, or the file and the line of the deepest key that
        the file has."""
        for set_keys in reversed(list(self.origin)):
            if keys[: len(set_keys)] == set_keys:
                return self.origin[set_keys]
        if not _in_file(self.tree, keys):
            for set_keys in reversed(list(self.origin)):
                if set_keys[: len(keys)] == keys:  # it is there because something was set below it
                    return self.origin[set_keys]
        return Origin(self.path, _line_of(self.tree, keys))

    def entry(self, *keys: str | int) -> Origin:
        """Return where the value at `keys` comes from, with its dotted path: the origin for options that this value
        sets."""
        return replace(self.origin_of(*keys), path=dotted(keys))

    def checked(self, model: type[ModelT]) -> ModelT:
        """Validate the options as `model`, and return them. Raises `ExperimentError` as `load` does."""
        try:
            with looking_beside(self.beside):
                return model.model_validate(plain(self.tree))
        except ValidationError as error:
            raise ExperimentError(*problems_of(error, self.tree, self.origin_of)) from None


def _override(tree: CommentedMap, text: str, by_path: ByPath) -> Keys:
    """Set the value of one `path=value` in `tree`; return the path."""
    path, equals, value = text.partition("=")
    origin = _origin_of(text)
    if not equals or not path.strip() or "" in path.strip().split("."):
        raise ExperimentError(Problem("expected path=value, e.g. seed=3 or aggregation.rule=krum").at(origin))
    return _set(tree, path.strip(), read_value(value, origin), origin, by_path)


def _origin_of(override: str) -> Origin:
    return Origin(text=f"override '{short(override)}'")


def _set(tree: CommentedMap, path: str, value: Any, origin: Origin, by_path: ByPath = MappingProxyType({})) -> Keys:
    """Set a copy of `value` at the dotted `path` of `tree`; return the path."""
    value = unshared(value, origin)
    keys = _keys(tree, path, by_path)
    node: Any = tree
    for position, key in enumerate(keys[:-1]):
        child = _child(node, keys[: position + 1], origin)
        if child is None:
            child = CommentedSeq() if keys[position + 1] == 0 else CommentedMap()
            node[key] = child
        elif isinstance(child, str):  # `rule: krum` is short for `rule: {name: krum}`
            child = CommentedMap(name=child)
            node[key] = child
        if not isinstance(child, (MutableMapping, MutableSequence)):
            reason = f"is a {kind(child)}, it has no '{keys[position + 1]}'"
            raise ExperimentError(Problem(reason, dotted(keys[: position + 1])).at(origin))
        node = child
    last = keys[-1]
    if isinstance(node, MutableSequence) and last == len(node):
        node.append(value)
    else:
        _child(node, keys, origin)
        node[last] = value
    return tuple(keys)


def _keys(tree: CommentedMap, path: str, by_path: ByPath) -> list[str | int]:
    """Split a dotted path into keys; a key of the file that itself contains dots, as in `changes`, stays one key, and
    so does a new one in a mapping of `by_path`."""
    left, keys, node = path.split("."), list[str | int](), cast(Any, tree)
    while left:
        known = [n for n in range(len(left), 1, -1) if isinstance(node, Mapping) and ".".join(left[:n]) in node]
        length = known[0] if known else 1
        if not known and not has(node, left[0]) and (last := _last_words(by_path, keys)) is not None:
            length = len(left) - 1 if len(left) > 1 and left[-1] in last else len(left)
        key, left = ".".join(left[:length]), left[length:]
        place = key.isdecimal() and len(key) < LONGEST_INDEX and (not isinstance(node, Mapping) or int(key) in node)
        keys.append(int(key) if place else key)
        node = node[keys[-1]] if has(node, keys[-1]) else None
    return keys


def _last_words(by_path: ByPath, keys: Sequence[str | int]) -> Collection[str] | None:
    """Return the words that may stand behind a dotted path in the mapping at `keys`; None if it has other keys."""
    for pattern, last in by_path.items():
        parts = pattern.split(".")
        if len(parts) == len(keys) and all(part in ("*", key) for part, key in zip(parts, keys, strict=True)):
            return last
    return None


def _child(node: Any, keys: Sequence[str | int], origin: Origin) -> Any:
    """Return the value in `node` under the last of the keys."""
    *outer, key = keys
    if isinstance(node, MutableSequence):
        if not isinstance(key, int) or key >= len(node):
            reason = f"the list has {len(node)} entries, counted from 0"
            raise ExperimentError(Problem(reason, dotted(outer), found=short(f"'{key}'")).at(origin))
        return node[key]
    return node.get(key)


def _line_of(tree: CommentedMap, keys: Sequence[str | int]) -> int | None:
    """Return the line of the deepest key that the file has, counted from 1."""
    lines = _lines(tree, keys)
    return lines[-1] if lines else None


def _in_file(tree: CommentedMap, keys: Sequence[str | int]) -> bool:
    return len(_lines(tree, keys)) == len(keys)


def _lines(tree: CommentedMap, keys: Sequence[str | int]) -> list[int]:
    """Return the lines of the keys, counted from 1, as far as the file has them."""
    lines: list[int] = []
    node: Any = tree
    for key in keys:
        if not isinstance(node, (CommentedMap, CommentedSeq)) or not has(node, key):
            break
        try:
            lines.append((node.lc.key(key) if isinstance(node, CommentedMap) else node.lc.item(key))[0] + 1)
        except (KeyError, AttributeError, TypeError):  # set by an override: no line
            break
        node = node[key]
    return lines


def _as_tree(value: Any, path: str = "", depth: int = 0) -> Any:
    """Return a value made in Python as it would be in a file: objects of options as mappings, paths as texts.

    path: its dotted path.
    depth: how many mappings and lists it is in.

    Raises `ExperimentError` for a set, whose order differs from process to process, and if it is too deep.
    """
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", serialize_as_any=True)
    if isinstance(value, (Mapping, list, tuple, range)):
        if depth == DEEPEST:
            raise ExperimentError(Problem("too deeply nested", short(path)))
        if isinstance(value, Mapping):
            return {
                key: _as_tree(each, f"{path}.{key}" if path else str(key), depth + 1) for key, each in value.items()
            }
        return [_as_tree(each, f"{path}.{position}", depth + 1) for position, each in enumerate(value)]
    if isinstance(value, Set):
        raise ExperimentError(Problem("expected a list, because a set has no order", path, shown(value)))
    if isinstance(value, np.ndarray) and value.ndim:
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return fspath(value) if isinstance(value, PathLike) else value
