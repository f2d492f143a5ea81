"""Reading experiment files: YAML with overrides by dotted path, and errors that name path, line and remedy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, MutableSequence, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from fedrobust.errors import ExperimentError, Origin, Problem
from fedrobust.users_code import looking_beside
from fedrobust.yaml_tree import has_anchors, kind, read_tree, read_value, unshared

if TYPE_CHECKING:
    from fedrobust.experiment import Experiment

Keys = tuple[str | int, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)


def load(path: str | Path, overrides: Iterable[str] = ()) -> Experiment:
    """Read an experiment from a YAML file.

    path: the file.
    overrides: texts such as `"aggregation.rule=krum"` or `"attacks.0.scale=4"`; the value is read as YAML.

    Raises `ExperimentError` with a `Problem` for each error: its position (file, line, dotted path), what was found,
    what is allowed, and the nearest correct spelling.
    """
    from fedrobust.experiment import Experiment

    return Draft.read(path, overrides).checked(Experiment)


def load_recorded(path: Path) -> Experiment:
    """Read the experiment that `dump` wrote into a run's folder. No code from that folder is loaded.

    Raises `ExperimentError` as `load` does.
    """
    from fedrobust.experiment import Experiment

    return replace(Draft.read(path), beside=()).checked(Experiment)


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
    def read(cls, path: str | Path, overrides: Iterable[str] = (), beside: Sequence[Path] = ()) -> Draft:
        """Read the file at `path` and apply `overrides`, texts such as `"seed=3"`.

        beside: further folders that may contain the user's classes, besides the file's own: those of files that name
            this one.

        Raises `ExperimentError` if the file cannot be read.
        """
        tree, texts = read_tree(Path(path)), list(overrides)
        origin = {_override(tree, text): _origin_of(text) for text in texts}
        return cls(Path(path), tree, origin, (Path(path).parent, *beside))

    def changed(self, changes: Mapping[str, Any], origin: Origin | str) -> Draft:
        """Return a copy with `changes`, dotted path → value, applied; problems with these values will name `origin`."""
        origin = Origin(text=origin) if isinstance(origin, str) else origin
        tree = deepcopy(self.tree)
        keys = [_set(tree, dotted, value, origin) for dotted, value in changes.items()]
        before = {place: text for place, text in self.origin.items() if place not in keys}
        return Draft(self.path, tree, {**before, **dict.fromkeys(keys, origin)}, self.beside)

    def origin_of(self, *keys: str | int) -> Origin:
        """Return where the value at `keys` comes from: the override, or the file and the line of the deepest key that
        the file has."""
        for set_keys in reversed(list(self.origin)):
            if keys[: len(set_keys)] == set_keys:
                return self.origin[set_keys]
        return Origin(self.path, _line_of(self.tree, keys))

    def entry(self, *keys: str | int) -> Origin:
        """Return where the value at `keys` comes from, with its dotted path: the origin for options that this value
        sets."""
        return replace(self.origin_of(*keys), path=_dotted(keys))

    def checked(self, model: type[ModelT]) -> ModelT:
        """Validate the options as `model`, and return them. Raises `ExperimentError` as `load` does."""
        try:
            with looking_beside(self.beside):
                return model.model_validate(_plain(self.tree))
        except ValidationError as error:
            raise ExperimentError(*self._problems(error)) from None

    def _problems(self, error: ValidationError) -> list[Problem]:
        """Collect the problems; if a value fits none of several types, one problem lists what each of them expected."""
        expected: dict[Problem, list[str]] = {}
        items = list(map(dict[str, Any], error.errors()))
        for item in items:
            if item["type"] == "too_short" and any(item["loc"] == each["loc"][:-1] for each in items):
                continue  # a second error about a list whose entries are wrong
            keys, node = self._located(item)
            problem, text = _reason(item, node)
            problem = replace(problem, path=_dotted(keys), origins=(self.origin_of(*keys),))
            expected.setdefault(problem, []).extend([text] if text else [])
        return [
            replace(problem, message=f"expected {' or '.join(dict.fromkeys(texts))}") if texts else problem
            for problem, texts in expected.items()
        ]

    def _located(self, error: Mapping[str, Any]) -> tuple[list[str | int], Any]:
        """Return the keys of the value that a pydantic error is about, and the value found there."""
        keys, node = list[str | int](), cast(Any, self.tree)
        for part in error["loc"]:
            if _has(node, part):
                node = node[part]
                keys.append(part)
            elif error["type"] == "missing" and part == error["loc"][-1]:
                keys.append(part)  # parts that the file does not have are tags of unions
        raised: Problem = error.get("ctx", {}).get("problem", Problem())
        if raised.path and not isinstance(node, str):  # `rule: krum` is short for `rule: {name: krum}`
            for part in raised.path.split("."):
                key = int(part) if part.isdecimal() else part
                node = node[key] if _has(node, key) else None
                keys.append(key)
        return keys, node


def read_options(path: Path) -> dict[str, Any]:
    """Read the values of a YAML file that `dump` wrote, without validation; classes that it names are not imported.

    Raises `ExperimentError` as `load` does, and for anchors, because a few lines of them can expand to gigabytes.
    """
    tree = read_tree(path)
    if has_anchors(path):
        raise ExperimentError(Problem("has an anchor, which no recorded experiment has").at(Origin(path)))
    found: dict[str, Any] = _plain(tree)
    return found


def dump(experiment: Experiment) -> str:
    """Return the experiment as YAML with every option resolved; `load` reads it back."""
    out = StringIO()
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(experiment.resolved(), out)
    return out.getvalue()


def _override(tree: CommentedMap, text: str) -> Keys:
    """Set the value of one `path=value` in `tree`; return the path."""
    dotted, equals, value = text.partition("=")
    origin = _origin_of(text)
    if not equals or not dotted.strip() or "" in dotted.strip().split("."):
        raise ExperimentError(Problem("expected path=value, e.g. seed=3 or aggregation.rule=krum").at(origin))
    return _set(tree, dotted.strip(), read_value(value, origin), origin)


def _origin_of(override: str) -> Origin:
    return Origin(text=f"override '{_short(override)}'")


def _set(tree: CommentedMap, dotted: str, value: Any, origin: Origin) -> Keys:
    """Set a copy of `value` at the path `dotted` of `tree`; return the path."""
    value = unshared(value, origin)
    keys = _keys(tree, dotted)
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
            raise ExperimentError(Problem(reason, _dotted(keys[: position + 1])).at(origin))
        node = child
    last = keys[-1]
    if isinstance(node, MutableSequence) and last == len(node):
        node.append(value)
    else:
        _child(node, keys, origin)
        node[last] = value
    return tuple(keys)


def _keys(tree: CommentedMap, dotted: str) -> list[str | int]:
    """Split a dotted path into keys; a key of the file that itself contains dots, as in `changes`, stays one key."""
    left, keys, node = dotted.split("."), list[str | int](), cast(Any, tree)
    while left:
        known = [n for n in range(len(left), 1, -1) if isinstance(node, Mapping) and ".".join(left[:n]) in node]
        key, left = ".".join(left[: (known or [1])[0]]), left[(known or [1])[0] :]
        keys.append(int(key) if key.isdecimal() else key)
        node = node[keys[-1]] if _has(node, keys[-1]) else None
    return keys


def _child(node: Any, keys: Sequence[str | int], origin: Origin) -> Any:
    """Return the value in `node` under the last of the keys."""
    *outer, key = keys
    if isinstance(node, MutableSequence):
        if not isinstance(key, int) or key >= len(node):
            reason = f"the list has {len(node)} entries, counted from 0"
            raise ExperimentError(Problem(reason, _dotted(outer), found=f"'{key}'").at(origin))
        return node[key]
    return node.get(key)


def _dotted(keys: Iterable[str | int]) -> str:
    return ".".join(map(str, keys))


def _plain(node: Any) -> Any:
    """Return the tree without ruamel's own types, which strict validation would refuse."""
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for plain in (bool, int, float, str):
        if isinstance(node, plain):
            return plain(node)
    return node


