"""From image files to patches: every kind of pixel is read correctly, or refused with its name."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3

from fedrobust.data.cache import CROWDED, cache_folder, kept
from fedrobust.data.foreign import reading, require_memory
from fedrobust.data.patches import Decoded
from fedrobust.errors import DataError, Problem
from fedrobust.machine import usable_cores
from fedrobust.progress import LongWork

if TYPE_CHECKING:
    from PIL.Image import Image

    Accept = Callable[[Image], Image | None]
    Block = list[np.ndarray | DataError | None]

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF")
"""Formats of image files, whatever their extension."""
LARGEST = 2**26
"""Most pixels of an image that is accepted as a patch: 8192 x 8192."""

MANY = 1000
"""So many files are worth an entry in the cache: decoding them takes longer than checking it."""
BLOCK = 2**24
"""About how many bytes of patches a thread decodes at a time."""

_VERSION = 1  # part of the key of the cache: raise it when results change
_TOO_LARGE = f"where a patch has {LARGEST:,} at most: leave overview images out"
_REFUSED = {
    "F": "floating-point numbers, whose range is not known",
    "I": "32-bit or signed integers, whose range is not known",
    "LAB": "CIELAB colours",
}
_SAMPLES, _PHOTOMETRIC, _BITS, _PLANES = 339, 262, 258, 284
"""Tags of TIFF."""


def rgb(image: Image) -> Image:
    """The image in mode RGB, 8 bits a channel, upright (EXIF), as it looks on a white ground; `image` is used up.

    - Transparent pixels become white: alpha channels, premultiplied ones too, palettes with alpha, and the one
      transparent colour of PNG and GIF.
    - 16-bit grey is scaled by its range, 65535 to 255 (12-bit: 4095); of 16 bits a channel the upper 8 are kept.
    - CMYK, YCbCr and HSV are converted without colour profiles.

    Raises `ValueError`, with the reason, for images that cannot be read like this: floating-point numbers, 32-bit or
    signed integers, CIELAB, several images in a file, an image that is transparent everywhere, and one of more than
    `LARGEST` pixels.
    """
    from PIL import Image as Images
    from PIL import ImageOps

    if image.width * image.height > LARGEST:
        raise ValueError(f"{image.width} x {image.height} pixels, {_TOO_LARGE}")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a photograph, with a preview behind it
        raise ValueError(f"it holds {frames} images, a patch is one")
    raw = _raw(image)
    inverted, top = _tiff(image, raw)
    image.load()
    with suppress(Exception):  # a damaged EXIF orientation
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode in _REFUSED:
        raise ValueError(f"its pixels are {_REFUSED[image.mode]} (mode {image.mode})")
    clear = _clear(image, raw)
    if image.mode.startswith("I;16"):
        scaled = np.rint(np.asarray(image).astype(np.float64) * (255 / top)).astype(np.uint8)
        image = Images.fromarray(255 - scaled if inverted else scaled)
    elif clear is None and image.has_transparency_data:
        whole = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        *colours, alpha = whole.getextrema()
        if alpha == (0, 0) and any(low != high for low, high in colours):  # type: ignore[misc]
            raise ValueError("it is transparent everywhere, with an image beneath")
        white = Images.new("RGBA", whole.size, "white")
        return Images.alpha_composite(white, whole).convert("RGB")
    image.info.pop("transparency", None)
    seen = image.convert("RGB")
    if clear is not None:
        seen.paste((255, 255, 255), mask=Images.fromarray(clear))
    return seen


def _raw(image: Image) -> str:
    """The layout of the pixels in the file of an image that is not decoded yet, in Pillow's words."""
    tiles: Any = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _tiff(image: Image, raw: str) -> tuple[bool, int]:
    """Whether 16-bit grey is white at 0, and the top of its range; refuses what Pillow reads wrongly."""
    if image.format != "TIFF":
        return False, 65535
    tags: Any = getattr(image, "tag_v2", {})
    if 2 in tags.get(_SAMPLES, ()):
        raise ValueError("its pixels are signed integers, whose range is not known")
    bits = max(tags.get(_BITS, (1,)))
    tiles: Any = getattr(image, "tile", None)
    if bits > 8 and tags.get(_PLANES) == 2 and tiles and tiles[0][0] == "raw":
        raise ValueError(f"its channels of {bits} bits lie in planes of their own, without compression")
    return tags.get(_PHOTOMETRIC) == 0, 4095 if raw == "I;12" else 65535


