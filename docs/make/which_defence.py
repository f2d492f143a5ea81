"""The table of docs/which-defence.md: the protocols under which the defences of the benchmark run.

python docs/make/which_defence.py

It rewrites the block between the table's marks.
"""

from __future__ import annotations

from pathlib import Path

from fedrobust.benchmark import BenchmarkEntry, load_suite, read_entry
from fedrobust.errors import ExperimentError
from fedrobust.experiment import Experiment

PAGE = Path(__file__).parents[1] / "which-defence.md"
ENTRIES = Path(__file__).parents[2] / "fedrobust" / "benchmark" / "entries"
BEGIN, END = "<!-- protocols: begin -->", "<!-- protocols: end -->"
PROTOCOLS = ("clear", "shares", "replicated", "grouped", "masked")


def runs(entry: BenchmarkEntry, protocol: str) -> bool:
    """Whether twenty hospitals can have this defence under a protocol."""
    root = {"patches": 100, "set_aside": 0.05}
    changes = {"federation.clients": 20, "data.root": root, "privacy": protocol, **entry.options}
    try:
        Experiment().changed(changes)
    except ExperimentError:
        return False
    return True


def table() -> list[str]:
    """The lines of the table: defences that run under the same protocols share one."""
    suite, together = load_suite("histology-v1"), dict[tuple[bool, ...], list[str]]()
    for file in sorted(ENTRIES.glob("*.yaml")):
        entry = read_entry(str(file), suite)
        together.setdefault(tuple(runs(entry, each) for each in PROTOCOLS), []).append(entry.name)
    found = [f"| defence | {' | '.join(f'`{each}`' for each in PROTOCOLS)} |", f"|---|{'---|' * len(PROTOCOLS)}"]
    for where, names in sorted(together.items(), reverse=True):
        cells = ["yes" if each else "–" for each in where]
        found.append(f"| {', '.join(f'`{name}`' for name in names)} | {' | '.join(cells)} |")
    return found


def main() -> None:
    """Write the table."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text("\n".join([before + BEGIN, *table(), END]) + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
