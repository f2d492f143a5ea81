"""The table of docs/aggregation.md: what each rule needs, what it allows, and how robust it measures.

python docs/make/robustness_table.py [--seconds 5] [--processes 2] [--print] [NAME ...]

It rewrites the block between the table's marks; with names, or --print, it only prints the lines. Figures of slow rules
depend on how many seconds (of processor time) the search gets, and on the machine.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

from fedrobust.aggregation import Aggregation, Pipeline, RowRule, Rule, Stage
from fedrobust.aggregation.base import AnyRule, PipelinePart
from fedrobust.aggregation.byzantine import violation
from fedrobust.aggregation.testing.robustness import robustness
from fedrobust.options import members

GUIDE = Path(__file__).parents[1] / "aggregation.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
SETTINGS = ((10, 2), (20, 4), (20, 8))
PIPELINES: tuple[tuple[str, ...], ...] = (
    *((name,) for name in members(Rule, RowRule)),
    ("clip", "mean"),
    ("nnm", "krum"),
    ("nnm", "multi_krum"),
    ("nnm", "geometric_median"),
    ("nnm", "median"),
    ("nnm", "trimmed_mean"),
    ("bucketing", "trimmed_mean"),
    ("arc", "nnm", "trimmed_mean"),
    ("clip", "nnm", "geometric_median"),
)


def built(names: Sequence[str]) -> tuple[tuple[Stage, ...], AnyRule]:
    """The stages and the rule of a pipeline, with their defaults."""
    read = Aggregation.model_validate({"stages": list(names[:-1]), "rule": names[-1]})
    return read.stages, read.rule


def needs(parts: Sequence[Stage | AnyRule]) -> str:
    """What the coordinator must be shown."""
    seen = Pipeline(parts).needs
    most = next((name for name in ("gram", "norms") if name in seen), "" if "rows" in seen else "sum")
    words = ["rows"] * ("rows" in seen) + [{"gram": "Gram"}.get(most, most)] * bool(most)
    rule = parts[-1]
    if isinstance(rule, Rule):
        words += [f"anchor {name}" for name in rule.anchors] + [f"history {name}" for name in rule.histories]
    return ", ".join(words) + ("; remembers clients" if rule.per_client else "")


def bound(parts: Sequence[PipelinePart]) -> str:
    """The smallest n for f, as the bounds have it, in the form n ≥ a f + b."""
    least = []
    for f in range(1, 9):
        n = next((n for n in range(1, 200) if all(violation(parts, more, f) is None for more in (n, n + 1))), None)
        if n is None:
            return "none"
        least.append(n)
    steps = {after - before for before, after in pairwise(least)}
    if len(steps) > 1:
        return f"n ≥ {least[0]}, {least[1]}, {least[2]} … for f = 1, 2, 3 …"
    slope = steps.pop()
    if slope == 0:
        return "any f"
    start = least[0] - slope
    return f"n ≥ {slope}f" + (f" + {start}" if start > 0 else f" − {-start}" if start < 0 else "")


def paper(rule: AnyRule) -> str:
    """The first sentence of its docstring."""
    return " ".join((rule.__doc__ or "").strip().split("\n\n")[0].split()).rstrip(".")


def measured(names: Sequence[str], seconds: float) -> str:
    """The line of one pipeline."""
    import torch

    torch.set_num_threads(1)
    stages, rule = built(names)
    parts = (*stages, rule)
    figures = []
    for n, f in SETTINGS:
        if violation(parts, n, f):
            figures.append("–")
            continue
        found = robustness(rule, n, f, stages=stages, seconds=seconds)
        figures.append("∞" if math.isinf(found) else f"{found:.2f}")
    about = paper(rule) if not stages else ""
    holds = "yes" if all("breakdown" in part.claims for part in parts) else "no"
    cells = [" + ".join(f"`{name}`" for name in names), needs(parts), bound(parts), holds, *figures, about]
    return f"| {' | '.join(cells)} |"


def head() -> list[str]:
    """The first lines of the table."""
    columns = [f"κ̂, n = {n}, f = {f}" for n, f in SETTINGS]
    lowest = [f"**{f / (n - 2 * f):.2f}**" for n, f in SETTINGS]
    return [
        f"| rule | needs | allows | withstands huge rows | {' | '.join(columns)} | what it is |",
        "|---|---|---|---|" + "---|" * (len(columns) + 1),
        f"| *no rule has less than f / (n − 2f)* | | | | {' | '.join(lowest)} | |",
    ]


def main() -> None:
    """Measure, and write or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these, e.g. krum or nnm+krum")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each search")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--print", action="store_true", dest="only_print", help="leave the guide as it is")
    given = parser.parse_args()
    chosen = [tuple(name.split("+")) for name in given.names] or list(PIPELINES)
    with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn")) as pool:
        lines = head()
        for line in pool.map(partial(measured, seconds=given.seconds), chosen):
            print(line, flush=True)
            lines.append(line)
    if not (given.names or given.only_print):
        before, _, rest = GUIDE.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        GUIDE.write_text("\n".join([before + BEGIN, *lines, END]) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
