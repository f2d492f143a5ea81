"""Arrays of Python objects: what is in them, found without unpickling, and the line that saves them rightly."""

from __future__ import annotations

import math
import pickletools
from contextlib import suppress
from itertools import islice
from typing import IO, Literal

Contents = Literal["nothing", "missing", "arrays", "texts", "numbers"]

_MOST = 1_000_000
"""So many steps of a pickle are looked at."""
_INSIDE = {"REDUCE", "NEWOBJ", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "GLOBAL", "STACK_GLOBAL"}


def contents_of(pickle: IO[bytes]) -> Contents:
    """What an array of objects holds: `nothing` if all are None or NaN, `missing` if some are; `arrays` are also lists
    and NumPy's scalars.

    pickle: the stream behind the array's header. Its steps are listed, and none of them is taken.
    """
    found: set[Contents] = set()
    with suppress(Exception):  # damaged bytes may raise anything; what came before them counts
        steps = pickletools.genops(pickle)
        while next(steps)[0].name != "BUILD":  # the type of the array itself
            pass
        for step, value, _ in islice(steps, 2, _MOST):  # behind the order of its columns, and an empty list
            if step.name in _INSIDE:
                return "arrays"
            if step.name == "NONE" or (isinstance(value, float) and math.isnan(value)):
                found.add("missing")
            elif isinstance(value, (str, int, float)):
                found.add("texts" if isinstance(value, str) else "numbers")
    if "missing" in found:
        return "nothing" if len(found) == 1 else "missing"
    return "texts" if "texts" in found else "numbers"


def right_way(key: str, shape: tuple[int, ...], kind: Contents) -> str:
    """How an array is saved without Python objects: Python, in which the array has the name of its key.

    key: its name in the file.
    shape: of the array.
    kind: what it holds.
    """
    if kind == "nothing":
        return f"leave {key} out, all of them are None or NaN"
    if kind == "missing":
        others = "images=images[has], labels=labels[has]" + f", {key}={key}[has]" * (key not in ("images", "labels"))
        return (
            "some are None or NaN; without these patches: "
            f"has = numpy.array([each is not None and each == each for each in {key}]); "
            f"numpy.savez(file, {others}, ...)"
        )
    if key == "images" and kind == "arrays":
        return (
            "numpy.savez(file, images=numpy.stack(images).astype(numpy.uint8), ...); if their sizes differ, before it "
            "images = [PIL.Image.fromarray(each).resize((96, 96)) for each in images]"
        )
    if key == "labels" and kind != "numbers":
        return (
            "label_names, labels = numpy.unique(labels.astype(str), return_inverse=True); "
            "numpy.savez(file, labels=labels, label_names=label_names, ...)"
        )
    if kind == "arrays":
        return f"numpy.savez(file, {key}=numpy.array([str(each) for each in {key}]), ...) for one text a patch"
    kinds = {"images": "numpy.uint8", "labels": "int"}
    return f"numpy.savez(file, {key}={key}.astype({kinds.get(key, 'str')}), ...)"
