"""Patches from 455,000 image files: how fast they are decoded, how soon a second run begins, and what the node holds.

    python benchmarks/data.py [--patches N] [--side S] [--sections decoding starts memory] [--folder F]

The files are generated in the layout of CAMELYON17-WILDS: PNG, by default as many as there (455,000), of 32 pixels, so
that they need 2 GB of disk. Sections:

decoding   patches a second of the loop that a user would write with Pillow, and of `decode` with one and two threads,
           in turn, on some files of the size asked for and on a quarter as many of 96 pixels; figures are medians
starts     seconds and CPU seconds until the patches can be used, in a process of its own: the first time, when they are
           decoded, and the second time, when the file in the cache is mapped and checked
memory     the proportional set size (PSS) of the driver, of all actors and of Ray itself, with its object store, at the
           peak of a run with two client actors; less that of the same run on 2,000 patches; divided by the bytes of the
           patches. Once with the cache, and once without it, where memory suffices for that. On Linux

    python benchmarks/data.py --side 96 --sections memory    as large as CAMELYON17-WILDS: 20 GB of disk, 14 of memory
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fedrobust.data import pixels
from fedrobust.machine import memory_limits

DISTINCT = 500
"""Different images; the others are copies of them in files of their own."""
SMALL = 2000
"""Patches of the run whose memory is subtracted: what a run needs anyway."""
LARGE = 96
"""Pixels a side in CAMELYON17-WILDS."""
COLUMNS = ("patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split")
LOADING = """\
import json, resource, sys, time
from pathlib import Path
from fedrobust.data import Camelyon17
from fedrobust.data.cache import keeping_in

began = time.perf_counter()
with keeping_in(Path(sys.argv[2])):
    patches = Camelyon17(path=sys.argv[1]).load(0)
seconds, decoded = time.perf_counter() - began, len(patches)
digest = patches.digest
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([seconds, time.perf_counter() - began, used.ru_utime + used.ru_stime, digest]))
"""
RUNNING = """\
import sys
import fedrobust
from fedrobust.data import pixels

if sys.argv[2] == "without":
    pixels.MANY = 10**9
fedrobust.run("data.yaml", {"data.source.limit": int(sys.argv[1]) or None}, progress=False)
"""
EXPERIMENT = """\
name: data
data: {{source: {{name: camelyon17, path: {folder}}}, split: {{by: official}}, partition: {{name: iid, minimum: 1}}}}
federation: {{clients: 4, rounds: 2}}
learning: {{model: {{name: cnn, channels: [4]}}, local: {{steps: 50, batch_size: 64}}}}
evaluation: {{every: 1}}
tracking: {{model: false}}
workers: {{count: 2}}
"""


class Figure(NamedTuple):
    """A measured figure, and what it should be."""

    name: str
    value: float
    unit: str = ""
    goal: tuple[str, float] | None = None

    def __str__(self) -> str:
        """A line of the table, with the verdict."""
        verdict = ""
        if self.goal is not None:
            sign, limit = self.goal
            held = self.value >= limit if sign == "≥" else self.value <= limit
            verdict = f"goal {sign} {limit:g}: {'held' if held else 'missed'}"
        return f"{self.name:58} {self.value:12,.2f} {self.unit:10} {verdict}".rstrip()


def main(arguments: Sequence[str] | None = None) -> list[Figure]:
    """Print every figure, and whether the goals are held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=455_000, help="how many files (default: 455,000)")
    parser.add_argument("--side", type=int, default=32, help="pixels a side (default: 32)")
    parser.add_argument("--sample", type=int, default=8000, help="files of `decoding` (default: 8,000)")
    parser.add_argument("--times", type=int, default=5, help="turns of `decoding` (default: 5)")
    parser.add_argument("--sections", nargs="+", default=["decoding", "starts", "memory"])
    parser.add_argument("--folder", type=Path, help="for the files, which are found again there (default: temporary)")
    parser.add_argument("--json", type=Path, help="where the figures go, too")
    chosen = parser.parse_args(arguments)
    found: list[Figure] = []
    with contextlib.ExitStack() as stack:
        folder = chosen.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for figure in measured(folder.absolute(), chosen):
            found.append(figure)
            print(figure, flush=True)
    held = [str(figure).endswith("held") for figure in found if figure.goal is not None]
    print(f"\n{sum(held)} of {len(held)} goals held")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps([figure._asdict() for figure in found], indent=1), encoding="utf-8")
    return found


