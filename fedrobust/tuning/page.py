"""A sweep as one HTML page with interactive pictures; plotly.js is included, so no network is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from fedrobust.report.elements import Table, plural, render
from fedrobust.tuning.pictures import make_figures
from fedrobust.tuning.views import Row, SweepView, better, spelled, tied

if TYPE_CHECKING:
    from fedrobust.tuning.again import Fresh

CAPTIONS = {
    "history": "The completed trials in order, and the best value so far. Trials that were pruned or have failed are "
    "marked at the bottom.",
    "importance": "How much each option matters for being among the best quarter of the completed trials (PED-ANOVA); "
    "the shares add up to 1. With few trials this is only a hint.",
    "slice": "The completed trials over each searched option, the later the trial the darker. A trial that does not "
    "have an option is not in its panel.",
    "parallel": "A line for each completed trial, through its objectives and what was searched in it: the darker, the "
    "better. – is an option that a trial does not have.",
    "pareto": "Each completed trial by its objectives. Red: the Pareto front, the trials that no other beats.",
    "intermediate": "The values that the pruner saw of each trial, step by step. Green: the best trial. A cross: the "
    "trial was pruned there.",
}
"""Captions of the pictures, by name."""
ABSENT = "–"
"""Shown in tables for a value that a trial does not have."""


def sweep_html(view: SweepView, fresh: Sequence[Fresh] = ()) -> str:
    """Return the page: the best trials, the same on fresh seeds, the pictures that the trials allow, all trials.

    It has no references to anything outside it.
    """
    from plotly.offline import get_plotlyjs

    counts = [f"{len(view.having(state))} {state}" for state in ("completed", "pruned", "failed") if view.having(state)]
    facts = [f"{len(view.rows)} of {plural(view.planned, 'trial')}", *counts]
    found = next((row for row in view.rows if row.number in view.best), None)
    facts += [f"{label}: {better(way)}" for label, way in zip(view.objectives, view.directions, strict=True)]
    return render(
        "tuning/templates/sweep.html.j2",
        title=view.name,
        facts=facts,
        many=len(view.objectives) > 1,
        unlearnt=view.unlearnt,
        tied=tied([row.values for row in view.completed], found.values) if found else "",
        winners=() if view.unlearnt else view.best,
        best=_trials(view, [row for row in view.rows if row.number in view.best]),
        again=_again(view, fresh),
        seeds=list(fresh[0].by_seed) if fresh else [],
        failures=any(each.failed for each in fresh),
        chapters=_chapters(view),
        plotly=Markup(get_plotlyjs()),
        trials=_trials(view, view.rows, states=True),
    )


def _chapters(view: SweepView) -> dict[str, list[tuple[Markup, str]]]:
    """Return pictures and their captions, by chapter."""
    chapters: dict[str, list[tuple[Markup, str]]] = {}
    for chapter, name, figure in make_figures(view):
        inside = figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            config={"displaylogo": False, "responsive": True, "typesetMath": False},
            div_id=f"{name}-{len(chapters)}-{len(chapters.get(chapter, []))}",
        )
        chapters.setdefault(chapter, []).append((Markup(inside), CAPTIONS[name]))
    return chapters


def _trials(view: SweepView, rows: Sequence[Row], *, states: bool = False) -> Table | None:
    """Return a table of trials with their objectives and searched values."""
    if not rows:
        return None
    names = list(view.space.searched)
    reasons = states and any(row.reason for row in view.rows)
    heads = ["trial", *(["state"] if states else []), *view.objectives, *names, *(["reason"] if reasons else [])]
    lines = []
    for row in rows:
        cells = [row.number, *([row.state] if states else []), *(row.values or [ABSENT] * len(view.objectives))]
        cells += [_shown(row.chosen[name]) if name in row.chosen else ABSENT for name in names]
        cells += [row.reason or ABSENT] if reasons else []
        lines.append(cells)
    return heads, lines


def _again(view: SweepView, fresh: Sequence[Fresh]) -> Table | None:
    """Return a table of the best trials on fresh seeds; with one objective, also on each seed alone."""
    if not fresh:
        return None
    seeds = list(fresh[0].by_seed)
    alone = seeds if len(view.objectives) == 1 and len(seeds) > 1 else []
    found = {row.number: row.values for row in view.rows}
    unknown = [ABSENT] * len(view.objectives)
    heads = ["trial", *(head for label in view.objectives for head in (f"{label}, in the search", "on fresh seeds"))]
    reasons = any(each.failed for each in fresh)
    heads += [*(f"seed {seed}" for seed in alone), *(["reason"] if reasons else [])]
    lines = []
    for each in fresh:
        pairs = zip(found[each.trial.number], each.values or unknown, strict=True)
        cells: list[Any] = [each.trial.number, *(value for pair in pairs for value in pair)]
        cells += [value for seed in alone for value in each.by_seed[seed] or unknown]
        why = "; ".join(f"seed {seed}: {reason}" for seed, reason in each.failed.items())
        lines.append([*cells, *([why or ABSENT] if reasons else [])])
    return heads, lines


def _shown(value: Any) -> Any:
    return value if isinstance(value, float) else spelled(value)
