"""What takes hours to make, such as features, is not made again from the start when its maker is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrobust.data import cache
from fedrobust.data.cache import ARRAY, RESTART, Add, kept

TABLE = np.arange(60, dtype=np.float32).reshape(20, 3)
KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from fedrobust.data import cache

cache.NOTED = 0.0
table = np.arange(60, dtype=np.float32).reshape(20, 3)

def make(add):
    for first in range(0, 12, 4):
        add(table[first : first + 4])
    os.kill(os.getpid(), signal.SIGKILL)

cache.kept(Path(sys.argv[1]), "features-x", 20, make, goes_on=True)
"""


class Maker:
    """Makes the rows of TABLE, four at a time."""

    def __init__(self, stop: BaseException | None = None) -> None:
        self.stop, self.made = stop, list[int]()

    def __call__(self, add: Add) -> dict[str, Any]:
        for first in range(add.count, 20, 4):
            if self.stop is not None and first == 12:
                raise self.stop
            self.made.append(first)
            add(TABLE[first : first + 4])
        return {}


def found(folder: Path, maker: Maker) -> np.ndarray:
    return kept(folder, "features-x", 20, maker, goes_on=True).array


def left(folder: Path) -> list[Path]:
    return list(folder.glob(".features-x.*/"))


def killed(folder: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(folder)], capture_output=True, text=True, check=False)
    assert ended.returncode == -9, ended.stderr
    assert len(left(folder)) == 1 and not (folder / "features-x").exists()


def test_a_killed_process_leaves_what_it_has_made(tmp_path: Path) -> None:
    killed(tmp_path)
    next_one = Maker()
    assert np.array_equal(found(tmp_path, next_one), TABLE)
    assert next_one.made == [12, 16] and not left(tmp_path)
    assert sorted(file.name for file in (tmp_path / "features-x").iterdir()) == ["about.json", ARRAY]
    again = Maker()
    assert np.array_equal(found(tmp_path, again), TABLE) and not again.made


def test_one_that_is_killed_when_it_is_nearly_ready_leaves_all_rows(tmp_path: Path) -> None:
    killed(tmp_path)
    for name in ("about.json", "restart.new"):
        (left(tmp_path)[0] / name).write_text("half")
    assert np.array_equal(found(tmp_path, Maker()), TABLE)
    assert sorted(file.name for file in (tmp_path / "features-x").iterdir()) == ["about.json", ARRAY]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("lost")], ids=["a Ctrl-C", "an error"])
def test_what_was_made_before_an_exception_is_not_made_again(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        found(tmp_path, Maker(error))
    next_one = Maker()
    assert np.array_equal(found(tmp_path, next_one), TABLE) and next_one.made == [12, 16]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """The rows are then made in memory."""

    class Full(Maker):
        def __call__(self, add: Add) -> dict[str, Any]:
            self.stop = OSError(28, "No space left on device") if isinstance(add, cache._Written) else None
            return super().__call__(add)

    assert np.array_equal(found(tmp_path, Full()), TABLE)
    assert not left(tmp_path) and not (tmp_path / "features-x").exists()


def other_row(folder: Path) -> None:
    with (folder / ARRAY).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")


def shorter(folder: Path) -> None:
    data = (folder / ARRAY).read_bytes()
    (folder / ARRAY).write_bytes(data[:-1])


def more_rows(folder: Path) -> None:
    noted = json.loads((folder / RESTART).read_text())
    (folder / RESTART).write_text(json.dumps(noted | {"count": 2_000}))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "another byte": other_row,
    "too short": shorter,
    "more than there is": more_rows,
    "no rows": lambda folder: (folder / ARRAY).write_bytes(b""),
    "no file": lambda folder: (folder / ARRAY).unlink(),
    "no array": lambda folder: (folder / ARRAY).write_bytes(b"x" * 500),
    "another array": lambda folder: np.save(folder / ARRAY, np.zeros((3, 3))),
    "nothing noted": lambda folder: (folder / RESTART).unlink(),
    "not JSON": lambda folder: (folder / RESTART).write_text("{"),
    "no object": lambda folder: (folder / RESTART).write_text("[1]"),
    "no number": lambda folder: (folder / RESTART).write_text('{"count": "a", "digest": 3}'),
    "a negative number": lambda folder: (folder / RESTART).write_text('{"count": -3, "digest": ""}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_again(damage: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        found(tmp_path, Maker(KeyboardInterrupt()))
    DAMAGES[damage](left(tmp_path)[0])
    next_one = Maker()
    assert np.array_equal(found(tmp_path, next_one), TABLE)
    assert next_one.made == [0, 4, 8, 12, 16] and not left(tmp_path)


def test_rows_of_another_number_are_not_taken_over(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        found(tmp_path, Maker(KeyboardInterrupt()))

    def make(add: Add) -> dict[str, Any]:
        assert add.count == 0
        add(TABLE[:8])
        return {}

    assert np.array_equal(kept(tmp_path, "features-x", 8, make, goes_on=True).array, TABLE[:8])


def test_a_maker_that_cannot_go_on_begins_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        found(tmp_path, Maker(KeyboardInterrupt()))

    def make(add: Add) -> dict[str, Any]:
        assert add.count == 0
        add(TABLE)
        return {}

    assert np.array_equal(kept(tmp_path, "features-x", 20, make).array, TABLE)
