"""Image files are read as they look, or refused by name. What is expected is worked out here, byte by byte."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from refused import refused

from fedrobust.data.pixels import decode, rgb
from fedrobust.errors import DataError

SIDE = 8


def values(seed: int, *shape: int, top: int = 255) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top + 1, shape)


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours (H, W, 3) with alpha (H, W) of 255 on white, rounded to the nearest."""
    share = alpha[..., None]
    return np.rint((colours * share + 255 * (255 - share)) / 255).astype(int)


def grey(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels[..., None], 3, axis=2)


def png(path: Path, depth: int, colour: int, samples: np.ndarray, **chunks: bytes) -> Path:
    """Write a PNG; samples (H, W, channels) are packed big-endian, `depth` bits each."""
    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1)
    bits = (rows[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    packed = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    lines = b"".join(b"\0" + row.tobytes() for row in packed)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    inner = b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    whole = chunk(b"IHDR", header) + inner + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + whole)
    return path


def tiff(path: Path, samples: np.ndarray, photometric: int, order: str = "<", **tags: int) -> Path:
    """Write a TIFF of one strip; samples (H, W) or (H, W, channels), or with `planes=2` (channels, H, W)."""
    planes = tags.pop("planes", 1)
    shape = samples.shape if planes == 1 else (*samples.shape[1:], len(samples))
    channels = shape[2] if len(shape) == 3 else 1
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    depth = samples.dtype.itemsize * 8
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    plain = {256: shape[1], 257: shape[0], 259: 1, 262: photometric, 277: channels, 278: shape[0], 284: planes}
    plain |= {339: kind} | ({338: tags["extra"]} if "extra" in tags else {})
    plain |= {274: tags["orientation"]} if "orientation" in tags else {}
    entries = {tag: (3, 1, struct.pack(f"{order}HH", value, 0)) for tag, value in plain.items()}
    parts = channels if planes == 2 else 1
    after = 8 + 2 + 12 * (len(entries) + 3) + 4
    offsets, tail = [after + part * len(data) // parts for part in range(parts)], data
    lengths = [len(data) // parts] * parts
    bits = struct.pack(f"{order}{channels}H", *[depth] * channels)

    def entry(kind: int, packed: bytes, count: int) -> tuple[int, int, bytes]:
        nonlocal tail
        if len(packed) <= 4:
            return kind, count, packed.ljust(4, b"\0")
        tail += packed
        return kind, count, struct.pack(f"{order}I", after + len(tail) - len(packed))

    entries[258] = entry(3, bits, channels)
    entries[273] = entry(4, struct.pack(f"{order}{parts}I", *offsets), parts)
    entries[279] = entry(4, struct.pack(f"{order}{parts}I", *lengths), parts)
    directory = b"".join(
        struct.pack(f"{order}HHI", tag, *entries[tag][:2]) + entries[tag][2] for tag in sorted(entries)
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    path.write_bytes(head + struct.pack(f"{order}H", len(entries)) + directory + struct.pack(f"{order}I", 0) + tail)
    return path


def read(file: Path) -> np.ndarray:
    return decode([file], None).images[0].astype(int)


def refusal(file: Path) -> str:
    with refused(DataError, file=file) as caught:
        read(file)
    return caught.value.problems[0].message


# PNG


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("keyed", [False, True])
def test_grey_png(tmp_path, depth, keyed):
    top = 2**depth - 1
    levels = values(1, SIDE, SIDE, top=top)
    key = int(levels[3, 4])
    chunks = {"tRNS": struct.pack(">H", key)} if keyed else {}
    seen = np.rint(levels * 255 / top).astype(int)
    if keyed:
        seen[levels == key] = 255
    assert np.array_equal(read(png(tmp_path / "a.png", depth, 0, levels, **chunks)), grey(seen))


@pytest.mark.parametrize("keyed", [False, True])
def test_rgb_png(tmp_path, keyed):
    colours = values(2, SIDE, SIDE, 3)
    colours[5, 5, :2] = colours[3, 4, :2]  # only nearly the same colour
    chunks = {"tRNS": struct.pack(">HHH", *colours[3, 4])} if keyed else {}
    seen = colours.copy()
    if keyed:
        seen[3, 4] = 255
    assert np.array_equal(read(png(tmp_path / "a.png", 8, 2, colours, **chunks)), seen)


def test_png_of_sixteen_bits_a_channel(tmp_path):
    colours = values(3, SIDE, SIDE, 3, top=65535)
    file = png(tmp_path / "a.png", 16, 2, colours)
    assert np.abs(read(file) - colours / 257).max() <= 1
    alpha = values(4, SIDE, SIDE, top=65535)
    file = png(tmp_path / "a.png", 16, 6, np.dstack([colours, alpha]))
    assert np.abs(read(file) - on_white(colours / 257, alpha / 257)).max() <= 2
    file = png(tmp_path / "a.png", 16, 4, np.dstack([colours[..., 0], alpha]))
    assert np.abs(read(file) - on_white(grey(colours[..., 0]) / 257, alpha / 257)).max() <= 2
    assert "16 bits a channel" in refusal(png(tmp_path / "a.png", 16, 2, colours, tRNS=bytes(6)))


def test_png_with_alpha(tmp_path):
    pixels = values(5, SIDE, SIDE, 4)
    seen = on_white(pixels[..., :3], pixels[..., 3])
    assert np.array_equal(read(png(tmp_path / "a.png", 8, 6, pixels)), seen)
    seen = on_white(grey(pixels[..., 0]), pixels[..., 3])
    assert np.array_equal(read(png(tmp_path / "a.png", 8, 4, pixels[..., [0, 3]])), seen)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("alphas", [None, [0], [255, 0], [10, 200]])
def test_png_with_a_palette(tmp_path, depth, alphas):
    colours = values(6, 2**depth, 3)
    index = values(7, SIDE, SIDE, top=2**depth - 1)
    chunks = {"PLTE": colours.astype(np.uint8).tobytes()} | ({} if alphas is None else {"tRNS": bytes(alphas)})
    alpha = np.full(2**depth, 255)
    alpha[: len(alphas or ())] = alphas or ()
    file = png(tmp_path / "a.png", depth, 3, index, **chunks)
    assert np.array_equal(read(file), on_white(colours[index], alpha[index]))


def test_what_is_transparent_everywhere_is_no_patch(tmp_path):
    pixels = values(8, SIDE, SIDE, 4)
    pixels[..., 3] = 0
    assert "transparent everywhere" in refusal(png(tmp_path / "a.png", 8, 6, pixels))
    assert (read(png(tmp_path / "a.png", 8, 6, np.zeros_like(pixels))) == 255).all(), "where a slide ends"


# TIFF


@pytest.mark.parametrize("order", ["<", ">"])
def test_grey_tiff(tmp_path, order):
    levels = values(9, SIDE, SIDE, top=65535).astype(np.uint16)
    seen = grey(np.rint(levels / 257).astype(int))
    assert np.array_equal(read(tiff(tmp_path / "a.tif", levels, 1, order)), seen)
    small = values(9, SIDE, SIDE).astype(np.uint8)
    assert np.array_equal(read(tiff(tmp_path / "a.tif", small, 1, order)), grey(small.astype(int)))
    assert np.array_equal(read(tiff(tmp_path / "a.tif", small, 0, order)), grey(255 - small.astype(int)))


def test_tiff_whose_white_is_zero(tmp_path):
    levels = values(9, SIDE, SIDE, top=65535).astype(np.uint16)
    seen = read(tiff(tmp_path / "a.tif", levels, 0))
    assert np.array_equal(seen, grey(255 - np.rint(levels / 257).astype(int)))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["f4", "i4", "u4", "i2", "i1", "f8", "u8"])
def test_numbers_without_a_range_are_refused(tmp_path, kind, order):
    text = refusal(tiff(tmp_path / "a.tif", values(10, SIDE, SIDE, top=100).astype(kind), 1, order))
    assert "range is not known" in text or "not a readable image" in text


def test_tiff_of_three_and_four_channels(tmp_path):
    pixels = values(11, SIDE, SIDE, 4).astype(np.uint8)
    colours, alpha = pixels[..., :3].astype(int), pixels[..., 3].astype(int)
    assert np.array_equal(read(tiff(tmp_path / "a.tif", pixels[..., :3], 2)), colours)
    assert np.array_equal(read(tiff(tmp_path / "a.tif", pixels, 2, extra=2)), on_white(colours, alpha))
    assert np.array_equal(read(tiff(tmp_path / "a.tif", pixels, 2, extra=0)), colours), "the fourth says nothing"
    multiplied = np.dstack([np.rint(colours * alpha[..., None] / 255), alpha]).astype(np.uint8)
    found = read(tiff(tmp_path / "a.tif", multiplied, 2, extra=1))
    assert np.abs(found - (multiplied[..., :3].astype(int) + 255 - alpha[..., None])).max() <= 1
    ink = 255 - pixels.astype(int)
    seen = (ink[..., :3] * ink[..., 3:]) / 255
    assert np.abs(read(tiff(tmp_path / "a.tif", pixels, 5)) - seen).max() <= 1
    assert "CIELAB" in refusal(tiff(tmp_path / "a.tif", pixels[..., :3], 8))


def test_tiff_in_planes(tmp_path):
    pixels = values(12, 3, SIDE, SIDE, top=65535).astype(np.uint16)
    seen = read(tiff(tmp_path / "a.tif", (pixels >> 8).astype(np.uint8), 2, planes=2))
    assert np.array_equal(seen, np.moveaxis(pixels >> 8, 0, 2))
    assert "planes" in refusal(tiff(tmp_path / "a.tif", pixels, 2, planes=2))


# Every mode that Pillow has

COLOUR = (200, 30, 90)
MODES = {
    "1": (255, (255, 255, 255)),
    "L": (77, (77, 77, 77)),
    "LA": ((100, 51), (224, 224, 224)),
    "La": ((20, 51), (224, 224, 224)),
    "P": (1, COLOUR),
    "PA": ((1, 51), tuple(on_white(np.array([[COLOUR]]), np.array([[51]]))[0, 0])),
    "RGB": (COLOUR, COLOUR),
    "RGBA": ((*COLOUR, 51), tuple(on_white(np.array([[COLOUR]]), np.array([[51]]))[0, 0])),
    "RGBa": ((40, 6, 18, 51), (244, 210, 222)),
    "RGBX": ((*COLOUR, 51), COLOUR),
    "CMYK": ((55, 225, 165, 0), COLOUR),
    "YCbCr": ((128, 128, 128), (128, 128, 128)),
    "HSV": ((0, 255, 200), (200, 0, 0)),
    "I;16": (65535, (255, 255, 255)),
    "I;16L": (0x1234, (18, 18, 18)),
    "I;16B": (0x8080, (128, 128, 128)),
    "I": None,
    "F": None,
    "LAB": None,
}


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode):
    pixel = MODES[mode]
    image = Image.new(mode, (2, 2), 0 if pixel is None or mode in ("P", "PA") else pixel[0])
    if mode in ("P", "PA"):
        image.putpalette([0, 0, 0, *COLOUR])
        image.paste(pixel[0], (0, 0, 2, 2))
    if pixel is None:
        with pytest.raises(ValueError, match=f"mode {mode}"):
            rgb(image)
        return
    seen = rgb(image)
    assert seen.mode == "RGB" and np.abs(np.array(seen)[1, 1].astype(int) - pixel[1]).max() <= 1


def test_palettes_with_alpha_of_their_own():
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 255, *COLOUR, 51], "RGBA")
    assert np.array(rgb(image))[0, 0].tolist() == list(MODES["RGBA"][1])


