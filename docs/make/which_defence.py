"""The tables of docs/which-defence.md and its picture, from the stored rows of the benchmark.

python docs/make/which_defence.py

It rewrites the blocks between the page's marks, and draws docs/pictures/benchmark.png.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fedrobust.benchmark import Ranked, Suite, comparable, load_suite, ranked, stored_rows
from fedrobust.errors import ExperimentError
from fedrobust.experiment import Experiment
from fedrobust.intervals import Estimate

PAGE = Path(__file__).parents[1] / "which-defence.md"
PICTURE = PAGE.parent / "pictures" / "benchmark.png"
PROTOCOLS = ("clear", "shares", "replicated", "masked", "grouped")
SUITE = "histology-v1"


def mark(name: str) -> tuple[str, str]:
    """The lines before and after a table."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def stored() -> tuple[Suite, list[Ranked]]:
    """The lines of the first table that `fedrobust benchmark` shows without an entry."""
    suite = load_suite(SUITE)
    _, _, rows = comparable([], stored_rows(suite), False, suite)[0]
    return suite, ranked(rows, suite)


def interval(estimate: Estimate) -> str:
    """A mean with its interval."""
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]".replace("-", "−")


def robustness(suite: Suite, lines: Iterable[Ranked]) -> list[str]:
    """The table of what each defence withstands."""
    settings = list(suite.options.settings)
    found = [
        f"| defence | {' | '.join(f'{each}, worst attack' for each in settings)} | backdoor gain | cost, points |",
        f"|---|{'---|' * len(settings)}---|---|",
    ]
    for line in lines:
        worst = [line.settings[each] for each in settings]
        held = [
            f"– ({each.lacks})" if each.lacks else f"**{interval(each.robustness)}** {each.attack}" for each in worst
        ]
        gain = max(worst, key=lambda each: each.gain.value)
        shown = f"{gain.gain.value:.2f} {gain.backdoor}".replace("-", "−")
        cost = f"{100 * line.cost.value:.1f}".replace("-", "−")
        found.append(f"| `{line.row.name}` | {' | '.join(held)} | {shown} | {cost} |")
    return found


def protocols(lines: Iterable[Ranked]) -> list[str]:
    """The table of protocols under which each defence runs, with the number of hospitals of the suites."""
    found = [f"| defence | {' | '.join(f'`{each}`' for each in PROTOCOLS)} |", f"|---|{'---|' * len(PROTOCOLS)}"]
    for line in sorted(lines, key=lambda each: each.row.name):
        cells = ["yes" if runs(line, each) else "no" for each in PROTOCOLS]
        found.append(f"| `{line.row.name}` | {' | '.join(cells)} |")
    return found


def runs(line: Ranked, protocol: str) -> bool:
    """Whether twenty hospitals can have this defence under a protocol."""
    root = {"patches": 100, "set_aside": 0.05}
    try:
        options = line.row.entry.options
        Experiment().changed({"federation.clients": 20, "data.root": root, "privacy": protocol, **options})
    except ExperimentError:
        return False
    return True


def tables() -> dict[str, list[str]]:
    """Name of a mark → the lines of its table."""
    suite, lines = stored()
    return {"robustness": robustness(suite, lines), "protocols": protocols(lines)}


def draw() -> None:
    """Draw the robustness of every defence against its worst attack, with intervals."""
    import matplotlib.pyplot as plt

    suite, lines = stored()
    known = [line for line in lines if line.rank is not None][::-1]
    figure, axes = plt.subplots(figsize=(8, 0.34 * len(known) + 1.2), layout="constrained")
    styles = zip(suite.options.settings, ("tab:blue", "tab:red"), (0.12, -0.12), strict=True)
    for setting, colour, shift in styles:
        held = [line.settings[setting].robustness for line in known]
        at = [place + shift for place in range(len(known))]
        axes.hlines(at, [each.low for each in held], [each.high for each in held], color=colour, alpha=0.4)
        axes.plot([each.value for each in held], at, "o", color=colour, label=f"{setting} malicious")
    axes.set_yticks(range(len(known)), [line.row.name for line in known])
    axes.set_xlim(-0.5, 1.2)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel("robustness against the worst attack: 1 = without attackers, 0 = chance")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.1), ncols=2, frameon=False)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Write the tables and the picture."""
    page = PAGE.read_text(encoding="utf-8")
    for name, lines in tables().items():
        begin, end = mark(name)
        before, _, rest = page.partition(begin)
        page = "\n".join([before + begin, *lines, end]) + rest.partition(end)[2]
    PAGE.write_text(page, encoding="utf-8")
    draw()


if __name__ == "__main__":
    main()