def _clear(image: Image, raw: str) -> np.ndarray | None:
    """(H, W) bool: where a grey or RGB image has its transparent colour; None if it has none."""
    key = image.info.get("transparency")
    if key is None or image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa"):
        return None
    if raw.startswith("RGB;16"):
        raise ValueError("it has 16 bits a channel, and a transparent colour")
    pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
    # A PNG gives the colour in its own bits, and pixels come scaled.
    scale = {"L;2": 85, "L;4": 17}.get(raw, 1)
    colour = np.atleast_1d(np.array(key, dtype=np.int64)) * scale
    if pixels.dtype == np.uint8:
        colour &= 255
    return np.asarray((pixels.reshape(*pixels.shape[:2], -1) == colour).all(axis=2))


def square(image: Image, size: int | None) -> np.ndarray:
    """(size, size, 3) uint8 RGB: the central square of an image; see `rgb` for conversion and errors.

    size: pixels a side to resize to; None keeps the size.
    """
    from PIL.Image import Resampling

    if size is not None:
        image.draft("RGB", (size, size))  # a JPEG may be decoded at a half, quarter or eighth, if still >= size
    seen = rgb(image)
    side = min(seen.size)
    if seen.width != seen.height:
        left, top = (seen.width - side) // 2, (seen.height - side) // 2
        seen = seen.crop((left, top, left + side, top + side))
    if size is not None and side != size:
        seen = seen.resize((size, size), Resampling.BILINEAR)
    return np.asarray(seen)


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """Resize square patches to (N, size, size, 3), antialiased.

    images: (N, S, S, 3) uint8.
    size: pixels a side.

    Raises `DataError` if memory cannot hold them.
    """
    from PIL import Image

    require_memory(f"{len(images)} patches of {size} x {size} pixels", 3 * len(images) * size**2, CROWDED)
    return np.stack([square(Image.fromarray(image), size) for image in images])


