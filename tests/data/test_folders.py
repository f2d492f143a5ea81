from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refused import refused

from fedrobust.data import Camelyon17, Folder, Idc, Split
from fedrobust.errors import DataError


@pytest.fixture(autouse=True)
def _no_data_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("FEDROBUST_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def on_white(array: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8 as seen on a white ground, worked out in whole numbers."""
    alpha = array[..., 3:].astype(int)
    return ((2 * (array[..., :3].astype(int) * alpha + 255 * (255 - alpha)) + 255) // 510).astype(np.uint8)


# idc


def idc_file(root: Path, patient: str, x: int, y: int, label: int, side=(50, 50), seed=None) -> np.ndarray:
    array = pixels(x * 1000 + y if seed is None else seed, side[1], side[0], 3)
    picture(root / patient / str(label) / f"{patient}_idx5_x{x}_y{y}_class{label}.png", array)
    return array


@pytest.fixture
def idc(tmp_path):
    root = tmp_path / "breast" / "IDC_regular_ps50_idx5"
    kept = [idc_file(root, patient, 51 * i, 101, i % 2) for patient in ("10253", "8863") for i in range(1, 4)]
    edge = idc_file(root, "8863", 3000, 1, 0, side=(50, 20))
    return root, kept, edge


def test_idc_reads_patients_and_labels_from_names_and_drops_the_edges(idc, monkeypatch):
    root, _, _ = idc
    patches = Idc(path=str(root)).load(0)
    assert patches.images.shape == (6, 50, 50, 3) and patches.label_names == ("no IDC", "IDC")
    assert patches.groups.tolist() == ["10253"] * 3 + ["8863"] * 3
    assert patches.labels.tolist() == [0, 1, 1, 0, 1, 1]
    assert np.array_equal(patches.images[0], pixels(51 * 2 * 1000 + 101, 50, 50, 3))
    monkeypatch.setenv("FEDROBUST_DATA", str(root.parent))  # the folder above, as Kaggle unpacks it
    assert Idc().load(0).digest == patches.digest and Idc().found() == str(root)


def test_idc_pads_the_edges_when_asked(idc):
    root, _, edge = idc
    patches = Idc(path=str(root), edges="pad").load(0)
    padded = patches.images[4]
    assert len(patches) == 7 and np.array_equal(padded[:20], edge) and (padded[20:] == 255).all()


def test_idc_limit_and_size(idc):
    root, _, _ = idc
    some = Idc(path=str(root), limit=4, size=32, edges="pad").load(1)
    assert some.images.shape == (4, 32, 32, 3) and set(some.labels) == {0, 1}


def test_idc_with_limit_opens_no_more_files_than_it_needs(idc, monkeypatch):
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda file, *rest: opened.append(file) or real(file, *rest))
    Idc(path=str(idc[0]), limit=3).load(0)
    assert len(opened) == 3
    opened.clear()
    Idc(path=str(idc[0])).load(0)
    assert len(opened) == len(set(opened)) == 7


def test_idc_refuses_files_in_the_wrong_place_and_broken_ones(idc):
    root, _, _ = idc
    wrong = root / "10253" / "1" / "10253_idx5_x1_y1_class0.png"
    picture(wrong, pixels(0, 50, 50, 3))
    with refused(DataError, file=wrong, says="10253_idx5_xX_yY_class1.png"):
        Idc(path=str(root)).load(0)
    wrong.unlink()
    broken = root / "10253" / "1" / "10253_idx5_x1_y1_class1.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n half a picture")
    with refused(DataError, file=broken, says="image"):
        Idc(path=str(root)).load(0)
    picture(broken, pixels(0, 60, 50, 3))
    with refused(DataError, file=broken, says="50 x 60"):
        Idc(path=str(root)).load(0)


# folder


def test_folder_reads_classes_in_order_of_name(tmp_path):
    tissue = {"TUM": 3, "ADI": 2, "LYM": 1}
    for name, count in tissue.items():
        for i in range(count):
            picture(tmp_path / name / f"{name}-{i}.tif", pixels(ord(name[0]) + i, 24, 24, 3))
    (tmp_path / ".cache").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "ADI" / "notes.txt").write_text("no image")
    patches = Folder(path=str(tmp_path)).load(0)
    assert patches.label_names == ("ADI", "LYM", "TUM") and patches.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert np.array_equal(patches.images[2], pixels(ord("L"), 24, 24, 3))
    assert patches.groups is None and patches.split is None


