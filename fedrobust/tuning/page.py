"""A sweep as one HTML page with pictures that can be zoomed and asked; plotly.js is in it, so it needs no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fedrobust.report.elements import document, escaped, plural
from fedrobust.tuning.pictures import make_figures
from fedrobust.tuning.views import Row, View, better, told

if TYPE_CHECKING:
    from fedrobust.tuning.again import Fresh

CAPTIONS = {
    "history": "The completed trials in order, and the best value so far. Trials that were pruned or have failed are "
    "marked at the bottom.",
    "importance": "The share of each option in what it takes to be among the best quarter of the completed trials: "
    "PED-ANOVA. With few trials it is a hint, no more.",
    "slice": "The completed trials over each searched option, the later the trial the darker. A trial that does not "
    "have an option is not in its panel.",
    "parallel": "A line for each completed trial, through its objectives and what was searched in it: the darker, the "
    "better. – is an option that a trial does not have.",
    "pareto": "Each completed trial by its objectives. Red: the Pareto front, the trials that no other beats.",
    "intermediate": "What the pruner was told of each trial, step by step. Green: the best. A cross: the trial was "
    "pruned there.",
}


def sweep_html(view: View, fresh: Sequence[Fresh] = ()) -> str:
    """The page: the best trials, the same on fresh seeds, the pictures that the trials allow, all trials.

    It has no references to outside.
    """
    counts = [f"{len(view.having(state))} {state}" for state in ("completed", "pruned", "failed") if view.having(state)]
    facts = [f"{len(view.rows)} of {plural(view.planned, 'trial')}", *counts]
    facts += [f"{label}: {better(way)}" for label, way in zip(view.objectives, view.directions, strict=True)]
    best = [row for row in view.rows if row.number in view.best]
    heading = "Best trial" if len(view.objectives) == 1 else "Pareto front: the trials that no other beats"
    none = '<p class="note">No trial is completed yet.</p>'
    body = f"""<style>{_STYLE}</style>
<h1>{escaped(view.name)}</h1>
<p class="facts">{" · ".join(map(escaped, facts))}</p>
<section>
<h2>{heading}</h2>
{_table(view, best) if best else none}
</section>
{_again(view, fresh) if fresh else ""}
{_figures(view)}
<section>
<h2>All trials</h2>
{_table(view, view.rows, states=True) if view.rows else none}
</section>
<script>{_SORT}</script>"""
    return document(view.name, body)


def _figures(view: View) -> str:
    """A section for each chapter; plotly.js once, before the first picture."""
    from plotly.offline import get_plotlyjs

    chapters: dict[str, list[str]] = {}
    for chapter, name, figure in make_figures(view):
        inside = figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            config={"displaylogo": False, "responsive": True, "typesetMath": False},
            div_id=f"{name}-{len(chapters)}-{len(chapters.get(chapter, []))}",
        )
        caption = f"<figcaption>{escaped(CAPTIONS[name])}</figcaption>"
        chapters.setdefault(chapter, []).append(f'<figure><div class="wide">{inside}</div>{caption}</figure>')
    if not chapters:
        return ""
    sections = [
        f"<section>\n<h2>{escaped(chapter or 'How the search went')}</h2>\n" + "\n".join(parts) + "\n</section>"
        for chapter, parts in chapters.items()
    ]
    return f"<script>{get_plotlyjs()}</script>\n" + "\n".join(sections)


def _table(view: View, rows: Iterable[Row], *, states: bool = False) -> str:
    """Trials with their objectives and what was searched in them; sorted by a column when its head is pressed."""
    names = list(view.space.searched)
    reasons = states and any(row.reason for row in view.rows)
    heads = ["trial", *(["state"] if states else []), *view.objectives, *names, *(["reason"] if reasons else [])]
    before, after = ('<th aria-sort="none"><button type="button">', "</button></th>") if states else ("<th>", "</th>")
    head = "".join(f"{before}{_breakable(text)}{after}" for text in heads)
    lines = []
    for row in rows:
        values: Sequence[Any] = row.values or [None] * len(view.objectives)
        cells = [_cell(row.number), *([_cell(row.state)] if states else []), *map(_cell, values)]
        cells += [_cell(row.chosen[name], chosen=True) if name in row.chosen else _cell(None) for name in names]
        cells += [_cell(row.reason or None)] if reasons else []
        mark = ' class="best"' if states and row.number in view.best else ""
        lines.append(f"<tr{mark}>{''.join(cells)}</tr>")
    kind = ' class="sorted"' if states else ""
    body = "\n".join(lines)
    return f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _again(view: View, fresh: Sequence[Fresh]) -> str:
    """The best trials on the seeds that the search has not seen; each seed alone where there is one objective."""
    seeds = list(fresh[0].by_seed)
    alone = seeds if len(view.objectives) == 1 and len(seeds) > 1 else []
    found = {row.number: row.values for row in view.rows}
    unknown = [None] * len(view.objectives)
    heads = ["trial", *(head for label in view.objectives for head in (f"{label}, in the search", "on fresh seeds"))]
    reasons = any(each.failed for each in fresh)
    heads += [*(f"seed {seed}" for seed in alone), *(["reason"] if reasons else [])]
    head = "".join(f"<th>{_breakable(text)}</th>" for text in heads)
    lines = []
    for each in fresh:
        pairs = zip(found[each.trial.number], each.values or unknown, strict=True)
        values = [value for pair in pairs for value in pair]
        values += [value for seed in alone for value in each.by_seed[seed] or unknown]
        why = "; ".join(f"seed {seed}: {reason}" for seed, reason in each.failed.items())
        lines.append(
            f"<tr>{_cell(each.trial.number)}{''.join(map(_cell, values))}{_cell(why or None) if reasons else ''}</tr>"
        )
    body = "\n".join(lines)
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
    told = f"{plural(len(seeds), 'seed')} ({', '.join(map(str, seeds))}) that the search has not seen"
    note = f'<p class="note">The best of the search again, on {told}. What was only luck shows here.'
    note += " Runs that failed are made again with --resume.</p>" if reasons else "</p>"
    return f"<section>\n<h2>On fresh seeds</h2>\n{note}\n{table}\n</section>"


def _cell(value: Any, *, chosen: bool = False) -> str:
    if value is None and not chosen:
        return "<td>–</td>"
    if isinstance(value, float):
        return f'<td data-value="{value!r}">{value:.5g}</td>'
    return f"<td>{escaped(told(value))}</td>"


def _breakable(text: str) -> str:
    return escaped(text).replace(".", ".<wbr>").replace("/", "/<wbr>")


_STYLE = """
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid #0072b2; }
th[aria-sort=ascending] button::after { content: " ↑"; } th[aria-sort=descending] button::after { content: " ↓"; }
tr.best td { font-weight: 650; color: #00734f; }
"""
_SORT = """
for (const table of document.querySelectorAll("table.sorted")) {
  const heads = [...table.querySelectorAll("th")], body = table.tBodies[0];
  const value = (row, at) => row.cells[at].dataset.value ?? row.cells[at].textContent;
  heads.forEach((head, at) => head.firstChild.addEventListener("click", () => {
    const down = head.ariaSort === "ascending", sign = down ? -1 : 1;
    heads.forEach(each => each.ariaSort = "none");
    head.ariaSort = down ? "descending" : "ascending";
    body.append(...[...body.rows].sort((one, other) => {
      const [a, b] = [value(one, at), value(other, at)];
      if ((a === "–") !== (b === "–")) return a === "–" ? 1 : -1;
      return sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
    }));
  }));
}
"""
