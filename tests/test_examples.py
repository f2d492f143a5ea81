"""The example in the docstring of each room shows what the room gives."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module

import pytest

import fedrobust

ROOMS = [room.name for room in pkgutil.iter_modules(fedrobust.__path__) if room.ispkg]
WITHOUT = {"federation"}
"""Rooms without an example: what this one has needs Ray."""


@pytest.mark.parametrize("room", ROOMS)
def test_the_example_of_a_room(room: str) -> None:
    module = import_module(f"fedrobust.{room}")
    example = doctest.DocTestParser().get_doctest(module.__doc__ or "", vars(module).copy(), room, module.__file__, 0)
    assert example.examples or room in WITHOUT
    failed: list[str] = []
    doctest.DocTestRunner(verbose=False).run(example, out=failed.append)
    assert not failed, "".join(failed)


def test_rooms_that_can_be_used_alone_have_one() -> None:
    assert set(ROOMS) > WITHOUT
