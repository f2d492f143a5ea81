"""The files of a comparison: pictures, one HTML page, and its tables for programs."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fedrobust import figures
from fedrobust.records import RecordedRun, read_run
from fedrobust.report.compare import Candidate, Comparison, Setting, compare
from fedrobust.report.comparison_page import OVERVIEW, PICTURED, comparison_html, picture_name
from fedrobust.report.comparison_tables import as_data, candidate_rows, difference_rows
from fedrobust.report.finding import find_runs
from fedrobust.texts import cell, file_name

CURVES = {
    "test/balanced_accuracy": "balanced accuracy",
    "test/worst_hospital_accuracy": "accuracy at the worst hospital",
    "attack/success_rate": "attack success",
}
"""The figures that are drawn by round, in this order, with their titles."""
MOST_SETTINGS = 6
"""Settings beyond this number have no pictures of their own."""


def write_comparison(names: Sequence[str], runs: Path, out: Path) -> tuple[Comparison, Path]:
    """Compare the runs that `names` select; return the comparison, and the page's path.

    names: ids of runs, or names of experiments; see `find_runs`.
    runs: the folder that contains the folders of the runs.
    out: the folder for the new folder, which is named after `names`; `compare.html`, `candidates.csv`,
        `differences.csv`, `compare.json` and `figures/*.png` are written to it.

    Raises `ExperimentError` if a name selects no run, or if there is nothing to compare.
    """
    comparison = compare([read_run(folder) for folder in find_runs(names, runs)])
    drawn, missing = make_comparison_figures(comparison)
    pictures = {name: figures.png(figure) for name, figure in drawn.items()}
    text = comparison_html(_title(names), comparison, pictures, missing)
    folder = out / folder_name(names)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for old in (folder / "figures").glob("*.png"):
        if old.stem not in pictures:
            old.unlink()  # from an earlier comparison of the same names
    for name, picture in pictures.items():
        (folder / "figures" / f"{name}.png").write_bytes(picture)
    page = folder / "compare.html"
    page.write_text(text, encoding="utf-8")
    _write_csv(folder / "candidates.csv", candidate_rows(comparison))
    _write_csv(folder / "differences.csv", difference_rows(comparison))
    data = json.dumps(as_data(comparison), indent=1, ensure_ascii=False)
    (folder / "compare.json").write_text(data + "\n", encoding="utf-8")
    return comparison, page


def make_comparison_figures(comparison: Comparison) -> tuple[dict[str, Figure], dict[str, str]]:
    """Return the possible pictures by name, and why others, or panels of them, are missing.

    The pictures of a setting show its best `PICTURED` candidates.
    """
    found: dict[str, Figure] = {}
    missing: dict[str, str] = {}
    every = {f"{setting.title}: {each.label}": each for setting, each in comparison.candidates}
    if len(comparison.settings) > 1 and len(every) <= PICTURED and (curves := _curves(every)):
        found[OVERVIEW] = figures.bands_figure(curves)
    for place, setting in enumerate(comparison.settings, start=1):
        if place > MOST_SETTINGS:
            why = f"Only the first {MOST_SETTINGS} settings have pictures: compare fewer runs to see those of this one"
            missing[picture_name("curves", place)] = why
        else:
            drawn, absent = _of_setting(setting)
            found |= {picture_name(name, place): figure for name, figure in drawn.items()}
            missing |= {picture_name(name, place): why for name, why in absent.items()}
    return found, missing


def folder_name(names: Sequence[str]) -> str:
    """Return a folder's name: what is compared, separated by commas. Different names give different folders."""
    joined = ",".join(file_name(_short(name)) for name in names)
    return joined if len(joined.encode()) <= 120 else file_name(joined)


def _of_setting(setting: Setting) -> tuple[dict[str, Figure], dict[str, str]]:
    """Return the pictures of a setting, and why others are missing; `curves:TITLE` is a panel of `curves`."""
    candidates = setting.candidates[:PICTURED]
    named = {f"{place}  {each.label}" if len(candidates) > 1 else each.label: each
             for place, each in enumerate(candidates, start=1)}  # fmt: skip
    found, missing = {}, {}
    curves = _curves(named)
    if curves:
        found["curves"] = figures.bands_figure(curves)
    for metric, title in CURVES.items():
        if without := [name for name, each in named.items() if not each.curve(metric).rounds]:
            missing[f"curves:{title}"] = _no_curve(metric, title, without if len(without) < len(named) else [])
    trust = {name: values for name, each in named.items() if np.isfinite(values := each.trust()).any()}
    if trust:
        found["trust"] = figures.strips_figure(trust)
        panels = [_panel(name, named[name].runs[0]) for name in trust]
        found["reputation"] = figures.panels_figure(panels, "reputation")
    if without := [name for name in named if name not in trust]:
        whose = f" of {', '.join(without)}" if trust else ""
        missing["trust"] = f"No reputations{whose}: the records have none, because no update was scored"
    return found, missing


def _curves(candidates: Mapping[str, Candidate]) -> dict[str, dict[str, figures.Lines]]:
    found: dict[str, dict[str, figures.Lines]] = {}
    for metric, title in CURVES.items():
        curves = {name: candidate.curve(metric) for name, candidate in candidates.items()}
        for name, curve in curves.items():
            if curve.rounds:
                found.setdefault(title, {})[name] = (curve.rounds, curve.values)
    return found


def _no_curve(metric: str, title: str, without: Sequence[str]) -> str:
    why = "the records have no such figure"
    if metric.startswith("attack/"):
        why = "no attack in these runs has a target, so none can succeed or fail"
    return f"No curve of {title}{' for ' + ', '.join(without) if without else ''}: {why}"


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, names, restval="")
        table.writeheader()
        table.writerows({name: cell(value) for name, value in row.items()} for row in rows)


def _title(names: Sequence[str]) -> str:
    short = [_short(name) for name in names]
    return ", ".join(short[:6]) + (f" and {len(short) - 6} more" if len(short) > 6 else "")


def _short(name: str) -> str:
    return name[:8] if re.fullmatch("[0-9a-f]{32}", name) else name


def _panel(label: str, run: RecordedRun) -> figures.Panel:
    marks = figures.Marks(attacking=run.marks("attacking"), quarantined=run.marks("quarantined"), acts=run.acts)
    rounds = [record.round for record in run.rounds]
    return figures.Panel(label, run.by_client("reputation"), rounds, run.attackers, marks)
