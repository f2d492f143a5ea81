"""YAML as a tree of values with line numbers: read with limits, and no node occurs twice in the tree."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import CollectionNode, SequenceNode
from ruamel.yaml.tokens import AnchorToken, CommentToken, StreamEndToken

from fedrobust.errors import ExperimentError, Origin, Problem
from fedrobust.validation import kind

LARGEST = 200_000
"""Maximum size of a file of options, in bytes; ruamel needs some ten seconds for so many."""
MOST = 100_000
"""Maximum number of values in a tree after aliases are expanded; a few lines of nested aliases could mean gigabytes."""
DEEPEST = 100
"""Maximum depth of nested mappings and lists."""

_UNREADABLE = (YAMLError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)
"""The errors that ruamel raises on input that it cannot read."""


def read_tree(path: Path) -> CommentedMap:
    """Read the mapping in a YAML file. Aliases and merged keys are expanded, so that no node occurs twice.

    Raises `ExperimentError`, with file and line if known, if the file cannot be read or is too large.
    """
    text, origin = _text(path), Origin(path)
    _refuse_deep(text, origin)
    try:
        if "*" in text:  # ruamel turns an alias that contains itself into null
            _refuse_large(YAML().compose(text), origin)
        tree = YAML().load(text)
    except MarkedYAMLError as error:
        origin = Origin(path, error.problem_mark.line + 1 if error.problem_mark else 1)
        raise _refused(f"not valid YAML: {error.problem or error.context}", origin) from None
    except _UNREADABLE as error:
        raise _refused(f"not valid YAML: {' '.join(str(error).split())[:200]}", origin) from None
    if tree is None:
        return CommentedMap()
    if not isinstance(tree, CommentedMap):
        raise ExperimentError(Problem("expected a mapping of options at the top", found=f"a {kind(tree)}").at(origin))
    whole: CommentedMap = unshared(tree, origin)
    return whole


def has_anchors(path: Path) -> bool:
    """Return whether a readable file has an anchor, which an alias may repeat."""
    return any(isinstance(token, AnchorToken) for token in YAML().scan(_text(path)))


def read_value(text: str, origin: Origin) -> Any:
    """Read one value in YAML, such as that of an override.

    text: the YAML text.

    Raises `ExperimentError`, whose problem is at `origin`.
    """
    if len(text) > LARGEST:
        raise _refused(f"the value is longer than {LARGEST:,} characters", origin)
    _refuse_deep(text, origin)
    try:
        ends = [token.end_mark.index for token in YAML(typ="safe", pure=True).scan(text) if _is_said(token)]
        if "*" in text:
            _refuse_large(YAML(typ="safe", pure=True).compose(text), origin)
        value = YAML(typ="safe").load(text)
    except _UNREADABLE:
        raise _refused("the value is not valid YAML", origin) from None
    if "#" in text[max(ends, default=0) :]:
        raise _refused(f"'#' begins a comment in YAML; put the value in quotes: \"{text.strip()}\"", origin)
    return unshared(value, origin)


def unshared(value: Any, origin: Origin) -> Any:
    """Return a copy of mappings, lists and plain values in which no mapping or list occurs twice.

    Line numbers of ruamel's mappings and lists are kept; merged keys (`<<`) become keys of the mapping itself. Raises
    `ExperimentError`, whose problem is at `origin`, if the copy would have more than `MOST` values, or be too deep.
    """
    _refuse_large(value, origin)
    return _copied(value)


def _text(path: Path) -> str:
    origin = Origin(path)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)  # limited, since a device file may never end
        if len(data) > LARGEST:
            raise _refused(f"longer than {LARGEST:,} bytes; no file of options is", origin)
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise _refused("no such file", origin) from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise _refused(f"cannot be read as text: {error}", origin) from None


def _is_said(token: Any) -> bool:
    return not isinstance(token, (StreamEndToken, CommentToken))


def _refused(message: str, origin: Origin) -> ExperimentError:
    return ExperimentError(Problem(" ".join(message.split())).at(origin))


def _refuse_deep(text: str, origin: Origin) -> None:
    """Raise `ExperimentError` for deeply nested brackets, for which ruamel would need minutes."""
    depth = 0
    for sign in re.findall(r"[\[\]{}]", text):
        depth = max(0, depth + (1 if sign in "[{" else -1))
        if depth > DEEPEST:
            raise _refused("nested too deeply", origin)


def _refuse_large(value: Any, origin: Origin) -> None:
    """Raise `ExperimentError` for values, or YAML nodes, that are too many or too deep."""
    try:
        if _count(value, {}, 0) > MOST:
            raise _refused(f"has more than {MOST:,} values, with its aliases written out", origin)
    except RecursionError:
        raise _refused("nested too deeply, or an alias that contains itself", origin) from None


def _count(value: Any, known: dict[int, int], depth: int) -> int:
    """Return the number of values with all aliases expanded; each node is visited once, so this is quick."""
    if depth > DEEPEST:
        raise RecursionError
    inside: Iterable[Any] = ()
    if isinstance(value, Mapping):
        inside = value.values()
    elif isinstance(value, (list, tuple, set)):
        inside = value
    elif isinstance(value, CollectionNode):
        inside = value.value if isinstance(value, SequenceNode) else [node for _, node in value.value]
    else:
        return 1
    if id(value) not in known:
        known[id(value)] = 1 + sum(_count(each, known, depth + 1) for each in inside)
    return known[id(value)]


def _copied(value: Any) -> Any:
    if isinstance(value, CommentedMap):
        copy = CommentedMap((key, _copied(each)) for key, each in value.items())
        for merged in reversed(list(value.merge or ())):
            copy.lc.data = (copy.lc.data or {}) | (merged.lc.data or {})
        copy.lc.data = (copy.lc.data or {}) | (value.lc.data or {})
        return copy
    if isinstance(value, CommentedSeq):
        items = CommentedSeq(_copied(each) for each in value)
        items.lc.data = value.lc.data
        return items
    if isinstance(value, Mapping):
        return {key: _copied(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(each) for each in value]
    return value