def test_folder_reads_breakhis_with_patients_and_one_magnification(tmp_path):
    root = tmp_path / "BreaKHis_v1" / "histology_slides" / "breast"
    slides = {"benign/SOB/adenosis/SOB_B_A_14-22549AB": "SOB_B_A-14-22549AB",
              "benign/SOB/fibroadenoma/SOB_B_F_14-9133": "SOB_B_F-14-9133",
              "malignant/SOB/ductal_carcinoma/SOB_M_DC_14-2523": "SOB_M_DC-14-2523"}  # fmt: skip
    for folder, stem in slides.items():
        for zoom in (40, 200):
            for i in (1, 2):
                picture(root / folder / f"{zoom}X" / f"{stem}-{zoom}-00{i}.png", pixels(i, 46, 70, 3))
    source = Folder(path=str(root), files="**/200X/*.png", patients="SOB_[BM]_[A-Z]+_([^/]+)/", size=23)
    patches = source.load(0)
    assert patches.images.shape == (6, 23, 23, 3) and patches.label_names == ("benign", "malignant")
    assert patches.groups.tolist() == ["14-22549AB"] * 2 + ["14-9133"] * 2 + ["14-2523"] * 2
    square = Folder(path=str(root), files="**/200X/*.png").load(0).images
    assert np.array_equal(square[0], pixels(1, 46, 70, 3)[:, 12:58])  # the central square
    picture(tmp_path / "tall" / "a" / "1.png", pixels(2, 30, 20, 3))
    picture(tmp_path / "tall" / "b" / "1.png", pixels(3, 20, 20, 3))
    assert np.array_equal(Folder(path=str(tmp_path / "tall")).load(0).images[0], pixels(2, 30, 20, 3)[5:25])
    with refused(DataError, path="patients", found="'patient_([0-9]+)'", says="benign/SOB"):
        source.model_copy(update={"patients": "patient_([0-9]+)"}).load(0)


def test_folder_with_an_official_test_folder(tmp_path):
    for set_name, count in (("NCT-CRC-HE-100K", 8), ("CRC-VAL-HE-7K", 3)):
        for label, name in enumerate(("ADI", "BACK")):
            for i in range(count):
                picture(tmp_path / set_name / name / f"{i}.tif", np.full((16, 16, 3), 100 * label, np.uint8))
    train, test = tmp_path / "NCT-CRC-HE-100K", tmp_path / "CRC-VAL-HE-7K"
    patches = Folder(path=str(train), test=str(test)).load(0)
    assert patches.split.tolist() == ["train"] * 16 + ["test"] * 6
    assert np.array_equal(patches.images[:, 0, 0, 0], 100 * patches.labels)
    assert [len(i) for i in Split(by="official", validation=0.25).indices(patches, 0).values()] == [12, 4, 6]
    picture(test / "OTHER" / "1.tif", pixels(0, 16, 16, 3))
    with refused(DataError, file=test, found="ADI, BACK, OTHER", allowed=("ADI", "BACK")):
        Folder(path=str(train), test=str(test)).check()


def test_folder_makes_rgb_of_grey_and_transparent_images_and_wants_one_size(tmp_path):
    picture(tmp_path / "a" / "grey.png", pixels(0, 16, 16))
    picture(tmp_path / "b" / "clear.png", pixels(1, 16, 16, 4))
    images = Folder(path=str(tmp_path)).load(0).images
    assert np.array_equal(images[0], np.repeat(pixels(0, 16, 16, 1), 3, axis=2))
    assert np.array_equal(images[1], on_white(pixels(1, 16, 16, 4)))
    picture(tmp_path / "b" / "large.jpg", np.full((64, 64, 3), 200, np.uint8))
    with refused(DataError, file=tmp_path / "b" / "large.jpg", says="64 pixels, the files before it 16"):
        Folder(path=str(tmp_path)).load(0)
    resized = Folder(path=str(tmp_path), size=16).load(0).images
    assert resized.shape == (3, 16, 16, 3) and np.abs(resized[2].astype(int) - 200).max() <= 2