def decode(
    files: Sequence[Path],
    size: int | None,
    accept: Accept = lambda image: image,
    skip: bool = False,
    rule: str = "",
) -> Decoded:
    """The images of the files, each read once, by several threads.

    files: paths.
    size: S, to which images are resized; None keeps their size.
    accept: gets each opened image before it is decoded, and may change it or return None to leave it out. It is called
        in several threads.
    skip: leave out files that are no images or cannot be read (see `rgb`), instead of refusing the first one.
    rule: a text that tells everything that decides what `accept` does.

    `MANY` files and more are kept in the cache, if there is one (`keeping_in`): see `fedrobust.data.cache`.

    Raises `DataError` for such a file unless `skip`, for sizes that differ while `size` is None, if memory cannot hold
    all images, and if no file is left.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters is raised as an error here
    folder, name = cache_folder() if len(files) >= MANY else None, ""
    if size is not None:
        held = len(files) if folder is None else 1
        require_memory(f"{len(files)} patches of {size} x {size} pixels", 3 * held * size**2, CROWDED)
    if folder is not None:
        try:
            name = f"decoded-{files_key(files, size, skip, rule)}"
        except OSError:  # a file is missing: reading it says so
            folder = None
    found = kept(folder, name, len(files), partial(_decoded, files, size, accept, skip))
    about = found.about
    positions = np.arange(len(files)) if about["kept"] is None else np.array(about["kept"], dtype=np.int64)
    return Decoded(found.array, positions, tuple(about["unreadable"]), tuple(about["notes"]))


def files_key(files: Sequence[Path], *options: Any) -> str:
    """A digest of what decides the patches that are read from files: each file's path, size and time of change, and the
    options, as texts.

    Raises `OSError` if a file is missing.
    """
    import PIL

    read = blake3(" ".join(map(str, (_VERSION, PIL.__version__, *options))).encode())
    for file in files:
        status = file.stat()
        named = f"\0{file.absolute()}\0{status.st_size} {status.st_mtime_ns}"
        read.update(named.encode(errors="surrogateescape"))
    return read.hexdigest()[:32]


def _decoded(
    files: Sequence[Path], size: int | None, accept: Accept, skip: bool, add: Callable[[np.ndarray], None]
) -> dict[str, Any]:
    """Decode the files, in their order; returns what `decode` needs besides the images."""
    kept_files: list[int] = []
    faults: dict[int, DataError] = {}
    side, work = 0, LongWork("reading the data", len(files), "images")
    for start, found in _blocks(files, partial(_read_block, size=size, accept=accept, skip=skip)):
        rows = []
        for position, pixels in enumerate(found, start):
            if isinstance(pixels, DataError):
                if not skip:
                    raise pixels
                faults[position] = pixels
            elif pixels is not None:
                side = side or len(pixels)
                if len(pixels) != side:
                    reason = f"gives a square of {len(pixels)} pixels, the files before it {side}: set `size`"
                    raise DataError(Problem(reason).at(files[position]))
                rows.append(pixels)
                kept_files.append(position)
        if rows:
            add(np.stack(rows))
        work.reached(start + len(found))
    notes = [_unreadable([*faults.values()], len(files))] if faults else []
    if not kept_files:
        raise DataError("; ".join([f"none of the {len(files)} image files is usable", *notes]))
    return {
        "kept": None if len(kept_files) == len(files) else kept_files,
        "unreadable": [*faults],
        "notes": notes,
    }


def _blocks(files: Sequence[Path], read: Callable[[Sequence[Path]], Block]) -> Iterator[tuple[int, Block]]:
    """The blocks of files, in order, each with the position of its first file; read by several threads, which are never
    far ahead."""
    begin, size = 0, 0
    while begin < len(files) and not size:  # the first patch tells how large a block may be
        one = read(files[begin : begin + 1])
        size = sum(pixels.nbytes for pixels in one if isinstance(pixels, np.ndarray))
        yield begin, one
        begin += 1
    count = min(256, max(1, BLOCK // max(1, size)))
    starts = range(begin, len(files), count)
    threads = min(usable_cores(), len(starts))
    if threads <= 1:
        for start in starts:
            yield start, read(files[start : start + count])
        return
    from PIL import Image

    Image.init()  # once, and not in every thread at the same time
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[tuple[int, Future[Block]]] = deque()
    try:
        for start in starts:
            waiting.append((start, pool.submit(read, files[start : start + count])))
            if len(waiting) > 2 * threads:
                first, block = waiting.popleft()
                yield first, block.result()
        for first, block in waiting:
            yield first, block.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read_block(files: Sequence[Path], size: int | None, accept: Accept, skip: bool) -> Block:
    """What became of each file; unless `skip`, an error is the last."""
    found: Block = []
    for file in files:
        try:
            found.append(_read(file, size, accept))
        except DataError as error:
            found.append(error)
            if not skip:
                break
    return found


def _unreadable(faults: Sequence[DataError], count: int) -> str:
    names = ", ".join(str(fault.problems[0].file) for fault in faults[:3]) + ", …" * (len(faults) > 3)
    first = faults[0].problems[0].message
    return f"{len(faults)} of {count} image files are unreadable and left out: {names} (the first {first})"


def _read(file: Path, size: int | None, accept: Accept) -> np.ndarray | None:
    from PIL import Image

    with reading(file, problem="is not a readable image"):
        try:
            opened = Image.open(file, "r", FORMATS)
        except Image.DecompressionBombError:  # Pillow does not give the size
            raise ValueError(f"{2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels or more, {_TOO_LARGE}") from None
        with opened:
            accepted = accept(opened)
            return None if accepted is None else square(accepted, size)
