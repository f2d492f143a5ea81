"""Image files that cannot be read: refused, or left out with their number said and kept in the run's record."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refused import refused

import fedrobust
from fedrobust import runner
from fedrobust.data import Camelyon17, Folder, Idc, NoNormalisation, PatchTable, Split, StainShift
from fedrobust.data.hospitals import Hospitals, divide
from fedrobust.data.partition import Iid
from fedrobust.data.sources import ImageFileSource
from fedrobust.errors import DataError


def picture(file: Path, level: int, side: int = 50) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(level).integers(0, 256, (side, side, 3), dtype=np.uint8)
    pixels[0, 0] = level
    Image.fromarray(pixels).save(file)
    return file


def folder(root: Path) -> tuple[Folder, list[Path]]:
    files = [picture(root / kind / f"P{i // 2 % 4}_{i}.png", i) for i, kind in enumerate(["a", "b"] * 8)]
    return Folder(path=str(root), patients="/(P\\d)_"), sorted(files)


def idc(root: Path) -> tuple[Idc, list[Path]]:
    files = [picture(root / f"P{i % 4}/{i // 4 % 2}/P{i % 4}_idx5_x{i}_y1_class{i // 4 % 2}.png", i) for i in range(16)]
    return Idc(path=str(root)), sorted(files)


def camelyon(root: Path) -> tuple[Camelyon17, list[Path]]:
    name = "patches/patient_{0}_node_0/patch_patient_{0}_node_0_x_{1}_y_0.png"
    files = [picture(root / name.format(i % 4, i), i, 96) for i in range(16)]
    rows = [f"{i % 4},0,{i},0,{i // 4 % 2},{i % 5}" for i in range(16)]
    (root / "metadata.csv").write_text("\n".join(["patient,node,x_coord,y_coord,tumor,center", *rows]) + "\n")
    return Camelyon17(path=str(root)), files


def table(root: Path) -> tuple[PatchTable, list[Path]]:
    files = [picture(root / f"{i:02}.png", i) for i in range(16)]
    rows = [f"{file.name},{i % 2},{i // 2}" for i, file in enumerate(files)]
    (root / "set.csv").write_text("\n".join(["image,label,patient", *rows]) + "\n")
    return PatchTable(path=str(root)), files


DAMAGE = {
    "cut short": lambda whole: whole[:-800],
    "empty": lambda whole: b"",
    "a web page": lambda whole: b"<html>404</html>",
    "text": lambda whole: b"no image",
}


@pytest.mark.parametrize("made", [folder, idc, camelyon, table])
@pytest.mark.parametrize("damage", DAMAGE)
def test_unreadable_files_are_refused_or_skipped(tmp_path, made, damage, caplog):
    source, files = made(tmp_path)
    whole = source.load(0)
    for broken in (files[3], files[9]):
        broken.write_bytes(DAMAGE[damage](broken.read_bytes()))
    with refused(DataError, file=files[3], says="not a readable image"):
        source.load(0)
    with caplog.at_level(logging.WARNING):
        found = type(source)(**{**source.model_dump(), "unreadable": "skip"}).load(0)
    others = np.delete(np.arange(16), [3, 9])
    assert np.array_equal(found.images, whole.images[others])
    assert found.labels.tolist() == whole.labels[others].tolist()
    assert found.groups is not None and found.groups.tolist() == whole.groups[others].tolist()
    (note,) = found.notes
    assert note.startswith("2 of 16 image files are unreadable and left out: ") and str(files[3]) in note
    assert [line for line in caplog.messages if note in line] == [f"{source.name}: {note}"]
    assert not any("slide's edge" in line for line in caplog.messages)
    assert whole.notes == () and found.digest == replace(found, notes=()).digest


def test_pixels_that_cannot_be_read_rightly_are_unreadable_too(tmp_path):
    source, files = folder(tmp_path)
    Image.fromarray(np.ones((50, 50), np.float32)).save(files[0], format="TIFF")
    with refused(DataError, file=files[0], says="range is not known"):
        source.load(0)
    found = source.model_copy(update={"unreadable": "skip"}).load(0)
    assert len(found) == 15 and "range is not known" in found.notes[0]


def test_sizes_that_differ_are_no_damage_and_nothing_readable_is_an_error(tmp_path):
    source, files = folder(tmp_path)
    source = source.model_copy(update={"unreadable": "skip"})
    picture(files[5], 5, side=40)
    with refused(DataError, file=files[5], says="set `size`"):
        source.load(0)
    for file in files:
        file.write_bytes(b"")
    with refused(DataError, says="none of the 16 image files is usable; 16 of 16 image files are unreadable"):
        source.load(0)


def divided(source: ImageFileSource, cache: Path) -> Hospitals:
    return divide(source, Split(), Iid(minimum=1), StainShift(), NoNormalisation(), 2, 0, cache)


def test_how_many_were_skipped_is_in_the_record(tmp_path):
    source, files = folder(tmp_path / "slides")
    files[3].write_bytes(b"")
    source = source.model_copy(update={"unreadable": "skip"})
    hospitals = divided(source, tmp_path / "cache")
    experiment = fedrobust.Experiment().changed({"data.source": source.model_dump(), "federation.clients": 2})
    this = runner._Run(experiment, hospitals, None, None, (), print, ["attacks: too many"])  # type: ignore[arg-type]
    start = runner._start(this, "0" * 32, np.zeros(3, np.float32), "")
    assert start.cautions == ("attacks: too many", *hospitals.notes) and "1 of 16" in start.cautions[1]


def test_the_default_leaves_digests_of_experiments_as_they_were():
    made = {
        each: fedrobust.Experiment().changed({"data.source": {"name": "idc", "unreadable": each}})
        for each in ("refuse", "skip")
    }
    before = "ce3de222ae1c6d2067d4a31b0b4030f93e9cb1b1f38f32ea358fdb6cc4e0456b"
    assert made["refuse"].digest() == before != made["skip"].digest()