def measured(folder: Path, chosen: argparse.Namespace) -> Iterator[Figure]:
    """The figures of the chosen sections."""
    if "decoding" in chosen.sections:
        for side, count in ((chosen.side, chosen.sample), (LARGE, chosen.sample // 4)):
            files = made(folder / f"some-{side}", count, side)
            yield from decoding(files, side, chosen.times)
    if {"starts", "memory"} & {*chosen.sections}:
        began = time.perf_counter()
        root = folder / f"all-{chosen.side}"
        made(root, chosen.patches, chosen.side)
        yield Figure("seconds to write the files", time.perf_counter() - began, "s")
    if "starts" in chosen.sections:
        yield from starts(root, folder, chosen.patches)
    if "memory" in chosen.sections:
        yield from memory(root, folder, chosen.patches, 3 * chosen.side**2)


def made(root: Path, count: int, side: int) -> list[Path]:
    """Write `count` patches and their table, in the layout of CAMELYON17-WILDS; the files."""
    rows = [placed(number) for number in range(count)]
    files = [root / "patches" / f"patient_{row[0]}_node_{row[1]}" / named(row) for row in rows]
    if (root / "metadata.csv").exists():
        return files
    draw = np.random.default_rng(0)
    contents = [encoded(tissue(draw, side)) for _ in range(min(DISTINCT, count))]
    for folder in {file.parent for file in files}:
        folder.mkdir(parents=True)
    for number, file in enumerate(files):
        file.write_bytes(contents[number % len(contents)])
    lines = [",".join(map(str, row)) for row in [COLUMNS, *rows]]
    (root / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


def placed(number: int) -> tuple[Any, ...]:
    """A row of the table: 50 patients of five centres, as unequal parts."""
    patient = number % 50
    return f"{patient:03}", patient % 5, 32 * (number // 50), 32 * patient, number // 50 % 2, patient, patient % 5, 0


def named(row: Sequence[Any]) -> str:
    """The file of a row of the table."""
    patient, node, x, y = row[:4]
    return f"patch_patient_{patient}_node_{node}_x_{x}_y_{y}.png"


def tissue(draw: np.random.Generator, side: int) -> np.ndarray:
    """A smooth image with noise: about as long a file as one of tissue, half of its bytes."""
    coarse = draw.integers(120, 250, (side // 8 + 2, side // 8 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
    return np.clip(smooth + draw.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)


def encoded(image: np.ndarray) -> bytes:
    """A PNG file."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def decoding(files: Sequence[Path], side: int, times: int) -> Iterator[Figure]:
    """Patches a second, clock and CPU, of three ways, in turn."""

    def plain() -> np.ndarray:
        return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])

    def ours(threads: int) -> Callable[[], np.ndarray]:
        def decoded() -> np.ndarray:
            pixels.usable_cores = lambda: threads  # type: ignore[assignment]
            return pixels.decode(files, None).images

        return decoded

    ways = {"a loop with Pillow": plain, "ours, one thread": ours(1), "ours, two threads": ours(2)}
    took: dict[str, list[tuple[float, float]]] = defaultdict(list)
    expected = plain()  # the files are in memory now
    for _ in range(times):
        for name, way in ways.items():
            began = time.perf_counter(), time.process_time()
            found = way()
            took[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
            assert np.array_equal(found, expected)
    goals = {"ours, one thread": ("≥", 0.8), "ours, two threads": ("≥", 1.5) if side >= LARGE else None}
    base = statistics.median(clock for clock, _ in took["a loop with Pillow"])
    for name, each in took.items():
        clock, cpu = (statistics.median(values) for values in zip(*each, strict=True))
        yield Figure(f"{side} pixels: {name}", len(files) / clock, "patches/s")
        yield Figure(f"{side} pixels: {name}, CPU", 1e6 * cpu / len(files), "µs a patch")
        if name in goals:
            yield Figure(f"{side} pixels: {name} / the loop, clock", base / clock, "", goals[name])


def starts(root: Path, folder: Path, count: int) -> Iterator[Figure]:
    """Seconds until the patches can be used, the first time and the second time."""
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        words = [sys.executable, "-c", LOADING, str(root), cache]
        both = [json.loads(subprocess.run(words, check=True, capture_output=True).stdout) for _ in range(2)]
    assert both[0][3] == both[1][3]
    for name, (ready, whole, cpu, _) in zip(("first", "second"), both, strict=True):
        yield Figure(f"{name} time: until the patches can be used", ready, "s")
        yield Figure(f"{name} time: with the digest for the record", whole, "s")
        yield Figure(f"{name} time: CPU", cpu, "s")
    yield Figure("first time", count / both[0][0], "patches/s")
    yield Figure("second time / first time", both[1][0] / both[0][0], "", ("≤", 0.2))


def memory(root: Path, folder: Path, count: int, size: int) -> Iterator[Figure]:
    """The peak of the node, without what a run needs anyway, divided by the bytes of the patches."""
    place = folder / "run"
    place.mkdir(exist_ok=True)
    (place / "data.yaml").write_text(EXPERIMENT.format(folder=root), encoding="utf-8")
    gib, needed = 2**30, count * size
    least = peak(place, SMALL, "with")
    yield Figure(f"peak on {SMALL:,} patches", least / gib, "GiB")
    yield Figure("the patches", needed / gib, "GiB")
    for way, name in (("with", "decoded before"), ("without", "without the cache")):
        if way == "without" and 3 * needed > min(memory_limits().values()):
            continue
        if way == "with":
            peak(place, 0, way)  # decodes
        found = peak(place, 0, way)
        yield Figure(f"peak, {name}", found / gib, "GiB")
        more = found - least
        goal = ("≤", 1.2) if way == "with" else None
        yield Figure(f"more than on few / the patches, {name}", more / needed, "", goal)


def peak(place: Path, limit: int, way: str) -> int:
    """The largest sum of PSS, in bytes, of a run and all of its processes."""
    words = [sys.executable, "-c", RUNNING, str(limit), way]
    found, ended = [0], threading.Event()
    with subprocess.Popen(words, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:

        def watch() -> None:
            while not ended.wait(0.2):
                found.append(sum(map(proportional, below(process.pid))))

        watching = threading.Thread(target=watch)
        watching.start()
        _, said = process.communicate()
        ended.set()
        watching.join()
    if process.returncode:
        raise SystemExit(f"the run has failed: {said}")
    return max(found)


def below(root: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, int] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
    found = [root]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def proportional(process: int) -> int:
    """The PSS of a process in bytes."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
