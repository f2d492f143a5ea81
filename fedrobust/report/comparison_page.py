"""A comparison as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedrobust.report.compare import Comparison, Group, Spread, final_figures, shown
from fedrobust.report.elements import Table, plural, render

PICTURED = 9
"""Maximum number of groups in pictures; if there are more, the best ones are shown."""
CHAPTERS = {
    "How well the global models read, and how well the attacks work": {
        "curves": "Held-out patients, after each evaluated round: the mean over the seeds, with a band of one standard "
        "deviation; the numbers are those of the table. Attack success: of the patches that are read correctly without "
        "the trigger, the share that the trigger turns into the attacker's label.",
    },
    "Whom the coordinators trusted": {
        "trust": "Reputation by round, of the attackers above and of the honest hospitals below: means over hospitals "
        "and seeds. A defence that tells them apart has a dark strip above a light one.",
        "reputation": "Reputation of each hospital by round in one run of each group, that of the lowest seed. The "
        "true attackers stand at the top, in vermilion, with a line below each round in which they attack; a bar "
        "marks a round after which the hospital was in quarantine.",
    },
}
"""The chapters: the pictures in each, with their captions."""


def comparison_html(name: str, comparison: Comparison, pictures: Mapping[str, bytes]) -> str:
    """Return the comparison as one page without scripts or references to anything outside it.

    name: the title.
    pictures: name → PNG file.
    """
    runs = sum(len(group.runs) for group in comparison.groups)
    facts = [plural(runs, "run"), plural(len(comparison.groups), "group"), _seeds(comparison.groups)]
    return render(
        "report/templates/comparison.html.j2",
        title=name,
        facts=facts,
        groups=_groups(comparison),
        notes=comparison.notes,
        captions=CHAPTERS,
        pictures=pictures,
        cut=PICTURED if len(comparison.groups) > PICTURED else 0,
        runs=_runs(comparison),
        differing=_differing(comparison),
        shared=comparison.shared,
    )


def _groups(comparison: Comparison) -> Table:
    """Return the table of what separates the groups, and their final figures."""
    heads = ["", *comparison.columns, "seeds", *comparison.figures.values()]
    lines = []
    for place, group in enumerate(comparison.groups, start=1):
        options = [group.options.get(path, "–") for path in comparison.columns]
        figures = [shown(name, spread, len(group.runs)) for name, spread in group.figures.items()]
        lines.append([str(place), *options, str(len(group.runs)), *figures])
    return heads, lines


def _runs(comparison: Comparison) -> Table:
    heads = ["run", "group", "attack against defence", "seed", *comparison.figures.values()]
    lines = []
    for place, group in enumerate(comparison.groups, start=1):
        for run in group.runs:
            options, values = run.start.options, final_figures(run)
            figures = [shown(name, Spread.of([values.get(name)]), 1) for name in group.figures]
            who = f"{options.attack} against {options.defence}"
            lines.append([run.start.run, str(place), who, str(options.seed), *figures])
    return heads, lines


def _differing(comparison: Comparison) -> Table:
    heads = ["option", *map(str, range(1, len(comparison.groups) + 1))]
    return heads, [
        [path, *(group.options.get(path, "–") for group in comparison.groups)] for path in comparison.differing
    ]


def _seeds(groups: Sequence[Group]) -> str:
    seeds = sorted({run.start.options.seed for group in groups for run in group.runs})
    return f"seed{'s' if len(seeds) > 1 else ''} " + (
        ", ".join(map(str, seeds)) if len(seeds) <= 12 else f"{len(seeds)} in all"
    )
