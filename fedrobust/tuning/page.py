"""A sweep as one HTML page with pictures that can be zoomed and asked; plotly.js is in it, so it needs no network."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from html import escape, unescape
from itertools import combinations
from typing import TYPE_CHECKING, Any

from fedrobust.figures.comparison import GROUP_COLOURS
from fedrobust.figures.style import FAINT, INK, MUTED
from fedrobust.report.elements import document, escaped, plural
from fedrobust.texts import fit, visible
from fedrobust.tuning.pictures import ACROSS, DONE, ORDER_COLOURS, slant, wrapped
from fedrobust.tuning.space import Choice, Searched
from fedrobust.tuning.views import Row, View, better, evaluator, importances, in_memory, present, told

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna.trial import FrozenTrial

    from fedrobust.tuning.again import Fresh

CAPTIONS = {
    "history": "The completed trials in order, and the best value so far.",
    "importance": "The share of each option in what it takes to be among the best quarter of the completed trials: "
    "PED-ANOVA. With few trials it is a hint, no more.",
    "slice": "The completed trials over each searched option, the later the trial the darker. A trial that does not "
    "have an option is not in its panel.",
    "pareto": "Each completed trial by its objectives. Red: the Pareto front, the trials that no other beats.",
    "intermediate": "What the pruner was told of each trial, step by step.",
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


def plotly_figures(view: View) -> Iterator[tuple[str, str, go.Figure]]:
    """The pictures that the trials allow: the chapter that each belongs to, its name, and itself.

    Names in them are escaped, since plotly takes some HTML in its texts.
    """
    import optuna.visualization as optuna_pictures

    many = len(view.objectives) > 1
    if many and view.completed:
        for each in _fronts(view):
            yield "What was traded for what", "pareto", _styled(_spelled_out(each), 460)
    for index, label in enumerate(view.objectives):
        if not view.completed:
            break
        study, chapter, name = in_memory(view, [index], _text), label if many else "", _text(label)
        history = optuna_pictures.plot_optimization_history(study, target_name=name)
        yield chapter, "history", _history(history)
        if importances(view, index):
            tool, names = evaluator(view, index), [_text(each) for each in present(view)]
            with warnings.catch_warnings():  # of options that few trials have
                warnings.simplefilter("ignore", UserWarning)
                bars = optuna_pictures.plot_param_importances(study, evaluator=tool, params=names, target_name=name)
            yield chapter, "importance", _bars(bars)
        yield chapter, "slice", _panels(optuna_pictures.plot_slice(study, target_name=name), view, index)
    if not many and any(row.reports for row in view.rows):
        lines = optuna_pictures.plot_intermediate_values(in_memory(view, [0], _text))
        lines.update_xaxes(title_text=view.step)
        lines.update_yaxes(title_text=_text(view.objectives[0]))
        yield "", "intermediate", _styled(lines, 400)


def _figures(view: View) -> str:
    """A section for each chapter; plotly.js once, before the first picture."""
    from plotly.offline import get_plotlyjs

    chapters: dict[str, list[str]] = {}
    for chapter, name, figure in plotly_figures(view):
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


def _fronts(view: View) -> Iterator[go.Figure]:
    import optuna.visualization as optuna_pictures
    from optuna.exceptions import ExperimentalWarning

    names = [_text(label) for label in view.objectives]
    study = in_memory(view, range(len(names)), _text)
    if len(names) <= 3:
        yield optuna_pictures.plot_pareto_front(study, target_names=names)
        return
    for pair in combinations(range(len(names)), 2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield optuna_pictures.plot_pareto_front(
                study, target_names=[names[place] for place in pair], targets=partial(_picked, pair)
            )


def _spelled_out(figure: go.Figure) -> go.Figure:
    """With letters of other scripts in what Optuna tells of each trial, instead of JSON's codes for them."""
    for trace in figure.data:
        if trace.text is not None:
            trace.text = [_CODES.sub(lambda found: str(json.loads(f'"{found[0]}"')), text) for text in trace.text]
    return figure