def _has(node: Any, key: str | int) -> bool:
    return key in node if isinstance(node, Mapping) else isinstance(node, list) and key in range(len(node))


def _reason(error: Mapping[str, Any], node: Any) -> tuple[Problem, str]:
    """Return the problem, and what was expected if there is nothing else to say."""
    if error["type"] == "refused":
        raised: Problem = error["ctx"]["problem"]
        scalar = node is not None and not isinstance(node, (Mapping, list))
        found = shown(node) if raised.found is None and scalar else raised.found
        return replace(raised, message=_line(raised.message), found=found), ""
    if error["type"] == "missing":
        return Problem("missing, and it has no default"), ""
    problem = Problem(found=shown(node), hint=_meant(node))
    if error["type"] in ("value_error", "assertion_error"):  # from a validator of the user's own class
        return replace(problem, message=_line(str(error["ctx"]["error"]))), ""
    return problem, _line(_TYPES.get(error["type"], str(error["msg"]).removeprefix("Input should be ")))


def _line(text: str) -> str:
    return " ".join(text.split())


def shown(value: Any) -> str:
    """Return a value from a file in the form in which problems quote it."""
    return f"a {kind(value)}" if isinstance(value, (Mapping, list)) else _short(repr(_plain(value)))


def _meant(found: Any) -> str:
    """Return what to write instead of a word that has a different meaning in YAML."""
    if not isinstance(found, str):
        return ""
    return "for nothing at all, write null" if found.lower() in ("none", "nil") else ""


_TYPES = {
    "bool_type": "true or false",
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "string_type": "a text",
}


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:99]}…"


def _line_of(tree: CommentedMap, keys: Sequence[str | int]) -> int | None:
    """Return the line of the deepest key that the file has, counted from 1."""
    line: int | None = None
    node: Any = tree
    for key in keys:
        if not isinstance(node, (CommentedMap, CommentedSeq)) or not _has(node, key):
            break
        try:
            line = (node.lc.key(key) if isinstance(node, CommentedMap) else node.lc.item(key))[0] + 1
        except (KeyError, AttributeError, TypeError):  # set by an override: no line
            break
        node = node[key]
    return line
