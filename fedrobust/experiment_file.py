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

from fedrobust.errors import ExperimentError
from fedrobust.texts import visible
from fedrobust.users_code import looking_beside
from fedrobust.yaml_tree import has_anchors, kind, read_tree, read_value, unshared

if TYPE_CHECKING:
    from fedrobust.experiment import Experiment

Keys = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


def load(path: str | Path, overrides: Iterable[str] = ()) -> Experiment:
    """Read an experiment from a YAML file.

    `overrides` are texts such as `"aggregation.rule=krum"` or `"attacks.0.scale=4"`; the value is read as YAML.

    Raises `ExperimentError` with one line for each thing that is wrong: where it stands (file, line, dotted path),
    what was found, what is allowed, and the nearest right spelling.
    """
    from fedrobust.experiment import Experiment

    return Draft.read(path, overrides).checked(Experiment)


def load_recorded(path: Path) -> Experiment:
    """The experiment in a file that `dump` wrote into a run's folder: no code that lies there is loaded.

    Raises `ExperimentError` as `load` does.
    """
    from fedrobust.experiment import Experiment

    return replace(Draft.read(path), beside=()).checked(Experiment)


@dataclass(frozen=True)
class Draft:
    """A file of options as it was read and changed, before it is checked; it knows where each value comes from."""

    path: Path
    tree: CommentedMap
    origin: Mapping[Keys, str]
    """Where the values come from that are not the file's own, in the order in which they were set."""
    beside: tuple[Path, ...] = ()
    """Folders in which a user's classes may lie that it names."""

    @classmethod
    def read(cls, path: str | Path, overrides: Iterable[str] = (), beside: Sequence[Path] = ()) -> Draft:
        """The file with `overrides`, texts such as `"seed=3"`. Raises `ExperimentError` where it cannot be read.

        A user's classes may lie beside the file, and in the folders `beside`: those of files that name it.
        """
        tree, texts = read_tree(Path(path)), list(overrides)
        origin = {_override(tree, text): visible(f"override '{_short(text)}'") for text in texts}
        return cls(Path(path), tree, origin, (Path(path).parent, *beside))

    def changed(self, changes: Mapping[str, Any], origin: str) -> Draft:
        """A copy with the values of `changes`, by dotted path; errors in them will name `origin`."""
        tree = deepcopy(self.tree)
        keys = [_set(tree, dotted, value, origin) for dotted, value in changes.items()]
        before = {place: text for place, text in self.origin.items() if place not in keys}
        return Draft(self.path, tree, {**before, **dict.fromkeys(keys, origin)}, self.beside)

    def place(self, *keys: str | int) -> str:
        """Where a value comes from: file and line, or the override."""
        return _place(list(keys), self.tree, self.path, self.origin)

    def checked(self, model: type[Model]) -> Model:
        """The options. Raises `ExperimentError` as `load` does."""
        try:
            with looking_beside(self.beside):
                return model.model_validate(_plain(self.tree))
        except ValidationError as error:
            found = [_explain(dict(item), self.tree, self.path, self.origin) for item in error.errors()]
            raise ExperimentError("\n".join(_merged(found))) from None


def read_options(path: Path) -> dict[str, Any]:
    """The values in a YAML file that `dump` wrote, unchecked: no class that they name is looked for.

    Raises `ExperimentError` as `load` does, and for anchors, with which a few lines can stand for gigabytes.
    """
    tree = read_tree(path)
    if has_anchors(path):
        raise ExperimentError(f"{visible(path)}: has an anchor, which no recorded experiment has")
    found: dict[str, Any] = _plain(tree)
    return found


def dump(experiment: Experiment) -> str:
    """The experiment as YAML with every option resolved; `load` reads it back."""
    out = StringIO()
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(experiment.resolved(), out)
    return out.getvalue()


def _override(tree: CommentedMap, text: str) -> Keys:
    """Set the value of one `path=value` in `tree`; return the path."""
    dotted, equals, value = text.partition("=")
    origin = visible(f"override '{_short(text)}'")
    if not equals or not dotted.strip() or "" in dotted.strip().split("."):
        raise ExperimentError(f"{origin}: expected path=value, e.g. seed=3 or aggregation.rule=krum")
    return _set(tree, dotted.strip(), read_value(value, origin), origin)


def _set(tree: CommentedMap, dotted: str, value: Any, origin: str) -> Keys:
    """Set a copy of the value at a dotted path of `tree`; return the path."""
    value = unshared(value, origin)
    keys = _keys(tree, dotted)
    node: Any = tree
    for position, key in enumerate(keys[:-1]):
        child = _child(node, key, origin)
        if child is None:
            child = CommentedSeq() if keys[position + 1] == 0 else CommentedMap()
            node[key] = child
        elif isinstance(child, str):  # `rule: krum` is short for `rule: {name: krum}`
            child = CommentedMap(name=child)
            node[key] = child
        if not isinstance(child, (MutableMapping, MutableSequence)):
            where = ".".join(str(part) for part in keys[: position + 1])
            raise ExperimentError(f"{origin}: {where} is a {kind(child)}, it has no '{keys[position + 1]}'")
        node = child
    last = keys[-1]
    if isinstance(node, MutableSequence) and last == len(node):
        node.append(value)
    else:
        _child(node, last, origin)
        node[last] = value
    return tuple(keys)