def _picked(places: Sequence[int], trial: FrozenTrial) -> list[float]:
    return [trial.values[place] for place in places]


def _history(figure: go.Figure) -> go.Figure:
    points, best = figure.data[:2]
    points.update(name="completed", marker={"color": DONE, "size": 7})
    best.update(name="best so far", line={"color": INK, "shape": "hv", "width": 2})
    figure.update_xaxes(title_text="trial", dtick=1 if len(best.x) <= 10 else None)
    return _styled(figure, 380)


def _bars(figure: go.Figure) -> go.Figure:
    # The name is data there: in Optuna's template it could be one itself.
    figure.update_traces(marker_color=GROUP_COLOURS[0], showlegend=False, hovertemplate="%{y}: %{x:.2f}<extra></extra>")
    names = list(figure.data[0].y)
    figure.update_yaxes(title_text="", tickvals=names, ticktext=[_lines(name, 44) for name in names], automargin=True)
    figure.update_xaxes(title_text="share")
    return _styled(figure, 130 + 34 * len(names))


def _panels(figure: go.Figure, view: View, objective: int) -> go.Figure:
    """The panels in rows, each over all that is searched; long names and the names of choices in lines."""
    searched = {_text(name): each for name, each in view.space.searched.items()}
    axes = list(zip(figure.select_xaxes(), figure.select_yaxes(), strict=True))
    down = math.ceil(len(axes) / ACROSS)
    height, gap = 340 * down, 150 / (340 * down)
    for place, (x, y) in enumerate(axes):
        row, column = divmod(place, ACROSS)
        across = min(ACROSS, len(axes))
        x.domain = [column / across + 0.03 * bool(column), (column + 1) / across - 0.01]
        y.update(domain=[1 - (row + 1) / down + gap, 1 - row / down], showticklabels=not column)
        y.title.text = _text(view.objectives[objective]) if not column else ""
        _over_all(x, searched[x.title.text])
        x.title.text = _lines(x.title.text, 34)
    colours = [list(each) for each in zip((0, 0.5, 1), ORDER_COLOURS, strict=True)]
    for trace in figure.data:
        trace.marker.update(line={"width": 0}, size=7, colorscale=colours, cmin=0, cmax=max(1, len(view.rows) - 1))
        trace.marker.colorbar.update(title="trial", xpad=10, thickness=14, outlinewidth=0)
    figure.update_layout(width=None)
    return _styled(figure, height)


def _over_all(axis: Any, searched: Searched) -> None:
    """Let an axis have all that is searched, and labels that can be read."""
    if isinstance(searched, Choice):
        names = [told(label) for label in searched.ends]
        labels = [_text(fit(name, 20)) for name in names]
        places = list(axis.categoryarray)
        axis.update(tickvals=places, ticktext=labels, tickangle=-slant(names), range=[-0.5, len(names) - 0.5])
        return
    low, high = float(searched.low), float(searched.high)
    if searched.log:
        low, high = math.log10(low), math.log10(high)
        axis.update(dtick=1 if high - low >= 1.5 else None)
    axis.range = [low - 0.05 * (high - low), high + 0.05 * (high - low)]


def _styled(figure: go.Figure, height: int) -> go.Figure:
    line = {"gridcolor": FAINT, "linecolor": FAINT, "zeroline": False, "title_font_color": MUTED}
    figure.update_layout(
        template="plotly_white",
        title=None,
        height=height,
        font={"color": INK, "size": 12, "family": "system-ui, sans-serif"},
        margin={"l": 60, "r": 30, "t": 24, "b": 50},
        colorway=GROUP_COLOURS,
    )
    figure.update_xaxes(**line)
    figure.update_yaxes(**line)
    return figure


def _text(name: str) -> str:
    return escape(visible(name), quote=False)


def _lines(name: str, across: int) -> str:
    return escape(wrapped(unescape(name), across), quote=False).replace("\n", "<br>")


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


_CODES = re.compile(r"(?<!\\)(\\u[0-9a-f]{4})+")
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