@pytest.mark.parametrize("pattern", ["no group", "(two)(groups)", "(broken"])
def test_folder_wants_a_regular_expression_with_one_group(pattern):
    with refused(path="patients", says="expression" if pattern == "(broken" else "group"):
        Folder(patients=pattern)


# camelyon17


@pytest.fixture
def camelyon(tmp_path):
    root = tmp_path / "wilds" / "camelyon17_v1.0"
    rows = []
    for number in range(40):
        centre, patient, node = number % 5, f"{number % 10:03d}", number % 2
        x, y = 10 * number, 7 * number
        rows.append(f"{number},{patient},{node},{x},{y},{number // 5 % 2},{number % 10},{centre},{number % 2}")
        folder = root / "patches" / f"patient_{patient}_node_{node}"
        picture(folder / f"patch_patient_{patient}_node_{node}_x_{x}_y_{y}.png", pixels(number, 96, 96, 4))
    header = ",patient,node,x_coord,y_coord,tumor,slide,center,split"
    (root / "metadata.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


def test_camelyon17_reads_patients_hospitals_and_the_official_split(camelyon, monkeypatch):
    monkeypatch.setenv("FEDROBUST_DATA", str(camelyon.parent))
    patches = Camelyon17().load(0)
    assert patches.images.shape == (40, 96, 96, 3)
    assert np.array_equal(patches.images[13], on_white(pixels(13, 96, 96, 4)))
    assert patches.groups[13] == "003" and patches.centres.tolist() == [str(i % 5) for i in range(40)]
    assert patches.labels.tolist() == [i // 5 % 2 for i in range(40)]
    indices = Split(by="official").indices(patches, 0)
    assert {name: set(patches.centres[index]) for name, index in indices.items()} == {
        "train": {"0", "3", "4"},
        "validation": {"1"},
        "test": {"2"},
    }


def test_camelyon17_limit_reads_only_what_it_needs(camelyon, monkeypatch):
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda file, *rest: opened.append(file) or real(file, *rest))
    patches = Camelyon17(path=str(camelyon), limit=10, size=32).load(0)
    assert len(opened) == 10 and patches.images.shape == (10, 32, 32, 3)
    assert set(patches.centres) == set("01234") and set(patches.labels) == {0, 1}


def test_damaged_camelyon17_is_refused(camelyon):
    table = camelyon / "metadata.csv"
    whole = table.read_text()
    absent = camelyon / "patches" / "patient_000_node_0" / "patch_patient_000_node_0_x_0_y_0.png"
    absent.unlink()
    with refused(DataError, file=absent, says="exist"):
        Camelyon17(path=str(camelyon)).load(0)
    table.write_text(whole.replace("tumor", "label"))
    with refused(DataError, file=table, path="tumor", says="column"):
        Camelyon17(path=str(camelyon)).check()
    table.write_text(whole.splitlines()[0] + "\n0,000,0,0,0,maybe,0,0,0\n")
    with refused(DataError, file=table, path="tumor", says="0 and 1"):
        Camelyon17(path=str(camelyon)).load(0)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (
            "slide",
            {},
            "slide: does not exist, and `path` names it; did you mean 'slides'? `path` or FEDROBUST_DATA must",
        ),
        ("slides/normal", {}, "normal: holds image files itself, where one folder for each class is due, and `path`"),
        ("slides", {"files": "tumour*"}, "slides: holds only one class, tumour, and `path` names it; `path` or"),
        (
            "slides",
            {"files": "*/200X/*"},
            "slides: holds no images that `files` (*/200X/*) matches, and `path` names it",
        ),
        (
            "empty",
            {},
            "empty: does not hold the data, and `path` names it; `path` or FEDROBUST_DATA must name a folder",
        ),
    ],
)
def test_a_folder_that_is_not_one_of_classes_says_what_it_is(tmp_path, name, options, said):
    for label in ("normal", "tumour"):
        picture(tmp_path / "slides" / label / f"{label}1.png", pixels(1, 20, 20, 3))
    (tmp_path / "empty").mkdir()
    with refused(DataError, path="") as caught:
        Folder(path=str(tmp_path / name), **options).load(0)
    assert said in str(caught.value)