# What else a file may hold


def test_an_image_is_read_as_it_is_held(tmp_path):
    pixels = values(13, SIDE, SIDE, 3).astype(np.uint8)
    turned = {1: pixels, 3: pixels[::-1, ::-1], 6: np.rot90(pixels, -1), 8: np.rot90(pixels), 5: pixels.swapaxes(0, 1)}
    for orientation, seen in turned.items():
        note = Image.Exif()
        note[274] = orientation
        Image.fromarray(pixels).save(tmp_path / "a.png", exif=note)
        assert np.array_equal(read(tmp_path / "a.png"), seen)
        assert np.array_equal(read(tiff(tmp_path / "a.tif", pixels, 2, orientation=orientation)), seen)
    Image.fromarray(pixels).save(tmp_path / "b.png", exif=b"Exif\0\0no such note")
    assert np.array_equal(read(tmp_path / "b.png"), pixels)


@pytest.mark.parametrize("kind", ["gif", "tif", "png"])
def test_several_images_in_a_file_are_no_patch(tmp_path, kind):
    frames = [Image.new("L", (SIDE, SIDE), level) for level in (10, 90, 200)]
    frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:])
    assert "holds 3 images" in refusal(tmp_path / f"a.{kind}")
    frames[1].save(tmp_path / f"b.{kind}")
    assert (read(tmp_path / f"b.{kind}") == 90).all()


