"""Decoded patches are kept: the second run decodes nothing, and what is damaged, or of other files, is made again."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refused import refused

from fedrobust.data import Folder, Idc, cache, pixels
from fedrobust.data.cache import ABOUT, ARRAY, file_of, keeping_in
from fedrobust.data.patches import Patches
from fedrobust.errors import DataError
from fedrobust.experiment import Experiment
from fedrobust.preparation import hospitals_of
from fedrobust.progress import LongWork, progress_to

SIDE = 10


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch):
    monkeypatch.setattr(pixels, "MANY", 20)
    monkeypatch.setattr(pixels, "BLOCK", 3 * 3 * SIDE**2)  # three patches a block
    monkeypatch.setattr(pixels, "usable_cores", lambda: 3)


def picture(file: Path, number: int, side: int = SIDE) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), number, np.uint8)).save(file)


@pytest.fixture
def slides(tmp_path) -> Path:
    for number in range(40):
        picture(tmp_path / "slides" / f"kind{number % 2}" / f"{number:02}.png", number)
    return tmp_path / "slides"


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The files that Pillow has opened."""
    found: list[str] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda file, *rest: found.append(str(file)) or real(file, *rest))
    return found


def load(source: Folder | Idc, folder: Path) -> Patches:
    with keeping_in(folder):
        return source.load(0)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("decoded-*"))


@pytest.mark.parametrize("changed", [{}, {"size": 8}, {"limit": 30}])
def test_the_second_time_nothing_is_decoded_and_everything_is_the_same(slides, tmp_path, opened, changed):
    source = Folder(path=str(slides), **changed)
    plain = source.load(0)
    first = load(source, tmp_path / "cache")
    opened.clear()
    second = load(source, tmp_path / "cache")
    assert opened == [] and plain.digest == first.digest == second.digest
    assert second.images.tobytes() == plain.images.tobytes()
    (entry,) = entries(tmp_path / "cache")
    assert entry.stat().st_mode & 0o777 == 0o700 and (entry / ARRAY).stat().st_mode & 0o777 == 0o600
    assert np.load(entry / ARRAY, mmap_mode="r").shape == plain.images.shape
    assert mapped(second.images) and not mapped(plain.images)


def mapped(images: np.ndarray) -> bool:
    return file_of(images) is not None


def test_few_files_are_not_kept(slides, tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, "MANY", 41)
    load(Folder(path=str(slides)), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def rewritten(file: Path) -> None:
    picture(file, 200)


def touched(file: Path) -> None:
    os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))


def removed(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("change", [rewritten, touched, removed])
def test_other_files_are_decoded_again(slides, tmp_path, opened, change):
    load(Folder(path=str(slides)), tmp_path / "cache")
    change(slides / "kind1" / "33.png")
    opened.clear()
    again = load(Folder(path=str(slides)), tmp_path / "cache")
    assert opened and again.digest == Folder(path=str(slides)).load(0).digest
    assert len(entries(tmp_path / "cache")) == 2


@pytest.mark.parametrize("other", [{"size": 8}, {"limit": 30}, {"unreadable": "skip"}])
def test_other_options_are_other_entries(slides, tmp_path, opened, other):
    load(Folder(path=str(slides)), tmp_path / "cache")
    opened.clear()
    load(Folder(path=str(slides), **other), tmp_path / "cache")
    assert opened
    opened.clear()
    load(Folder(path=str(slides), patients="(\\d)"), tmp_path / "cache")
    assert not opened, "the patients are no pixels"


def flipped(entry: Path) -> None:
    data = bytearray((entry / ARRAY).read_bytes())
    data[-7] ^= 1
    (entry / ARRAY).write_bytes(data)


def cut(entry: Path) -> None:
    (entry / ARRAY).write_bytes((entry / ARRAY).read_bytes()[:-5])


def emptied(entry: Path) -> None:
    (entry / ARRAY).write_bytes(b"")


def of_another(entry: Path) -> None:
    np.save(entry / ARRAY, np.zeros((40, 12, 12, 3), np.uint8))


def pickled(entry: Path) -> None:
    np.save(entry / ARRAY, np.array([{}]), allow_pickle=True)


def rewritten_about(entry: Path) -> None:
    content = json.loads((entry / ABOUT).read_text())
    (entry / ABOUT).write_text(json.dumps({**content, "about": {**content["about"], "notes": ["false"]}}))


def no_json(entry: Path) -> None:
    (entry / ABOUT).write_text("{")


def other_json(entry: Path) -> None:
    (entry / ABOUT).write_text("[]")


def only_half(entry: Path) -> None:
    (entry / ABOUT).unlink()


def a_file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_bytes(b"no folder")


DAMAGE = [flipped, cut, emptied, of_another, pickled, rewritten_about, no_json, other_json, only_half, a_file]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_noticed_and_made_again(slides, tmp_path, damage: Callable[[Path], None], opened, caplog):
    first = load(Folder(path=str(slides)), tmp_path / "cache").digest
    (entry,) = entries(tmp_path / "cache")
    damage(entry)
    opened.clear()
    with caplog.at_level(logging.WARNING):
        assert load(Folder(path=str(slides)), tmp_path / "cache").digest == first
    assert len(opened) == 40 and [str(entry) in line for line in caplog.messages] == [True]
    opened.clear()
    assert load(Folder(path=str(slides)), tmp_path / "cache").digest == first and not opened


def test_what_is_left_out_is_left_out_again(slides, tmp_path, opened, caplog):
    (slides / "kind0" / "04.png").write_bytes(b"")
    source = Folder(path=str(slides), unreadable="skip")
    plain, first = source.load(0), load(source, tmp_path / "cache")
    opened.clear()
    caplog.clear()
    second = load(source, tmp_path / "cache")
    assert plain.notes == first.notes == second.notes and "1 of 40" in second.notes[0]
    assert len(caplog.messages) == 1 and not opened
    assert plain.digest == first.digest == second.digest and len(second) == 39


def test_edges_of_idc_are_in_the_key(tmp_path):
    for number in range(24):
        name = f"P{number % 4}/{number % 2}/P{number % 4}_idx5_x{number}_y1_class{number % 2}.png"
        picture(tmp_path / "idc" / name, number, side=50)
    Image.new("RGB", (50, 20)).save(tmp_path / "idc/P0/0/P0_idx5_x99_y1_class0.png")
    for _ in range(2):
        found = [load(Idc(path=str(tmp_path / "idc"), edges=edges), tmp_path / "cache") for edges in ("drop", "pad")]
        assert [len(each) for each in found] == [24, 25]
        assert found[0].digest == Idc(path=str(tmp_path / "idc")).load(0).digest
    assert len(entries(tmp_path / "cache")) == 2


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("when", ["nothing is free", "while it is written", "at the end", "no folder"])
def test_a_full_disk_costs_one_line(slides, tmp_path, monkeypatch, caplog, when):
    folder = tmp_path / "cache"
    if when == "nothing is free":
        monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 100))
    elif when == "while it is written":
        counted = cache._Written.add
        monkeypatch.setattr(cache._Written, "add", lambda self, rows: full() if self.count else counted(self, rows))
    elif when == "at the end":
        monkeypatch.setattr(os, "fsync", full)
    else:
        folder.write_text("a file")
    with caplog.at_level(logging.WARNING):
        found = load(Folder(path=str(slides)), folder)
    assert found.digest == Folder(path=str(slides)).load(0).digest and not mapped(found.images)
    assert len(caplog.messages) == 1 and "is not kept" in caplog.messages[0]
    assert folder.is_file() or [each.suffix for each in folder.iterdir()] == [".lock"], "no rest is left"