def _keys(tree: CommentedMap, dotted: str) -> list[str | int]:
    """The keys of a dotted path; a key of the file that has dots itself, as in `changes`, is one."""
    left, keys, node = dotted.split("."), list[str | int](), cast(Any, tree)
    while left:
        known = [n for n in range(len(left), 1, -1) if isinstance(node, Mapping) and ".".join(left[:n]) in node]
        key, left = ".".join(left[: (known or [1])[0]]), left[(known or [1])[0] :]
        keys.append(int(key) if key.isdecimal() else key)
        inside = isinstance(node, Mapping | list) and _has(node, keys[-1])
        node = cast(Any, node)[keys[-1]] if inside else None
    return keys


def _child(node: Any, key: str | int, origin: str) -> Any:
    if isinstance(node, MutableSequence):
        if not isinstance(key, int) or key >= len(node):
            raise ExperimentError(f"{origin}: the list has {len(node)} entries, counted from 0; found '{key}'")
        return node[key]
    return node.get(key)


def _plain(node: Any) -> Any:
    """The tree without ruamel's own types, which strict validation would refuse."""
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for plain in (bool, int, float, str):
        if isinstance(node, plain):
            return plain(node)
    return node


def _merged(found: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each place; of a value that fits none of several types, what each of them expected."""
    places: dict[str, list[str]] = {}
    for place, reason in found:
        if reason not in places.setdefault(place, []):
            places[place].append(reason)
    lines = []
    for place, reasons in places.items():
        shown = {reason.partition("; found ")[2] for reason in reasons}
        if len(reasons) > 1 and len(shown) == 1:
            expected = " or ".join(reason.partition("; found ")[0].removeprefix("expected ") for reason in reasons)
            reasons = [f"expected {expected}; found {shown.pop()}"]
        lines += [" ".join(f"{place}: {reason}".split()) for reason in reasons]
    return lines


def _explain(error: dict[str, Any], tree: Any, path: Path, origin: Mapping[Keys, str]) -> tuple[str, str]:
    """Where one error of pydantic is, and what it says."""
    location: list[str | int] = []
    node = tree
    for part in error["loc"]:
        inside = isinstance(node, Mapping) and part in node
        inside = inside or (isinstance(node, list) and isinstance(part, int) and part < len(node))
        if inside:
            node = node[part]
            location.append(part)
        elif error["type"] == "missing" and part == error["loc"][-1]:
            location.append(part)  # all other parts that are not in the file are tags of unions
    context = error.get("ctx", {})
    tail = [int(part) if part.isdecimal() else part for part in context.get("path", "").split(".") if part]
    if isinstance(node, str):  # `rule: krum` is short for `rule: {name: krum}`
        tail = []
    for part in tail:
        node = node[part] if isinstance(node, (Mapping, list)) and _has(node, part) else None
    location += tail
    dotted = ".".join(str(part) for part in location) or "experiment"
    return f"{_place(location, tree, path, origin)}: {dotted}", _reason(error, node)


def _has(node: Any, part: str | int) -> bool:
    return part in node if isinstance(node, Mapping) else isinstance(part, int) and part < len(node)


def _reason(error: Mapping[str, Any], found: Any) -> str:
    context = error.get("ctx", {})
    if error["type"] == "refused":
        message = str(context["message"])
        scalar = found is not None and not isinstance(found, (Mapping, list))
        return f"found {_short(repr(found))}; {message}" if scalar and "found" not in message else message
    if error["type"] == "missing":
        return "missing, and it has no default"
    text = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    text = _TYPES.get(error["type"], text)
    shown = f"a {kind(found)}" if isinstance(found, (Mapping, list)) else _short(repr(_plain(found)))
    return f"expected {text}; found {shown}{_meant(found)}"


def _meant(found: Any) -> str:
    """What to write instead of a word that means something in another language."""
    if not isinstance(found, str):
        return ""
    return "; for nothing at all, write null" if found.lower() in ("none", "nil") else ""


_TYPES = {
    "bool_type": "true or false",
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "string_type": "a text",
}


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:99]}…"


def _place(location: list[str | int], tree: Any, path: Path, origin: Mapping[Keys, str]) -> str:
    """The override that set this value, or the file and the line of the deepest part that is in it."""
    for keys in reversed(list(origin)):
        if tuple(location[: len(keys)]) == keys:
            return origin[keys]
    line: int | None = None
    node: Any = tree
    for part in location:
        if not isinstance(node, (CommentedMap, CommentedSeq)) or not _has(node, part):
            break
        try:
            line = (node.lc.key(part) if isinstance(node, CommentedMap) else node.lc.item(part))[0] + 1
        except (KeyError, AttributeError, TypeError):  # set by an override: no line
            break
        node = node[part]
    return visible(f"{path}:{line}" if line else path)