def test_a_photograph_with_its_preview_is_one_image(tmp_path):
    frames = [Image.new("RGB", (SIDE, SIDE), (level,) * 3) for level in (90, 200)]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert np.abs(read(tmp_path / "a.jpg") - 90).max() <= 2


@pytest.mark.parametrize("side", [9000, 14_000, 50_000])
def test_an_overview_among_the_patches_is_named_and_not_decoded(tmp_path, side, monkeypatch):
    file = png(tmp_path / "overview.png", 1, 0, np.zeros((1, 1, 1), int))
    whole = bytearray(file.read_bytes())
    whole[16:24] = struct.pack(">II", side, side)
    whole[29:33] = struct.pack(">I", zlib.crc32(bytes(whole[12:29])))
    file.write_bytes(whole)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    assert "leave overview images out" in refusal(file)


def test_a_file_of_another_format_is_not_even_tried(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    assert "not a readable image" in refusal(tmp_path / "a.png")


def made(kind: str, folder: Path) -> bytes:
    colours = Image.fromarray(values(14, SIDE, SIDE, 3).astype(np.uint8))
    image = colours.quantize(16) if kind == "gif" else colours
    image.save(folder / f"whole.{kind}")
    return (folder / f"whole.{kind}").read_bytes()


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "bmp", "gif"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_read_or_refused_in_a_line(tmp_path, kind, data):
    whole = bytearray(made(kind, tmp_path))
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path / f"a.{kind}"
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        decode([file], 16)
    except DataError as error:
        assert str(file) in str(error) and "\n" not in str(error)
