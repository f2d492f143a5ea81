"""Tables that others made, beside images and HDF5 files: what is wrong with them is said in a line."""

from __future__ import annotations

import pytest
from foreigners import PAGE, POINTER, pcam, refuses
from PIL import Image

from fedrobust.data import Camelyon17, Pcam


@pytest.fixture
def camelyon(tmp_path):
    """The lines of the table, and the folder."""
    lines = [",patient,node,x_coord,y_coord,tumor,center"]
    for number in range(6):
        folder = tmp_path / "patches" / f"patient_{number}_node_0"
        folder.mkdir(parents=True)
        Image.new("RGB", (12, 12), (number,) * 3).save(folder / f"patch_patient_{number}_node_0_x_1_y_2.png")
        lines.append(f"{number},{number},0,1,2,{number % 2},{number % 5}")
    return lines, tmp_path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("comma", [",", ", "])
def test_tables_with_a_byte_order_mark(camelyon, encoding, end, comma):
    lines, root = camelyon
    text = end.join(lines).replace(",", comma) + end
    marked = {"utf-16-le-bom": ("utf-16-le", b"\xff\xfe"), "utf-16-be-bom": ("utf-16-be", b"\xfe\xff")}
    name, mark = marked.get(encoding, (encoding, b""))
    # Without its first column, the mark stands before a name that counts.
    for cut in (text, end.join(line.partition(",")[2] for line in text.split(end))):
        (root / "metadata.csv").write_bytes(mark + cut.encode(name))
        Camelyon17(path=str(root)).check()
        assert Camelyon17(path=str(root)).load(0).groups.tolist() == list("012345")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: POINTER.decode(), {"says": "git-lfs"}),
        (lambda text: PAGE.decode(), {"says": "web page"}),
        (lambda text: "", {"says": "empty"}),
        (lambda text: text.replace(",", "|"), {"path": "patient", "says": "column"}),
        (lambda text: text.replace("2,2,0,1,2", "2,,0,1,2"), {"path": "patient", "line": 4}),
        (lambda text: text.replace("2,2,0,1,2", "2,NaN,0,1,2"), {"path": "patient", "says": "1 of 6"}),
        (lambda text: text.replace("2,2,0,1,2", '2,"2,0,1,2'), {"says": "end of data"}),
        (lambda text: text.replace(",1,2,0,2", ",1,2,0,"), {"path": "center", "says": "1 of 6"}),
        (lambda text: text.replace("2,2,0,1,2,0,2", "2,2,0,1"), {"line": 4, "says": "4 cells"}),
        (lambda text: text.replace("2,2,0,1,2,0,2", "2,2,0,1,2,0,2,9"), {"line": 4, "says": "8 cells"}),
        (lambda text: text.splitlines()[0] + "\n", {"line": None, "says": "no rows"}),
        (lambda text: text.replace("tumor", "a\x1b[2Jb"), {"path": "tumor", "says": "column"}),
    ],
)
def test_tables_that_are_damaged(camelyon, change, problem):
    lines, root = camelyon
    (root / "metadata.csv").write_text(change("\n".join(lines) + "\n"))
    refuses(Camelyon17(path=str(root)), file=root / "metadata.csv", **problem)


def test_a_table_that_names_a_file_that_no_terminal_should_see(camelyon):
    lines, root = camelyon
    (root / "metadata.csv").write_text("\n".join(lines) + "\n6,\x1b[2J,0,1,2,0,1\n")
    absent = "patient_\x1b[2J_node_0/patch_patient_\x1b[2J_node_0_x_1_y_2.png"
    refuses(Camelyon17(path=str(root)), file=root / "patches" / absent, says="1 of 7")


def test_a_table_in_another_encoding_or_a_folder(camelyon):
    lines, root = camelyon
    (root / "metadata.csv").write_bytes(("\n".join(lines) + "\n7,Müller,0,1,2,0,1\n").encode("latin-1"))
    refuses(Camelyon17(path=str(root)), file=root / "metadata.csv", says="utf-8")
    (root / "metadata.csv").unlink()
    (root / "metadata.csv").mkdir()
    refuses(Camelyon17(path=str(root)), file=root, says="`path`")


def test_slides_of_pcam(tmp_path):
    pcam(tmp_path)
    for part, count in zip(("train", "valid", "test"), (8, 4, 4), strict=True):
        rows = "".join(f"{number},{part}-{number}\n" for number in range(count))
        (tmp_path / f"camelyonpatch_level_2_split_{part}_meta.csv").write_bytes(f"\ufeffn,wsi\n{rows}".encode())
    assert Pcam(path=str(tmp_path)).load(0).groups[8] == "valid-0"
    table = tmp_path / "camelyonpatch_level_2_split_test_meta.csv"
    table.write_text("n,wsi\n" + "0,\n1,s\n2,NA\n3,t\n")
    refuses(Pcam(path=str(tmp_path)), file=table, path="wsi", says="2 of 4")
