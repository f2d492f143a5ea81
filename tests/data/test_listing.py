"""The files that are read are the files that are meant, each once; what is left out is told."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refused import refused

from fedrobust.data import Camelyon17, Folder, Idc, Npz
from fedrobust.data.listing import IMAGES, Account, fits, walk
from fedrobust.errors import DataError


def picture(path: Path, level: int, side: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (level,) * 3).save(path)
    return path


@pytest.fixture
def classes(tmp_path):
    """Two classes of three patches each, of level 10 … 15."""
    for level in range(10, 16):
        picture(tmp_path / "set" / ("normal", "tumour")[level % 2] / f"{level}.png", level)
    return tmp_path / "set"


def levels(patches) -> list[tuple[int, str]]:
    names = [patches.label_names[label] for label in patches.labels]
    return sorted(zip(patches.images[:, 0, 0, 0].tolist(), names, strict=True))


PLAIN = [(level, ("normal", "tumour")[level % 2]) for level in range(10, 16)]


def junk(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0\5\26\7 not an image")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tumour/._11.png", "1 hidden (._11.png)"),
        ("__MACOSX/tumour/._11.png", "1 hidden (__MACOSX)"),
        ("._tumour", "1 hidden (._tumour)"),
        (".git/a/b.png", "1 hidden (.git)"),
        ("tumour/.DS_Store", "1 hidden (.DS_Store)"),
        ("tumour/Thumbs.db", "1 hidden (Thumbs.db)"),
        ("tumour/@eaDir/11.png", "1 hidden (@eaDir)"),
        ("tumour/desktop.ini", "1 hidden (desktop.ini)"),
        ("tumour/notes.txt", "1 of other kinds (notes.txt)"),
        ("tumour/11.png.part", "1 of other kinds (11.png.part)"),
        ("overview.png", "1 beside the folders (overview.png)"),
        ("tumour/\x1b[2J.txt", r"1 of other kinds (\x1b[2J.txt)"),
    ],
)
def test_clutter_is_left_out_and_told(classes, caplog, name, reason):
    junk(classes / name)
    assert levels(Folder(path=str(classes)).load(0)) == PLAIN
    assert caplog.messages == [f"folder: {classes}: left out: {reason}"]


def test_checkpoints_of_notebooks_double_no_patch(classes, caplog):
    picture(classes / "tumour" / ".ipynb_checkpoints" / "11-checkpoint.png", 11)
    picture(classes / ".ipynb_checkpoints" / "x.png", 99)
    assert levels(Folder(path=str(classes)).load(0)) == PLAIN
    assert "2 hidden (.ipynb_checkpoints, .ipynb_checkpoints)" in caplog.text


def test_where_nothing_is_left_out_nothing_is_told(classes, caplog):
    assert levels(Folder(path=str(classes)).load(0)) == PLAIN
    assert caplog.messages == []


def test_what_is_left_out_is_told_in_one_line_with_counts(classes, caplog):
    for number in range(5):
        junk(classes / "tumour" / f"._{number}.png")
    junk(classes / "normal" / "table.csv")
    Folder(path=str(classes), files="*[!3].png").load(0)
    (message,) = caplog.messages
    assert "5 hidden (._0.png, ._1.png, ._2.png, …)" in message and "1 of other kinds (table.csv)" in message
    assert "1 not asked for by `files` (13.png)" in message


def test_endings_count_in_any_case(classes):
    picture(classes / "tumour" / "20.PNG", 20)
    picture(classes / "tumour" / "deep" / "21.Tiff", 21)
    more = [*PLAIN, (20, "tumour")]
    assert levels(Folder(path=str(classes)).load(0)) == [*more, (21, "tumour")]
    assert levels(Folder(path=str(classes), files="**/*.png").load(0)) == more
    assert levels(Folder(path=str(classes), files="**/*.PNG").load(0)) == more


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("**/*", "a.png", True),
        ("**/*", "x/y/a.png", True),
        ("*", "x/a.png", False),
        ("**/200X/*.png", "x/200X/a.png", True),
        ("**/200X/*.png", "200X/a.PNG", True),
        ("**/200X/*.png", "x/400X/a.png", False),
        ("x/**/a*.tif", "x/ab.tif", True),
        ("A*.png", "a.png", False),
        ("/etc/*", "passwd", False),
        ("../*", "a.png", False),
        ("", "a.png", False),
        ("**/" * 40 + "b.png", "x/" * 40 + "a.png", False),
        ("./x//*", "x/a.png", True),
    ],
)
def test_patterns(pattern, path, expected):
    assert fits(tuple(path.split("/")), pattern) is expected


# Links


def test_linked_folders_and_files_are_read(classes, tmp_path):
    for level in range(20, 24):
        picture(tmp_path / "slides" / "s7" / f"{level}.png", level)
    picture(tmp_path / "slides" / "s8" / "30.png", 30)
    (classes / "tumour" / "s7").symlink_to(tmp_path / "slides" / "s7")
    (classes / "normal" / "30.png").symlink_to(tmp_path / "slides" / "s8" / "30.png")
    assert levels(Folder(path=str(classes)).load(0)) == [
        *PLAIN,
        *((level, "tumour") for level in range(20, 24)),
        (30, "normal"),
    ]
    (tmp_path / "link").symlink_to(classes)
    assert len(Folder(path=str(tmp_path / "link")).load(0)) == 11
    (classes / "third").symlink_to(tmp_path / "slides" / "s8")
    with refused(DataError, file=classes, says="another name"):
        Folder(path=str(classes)).load(0)


@pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "/", "again"])
def test_links_that_lead_back_are_followed_no_further(classes, caplog, target):
    (classes / "tumour" / "again").symlink_to(target)
    picture(classes.parent / "neighbour" / "77.png", 77)
    assert levels(Folder(path=str(classes)).load(0)) == PLAIN
    assert "again" in caplog.text


def test_many_links_are_no_bomb(tmp_path):
    """Ten folders with ten links each to the next one: 10^10 paths."""
    for number in range(10):
        picture(tmp_path / f"d{number}" / f"{number}.png", number)
        for link in range(10):
            (tmp_path / f"d{number}" / f"l{link}").symlink_to(tmp_path / f"d{(number + 1) % 10}")
    assert len(list(walk(tmp_path / "d0", IMAGES))) == 10


def test_a_second_name_within_a_class_is_read_once(classes, caplog):
    os.link(classes / "tumour" / "11.png", classes / "tumour" / "hard.png")
    (classes / "tumour" / "a-link.png").symlink_to("13.png")
    (classes / "tumour" / "nowhere.png").symlink_to("gone.png")
    patches = Folder(path=str(classes), patients=r"/([^/]+)\.png").load(0)
    assert levels(patches) == PLAIN
    assert "13" in patches.groups.tolist() and "a-link" not in patches.groups.tolist(), "the name without a link"
    assert "2 second names" in caplog.text and "1 links that lead nowhere (nowhere.png)" in caplog.text


@pytest.mark.parametrize("how", ["file", "folder", "class", "hard"])
def test_a_file_in_two_classes_is_refused(classes, how):
    if how == "file":
        (classes / "normal" / "x.png").symlink_to("../tumour/11.png")
    elif how == "folder":
        picture(classes / "tumour" / "s1" / "20.png", 20)
        (classes / "normal" / "s1").symlink_to("../tumour/s1")
    elif how == "class":
        (classes / "cancer").symlink_to("tumour")
    else:
        os.link(classes / "tumour" / "11.png", classes / "normal" / "x.png")
    with refused(DataError, file=classes, says="tumour"):
        Folder(path=str(classes)).load(0)


@pytest.mark.parametrize("how", ["same", "inside", "link", "file"])
def test_a_file_on_both_sides_of_the_split_is_refused(classes, tmp_path, how):
    test = tmp_path / "test"
    if how == "same":
        test = classes
    elif how == "inside":
        test = classes / "test"
        picture(test / "normal" / "40.png", 40)
        picture(test / "tumour" / "41.png", 41)
    elif how == "link":
        test.symlink_to(classes)
    else:
        picture(test / "normal" / "40.png", 40)
        (test / "tumour").mkdir()
        (test / "tumour" / "y.png").symlink_to(classes / "tumour" / "11.png")
    with refused(DataError, entry="", says="train"):
        Folder(path=str(classes), test=str(test)).load(0)


def test_links_give_a_place_to_files_that_have_none(classes, caplog):
    for level in (50, 51):
        picture(classes / f"{level}.png", level)
        (classes / ("normal", "tumour")[level % 2] / f"{level}.png").symlink_to(f"../{level}.png")
    (classes / "best.png").symlink_to("tumour/11.png")
    assert levels(Folder(path=str(classes)).load(0)) == [*PLAIN, (50, "normal"), (51, "tumour")]
    assert "3 beside the folders (50.png, 51.png, best.png)" in caplog.text


def test_what_is_no_file_is_not_opened(classes, caplog):
    os.mkfifo(classes / "tumour" / "pipe.png")
    (classes / "tumour" / "null.png").symlink_to("/dev/zero")
    (classes / "tumour" / "folder.png").mkdir()
    assert levels(Folder(path=str(classes)).load(0)) == PLAIN
    assert "2 neither files nor folders (null.png, pipe.png)" in caplog.text


def test_a_folder_that_cannot_be_listed_is_named(classes, monkeypatch):
    listed = os.scandir

    def refuse(path):
        if Path(path).name == "tumour":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with refused(DataError, file=classes / "tumour", says="Permission denied"):
        Folder(path=str(classes)).load(0)


def test_the_account_of_a_walk_without_anything_to_say(classes):
    account = Account()
    assert len(list(walk(classes, IMAGES, account))) == 6 and account == Account()


# The other sources


def test_idc_has_the_same_lister(tmp_path, caplog):
    root = tmp_path / "IDC_regular_ps50_idx5"
    for patient in ("1", "2"):
        for label in "01":
            picture(root / patient / label / f"{patient}_idx5_x1_y{label}_class{label}.png", 50, side=50)
    picture(root / "1" / "1" / "1_idx5_x7_y7_class1.PNG", 51, side=50)
    picture(root / "1" / "1" / "1_idx5_x8_y8_class1.png", 52, side=20)
    picture(tmp_path / "slides" / "0" / "3_idx5_x1_y1_class0.png", 53, side=50)
    (root / "3").symlink_to(tmp_path / "slides")
    for name in ("1/0/._1_idx5_x1_y0_class0.png", "__MACOSX/1/0/x.png", "1/0/notes.txt", "1/overview.png"):
        junk(root / name)
    (root / "1" / "0" / ".ipynb_checkpoints").mkdir()
    (root / "1" / "1" / "more").symlink_to("..")
    patches = Idc(path=str(tmp_path)).load(0)
    assert patches.groups.tolist() == ["1", "1", "1", "2", "2", "3"]
    assert patches.images[:, 0, 0, 0].tolist() == [50, 50, 51, 50, 50, 53]
    (message,) = caplog.messages
    for reason in (
        "3 hidden",
        "1 of other kinds (notes.txt)",
        "1 beside the folders (overview.png)",
        "1 second names (more)",
        "1 cut by the slide's edge (1_idx5_x8_y8_class1.png)",
    ):
        assert reason in message
    (root / "4").symlink_to("1")
    with refused(DataError, file=root, says="4 is another name of 1"):
        Idc(path=str(tmp_path)).load(0)


def test_camelyon17_reads_each_file_once(tmp_path, caplog):
    rows = []
    for number in range(6):
        folder = tmp_path / "patches" / f"patient_{number}_node_0"
        ending = "PNG" if number == 3 else "png"
        picture(folder / f"patch_patient_{number}_node_0_x_{number}_y_0.{ending}", number)
        rows.append(f"{number},{number},0,{number},0,{number % 2},{number % 5}")
    linked = tmp_path / "patches" / "patient_9_node_0" / "patch_patient_9_node_0_x_5_y_0.png"
    linked.parent.mkdir()
    linked.symlink_to("../patient_5_node_0/patch_patient_5_node_0_x_5_y_0.png")
    table = tmp_path / "metadata.csv"
    lines = [",patient,node,x_coord,y_coord,tumor,center", *rows, rows[2], "7,9,0,5,0,1,2"]
    table.write_text("\n".join(lines) + "\n")
    patches = Camelyon17(path=str(tmp_path)).load(0)
    assert patches.images[:, 0, 0, 0].tolist() == list(range(6)) and patches.groups.tolist() == list("012345")
    assert "2 named twice" in caplog.text
    table.write_text("\n".join([*lines, "8,8,0,5,0,1,2", "9,8,0,6,0,1,2"]) + "\n")
    with refused(DataError, says="2 of 10") as caught:
        Camelyon17(path=str(tmp_path)).load(0)
    assert caught.value.problems[0].file.name == "patch_patient_8_node_0_x_5_y_0.png"


def test_npz_finds_the_archive_beside_clutter(tmp_path):
    np.savez(tmp_path / "patches.npz", images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.arange(4) % 2)
    (tmp_path / "patches.npz").rename(tmp_path / "patches.NPZ")
    junk(tmp_path / "._patches.npz")
    junk(tmp_path / "__MACOSX" / "patches.npz")
    assert Npz().model_copy(update={"path": str(tmp_path)}).locate() == tmp_path / "patches.NPZ"


def test_the_account_is_a_warning(classes, caplog):
    junk(classes / "tumour" / "notes.txt")
    Folder(path=str(classes)).load(0)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
