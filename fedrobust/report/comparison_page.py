"""A comparison as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedrobust.report.compare import FIGURES, Comparison, Group, Spread, final_figures, shown
from fedrobust.report.elements import document, escaped, picture, plural
from fedrobust.report.story import attack, defence

PICTURED = 9
"""More groups than this, and the pictures keep to the best of them."""
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
    """The comparison as one page without scripts or references to anything outside it."""
    runs = sum(len(group.runs) for group in comparison.groups)
    facts = [plural(runs, "run"), plural(len(comparison.groups), "group"), _seeds(comparison.groups)]
    notes = "".join(f'<p class="note">{escaped(note)}</p>' for note in comparison.notes)
    body = f"""<h1>{escaped(name)}</h1>
<p class="facts">{" · ".join(escaped(fact) for fact in facts if fact)}</p>
<section>
<h2>After the last round</h2>
{table_of_groups(comparison)}
<p class="note">Mean ± standard deviation over the seeds; the group with the highest balanced accuracy comes first. An
option that a group does not have is –; options that follow from a name are left out here.</p>{notes}
</section>
{_sections(comparison, pictures)}
<section>
<h2>Run by run</h2>
{_runs(comparison)}
</section>
<section>
<h2>Settings</h2>
{_details(f"All {plural(len(comparison.differing), 'option')} that differ", _differing(comparison))}
{_details(f"The {plural(len(comparison.shared), 'option')} in which all runs agree", _pairs(comparison.shared))}
</section>"""
    return document(name, body)


def table_of_groups(comparison: Comparison) -> str:
    """What tells the groups apart, and their final figures."""
    heads = ["", *comparison.columns, "seeds", *(FIGURES[name] for name in comparison.figures)]
    lines = []
    for place, group in enumerate(comparison.groups, start=1):
        options = [group.options.get(path, "–") for path in comparison.columns]
        figures = [shown(name, spread, len(group.runs)) for name, spread in group.figures.items()]
        lines.append([str(place), *options, str(len(group.runs)), *figures])
    return _table(heads, lines)


def _sections(comparison: Comparison, pictures: Mapping[str, bytes]) -> str:
    left_out = len(comparison.groups) - PICTURED
    rest = f'<p class="note">The pictures show the {PICTURED} groups with the highest balanced accuracy.</p>'
    parts = []
    for heading, captions in CHAPTERS.items():
        found = [picture(name, text, pictures[name]) for name, text in captions.items() if name in pictures]
        if found:
            told = rest if left_out > 0 else ""
            parts.append(f"<section>\n<h2>{heading}</h2>\n" + "\n".join(found) + f"{told}\n</section>")
    return "\n".join(parts)


def _runs(comparison: Comparison) -> str:
    heads = ["run", "group", "attack against defence", "seed", *(FIGURES[name] for name in comparison.figures)]
    lines = []
    for place, group in enumerate(comparison.groups, start=1):
        for run in group.runs:
            experiment, values = run.start["experiment"], final_figures(run)
            figures = [shown(name, Spread.of([values.get(name)]), 1) for name in group.figures]
            who = f"{attack(experiment)} against {defence(experiment)}"
            lines.append([str(run.start["run"]), str(place), who, str(experiment["seed"]), *figures])
    return _details(f"All {plural(len(lines), 'run')}", _table(heads, lines))


def _differing(comparison: Comparison) -> str:
    heads = ["option", *map(str, range(1, len(comparison.groups) + 1))]
    return _table(
        heads, [[path, *(group.options.get(path, "–") for group in comparison.groups)] for path in comparison.differing]
    )


def _pairs(options: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><td>{escaped(path)}</td><td>{escaped(value)}</td></tr>" for path, value in options.items())
    return f'<div class="wide"><table class="settings"><tbody>{rows}</tbody></table></div>'


def _details(summary: str, inside: str) -> str:
    return f"<details><summary>{escaped(summary)}</summary>{inside}</details>"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escaped(text).replace('.', '.<wbr>')}</th>" for text in heads)
    rows = "".join("<tr>" + "".join(f"<td>{escaped(text)}</td>" for text in line) + "</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _seeds(groups: Sequence[Group]) -> str:
    seeds = sorted({run.start["experiment"]["seed"] for group in groups for run in group.runs})
    return f"seed{'s' if len(seeds) > 1 else ''} " + (
        ", ".join(map(str, seeds)) if len(seeds) <= 12 else f"{len(seeds)} in all"
    )
