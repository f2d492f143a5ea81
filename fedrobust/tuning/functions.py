"""Whether a caller's function is the same as in an earlier sweep."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import partial
from hashlib import sha256
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

PLAIN = (str, bytes, int, float, complex, bool, type(None))


def digest_of(function: Callable[..., Any]) -> str:
    """Return a digest of what a function does, the same in every process: its source, or a lambda's code, since its
    lines hold other things, too; its defaults, the arguments of a `partial`, and an object's class. Of the values that
    it has from around it, and of an object's attributes, numbers and texts count: a list may be a log that grows.

    Functions that it calls, and global values, are not included.
    """
    return sha256(_told(function).encode()).hexdigest()


def _told(value: Any) -> str:
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{_told(key)}: {_told(each)}' for key, each in value.items()))}}}"
    if isinstance(value, AbstractSet):
        return f"set({sorted(map(_told, value))})"
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_told, value))}]"
    if isinstance(value, CodeType):
        return f"{value.co_code!r} {value.co_names} {_told(value.co_consts)}"
    if isinstance(value, partial):
        return f"partial({_told(value.func)}, {_told(value.args)}, {_told(value.keywords)})"
    if isinstance(value, MethodType):
        return f"{_told(value.__func__)} of {_told_object(value.__self__)}"
    if isinstance(value, FunctionType):
        return _told_function(value)
    if isinstance(value, type | BuiltinFunctionType):
        return _source(value) or f"{value.__module__}.{value.__qualname__}"
    if callable(value):
        return _told_object(value)
    return type(value).__qualname__


def _told_function(function: FunctionType) -> str:
    text = "" if function.__name__ == "<lambda>" else _source(function)
    own = _plain(inspect.getclosurevars(function).nonlocals)
    defaults = [function.__defaults__ or (), function.__kwdefaults__ or {}]
    return f"{text or _told(function.__code__)} {_told(defaults)} {_told(own)}"


def _told_object(value: object) -> str:
    return f"{_told(type(value))} {_told(_plain(getattr(value, '__dict__', {})))}"


def _plain(values: Mapping[str, Any]) -> dict[Any, Any]:
    return {name: value for name, value in values.items() if isinstance(value, PLAIN)}


def _source(value: Callable[..., Any]) -> str:
    with suppress(OSError, TypeError):  # typed at a prompt, or built in
        return inspect.getsource(value)
    return ""
