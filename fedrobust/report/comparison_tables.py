"""A comparison as tables: the texts of page and terminal, and the numbers of its CSV and JSON files. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedrobust.report.compare import Candidate, Comparison, Setting
from fedrobust.report.differences import DECIDING, signed
from fedrobust.report.distinctions import telling
from fedrobust.report.elements import Table
from fedrobust.report.run_figures import Spread, figures_of, rounds_in_words, shown


def verdict_table(comparison: Comparison, setting: Setting, only: str = "") -> Table:
    """Return the candidates of a setting with what decides between them: test patches, the deciding figures, and their
    differences to the references.

    only: the deciding figure to show; by default all of them.
    """
    figures = [figure for figure in deciding(comparison) if only in ("", figure)]
    references = setting.references()
    heads = ["", "candidate", "seeds", "test patches"]
    for figure in figures:
        heads += [comparison.figures[figure], *(f"{comparison.figures[figure]} {name}" for name in references)]
    rows = []
    for place, candidate in _places(setting):
        row = [place, candidate.label, str(len(candidate.runs)), candidate.tested]
        for figure in figures:
            row.append(shown(figure, candidate.figures[figure], len(candidate.runs)))
            for reference in references.values():
                same = reference is candidate
                row.append("–" if same else signed(setting.of(figure, candidate, reference)))
        rows.append(row)
    return heads, rows


def deciding(comparison: Comparison) -> list[str]:
    """Return the deciding figures that the runs have."""
    return [figure for figure in DECIDING if figure in comparison.figures]


def figures_table(comparison: Comparison, setting: Setting) -> Table:
    """Return the candidates of a setting with all their other figures."""
    others = [name for name in comparison.figures if name not in DECIDING]
    rows = [
        [place, *(shown(name, candidate.figures[name], len(candidate.runs)) for name in others)]
        for place, candidate in _places(setting)
    ]
    return ["", *(comparison.figures[name] for name in others)], rows


def side_by_side(comparison: Comparison) -> dict[str, Table]:
    """Return, for each deciding figure, a table candidate × setting; nothing is ranked in it.

    Returns title → table; empty if there is only one setting.
    """
    if len(comparison.settings) < 2:
        return {}
    names = sorted({candidate.label for _, candidate in comparison.candidates})
    found: dict[str, Table] = {}
    for figure in deciding(comparison):
        cells = {
            (candidate.label, place): shown(figure, candidate.figures[figure], len(candidate.runs))
            for place, setting in enumerate(comparison.settings)
            for candidate in setting.candidates
        }
        places = range(len(comparison.settings))
        rows = [[name, *(cells.get((name, place), "–") for place in places)] for name in names]
        found[comparison.figures[figure]] = (["", *(setting.title for setting in comparison.settings)], rows)
    return found


def differing_options(groups: Mapping[str, Mapping[str, str]]) -> Table:
    """Return the options that differ between groups, one a row.

    groups: title → its options.
    """
    _, differing = telling(list(groups.values()))
    return ["option", *groups], [[path, *(own.get(path, "–") for own in groups.values())] for path in differing]


def runs_table(comparison: Comparison) -> Table:
    """Return every run with its figures."""
    several = len(comparison.settings) > 1
    heads = ["run", *(["setting"] if several else []), "candidate", "seed", *comparison.figures.values()]
    rows = []
    for setting, candidate in comparison.candidates:
        for run, own in zip(candidate.runs, candidate.measured, strict=True):
            figures = [shown(name, Spread.of([own.get(name)]), 1) for name in comparison.figures]
            where = [setting.title] if several else []
            rows.append([run.start.run[:8], *where, candidate.label, str(run.start.options.seed), *figures])
    return heads, rows


def averaged_in_words(setting: Setting) -> str:
    """Return which evaluations the figures of a setting are means of."""
    if len(setting.averaged) == 1:
        return f"Figures are those of the last evaluation (round {setting.averaged[0]})"
    rounds = rounds_in_words(setting.averaged)
    return f"Figures are means over the last {len(setting.averaged)} evaluations (rounds {rounds})"


def as_data(comparison: Comparison) -> dict[str, Any]:
    """Return the whole comparison as plain JSON types."""
    return {
        "notes": list(comparison.notes),
        "figures": dict(comparison.figures),
        "shared": comparison.shared,
        "settings": [
            {
                "title": setting.title,
                "facts": setting.facts,
                "options": dict(setting.options),
                "averaged_rounds": list(setting.averaged),
                "baseline": None if setting.baseline is None else setting.baseline.label,
                "notes": list(setting.notes),
                "sentences": setting.sentences(),
                "candidates": [
                    {
                        "place": place,
                        "label": candidate.label,
                        "options": dict(candidate.options),
                        "test_patches": candidate.tested,
                        "figures": {name: _plain(spread) for name, spread in candidate.figures.items()},
                        "runs": [
                            {"run": run.start.run, "seed": run.start.options.seed, "figures": figures_of(run)}
                            for run in candidate.runs
                        ],
                    }
                    for place, candidate in enumerate(setting.candidates, start=1)
                ],
            }
            | {"differences": [row for row in difference_rows(comparison) if row["setting"] == setting.title]}
            for setting in comparison.settings
        ],
    }


def candidate_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row of numbers for each candidate."""
    options, _ = telling([candidate.options for _, candidate in comparison.candidates])
    rows = []
    for setting in comparison.settings:
        for place, candidate in enumerate(setting.candidates, start=1):
            row: dict[str, Any] = {"setting": setting.title, "place": place, "candidate": candidate.label}
            row |= {path: setting.options.get(path, "") for path in comparison.columns}
            row |= {path: candidate.options.get(path, "") for path in options}
            row |= {"seeds": " ".join(map(str, candidate.seeds)), "test patches": candidate.tested}
            for name, spread in candidate.figures.items():
                row |= {name if part == "mean" else f"{name} {part}": value for part, value in _plain(spread).items()}
            rows.append(row)
    return rows


def difference_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row of numbers for each two candidates of a setting and deciding figure."""
    return [
        {
            "setting": setting.title,
            "figure": each.figure,
            "candidate": each.ours,
            "minus": each.theirs,
            "seeds": len(each.values),
            **{name: _finite(value) for name, value in each.estimate._asdict().items()},
            "told apart": each.apart,
            "further seeds": each.further,
            "meaning": each.sentence,
        }
        for setting in comparison.settings
        for each in setting.differences
    ]


def _places(setting: Setting) -> Sequence[tuple[str, Candidate]]:
    """Return the candidates with their place, which is empty if there is nothing to rank."""
    ranked = len(setting.candidates) > 1
    return [(str(place) if ranked else "", each) for place, each in enumerate(setting.candidates, start=1)]


def _plain(spread: Spread) -> dict[str, float | int | None]:
    return {"mean": _finite(spread.mean), "sd": _finite(spread.sd), "n": spread.n}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