def test_what_a_killed_process_left_is_cleared_away(slides, tmp_path):
    load(Folder(path=str(slides)), tmp_path / "cache")
    (entry,) = entries(tmp_path / "cache")
    entry.rename(entry.with_name(f".{entry.name}.0123456789abcdef"))
    load(Folder(path=str(slides)), tmp_path / "cache")
    assert sorted(each.name for each in (tmp_path / "cache").iterdir()) == [f".{entry.name}.lock", entry.name]


def test_two_processes_and_two_threads_at_once_do_no_harm(slides, tmp_path, opened):
    plain = Folder(path=str(slides)).load(0).digest
    opened.clear()
    with ThreadPoolExecutor(3) as threads:
        found = threads.map(lambda _: load(Folder(path=str(slides)), tmp_path / "threads").digest, range(3))
    assert {*found} == {plain}
    assert len(opened) == 40
    code = (
        "import sys; from fedrobust.data import Folder, pixels; from fedrobust.data.cache import keeping_in\n"
        "pixels.MANY = 20\n"
        "with keeping_in(sys.argv[2]): print(Folder(path=sys.argv[1]).load(0).digest)"
    ).replace("keeping_in(sys.argv[2])", "keeping_in(__import__('pathlib').Path(sys.argv[2]))")
    asked = [sys.executable, "-c", code, str(slides), str(tmp_path / "cache")]
    started = [subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert {process.communicate(timeout=120)[0].strip() for process in started} == {plain}
    assert len(entries(tmp_path / "cache")) == 1


def test_the_first_bad_file_in_order_is_refused_and_nothing_is_kept(slides, tmp_path):
    for number in (37, 21, 29):
        (slides / "kind1" / f"{number}.png").write_bytes(b"")
    for folder in (tmp_path / "cache", None):
        with refused(DataError, file=slides / "kind1" / "21.png", says="empty"):
            load(Folder(path=str(slides)), folder)
    assert entries(tmp_path / "cache") == []


def test_progress_is_told(slides, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(pixels, "LongWork", partial(LongWork, pause=0))
    with progress_to(said.append):
        Folder(path=str(slides)).load(0)
    assert all(each.startswith("reading the data: ") and each.endswith(" % of 40 images") for each in said)
    shares = [int(each.split()[3]) for each in said]
    assert 5 < len(shares) < 20 and shares == sorted(set(shares))


def test_a_run_keeps_what_it_decodes(slides, tmp_path, monkeypatch, opened):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pixels, "LongWork", partial(LongWork, pause=0))
    options = {
        "data": {
            "source": {"name": "folder", "path": str(slides), "patients": "(\\d+)[.]png"},
            "partition": {"name": "iid", "minimum": 1},
        },
        "federation": {"clients": 2},
    }
    said: list[str] = []
    for read in (40, 0):
        opened.clear()
        with progress_to(said.append):
            hospitals = hospitals_of(Experiment.model_validate(options))
        assert len(opened) == read and mapped(hospitals.images)
        assert [each.parent for each in entries(Path("mlruns/cache"))] == [Path("mlruns/cache")]
    assert said and all(each.startswith("reading the data: ") for each in said)
