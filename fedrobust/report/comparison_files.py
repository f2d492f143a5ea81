"""The files of a comparison: pictures, and one HTML page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fedrobust import figures
from fedrobust.records import RecordedRun, read_run
from fedrobust.report.compare import Comparison, compare
from fedrobust.report.comparison_page import PICTURED, comparison_html
from fedrobust.report.finding import find_runs
from fedrobust.texts import file_name

CURVES = {
    "test/balanced_accuracy": "balanced accuracy",
    "test/worst_hospital_accuracy": "accuracy at the worst hospital",
    "attack/success_rate": "attack success",
}
"""The figures that are drawn by round, in this order, with their titles."""


def write_comparison(names: Sequence[str], runs: Path, out: Path) -> tuple[Comparison, Path]:
    """Compare the runs that `names` select; return the comparison, and the page's path.

    names: ids of runs, or names of experiments; see `find_runs`.
    runs: the folder that contains the folders of the runs.
    out: the folder for the new folder, which is named after `names`; `compare.html` and `figures/*.png` are written to
        it.

    Raises `ExperimentError` if a name selects no run, or if there is nothing to compare.
    """
    comparison = compare([read_run(folder) for folder in find_runs(names, runs)])
    pictures = {name: figures.png(figure) for name, figure in make_comparison_figures(comparison).items()}
    text = comparison_html(_title(names), comparison, pictures)
    folder = out / folder_name(names)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        (folder / "figures" / f"{name}.png").write_bytes(picture)
    page = folder / "compare.html"
    page.write_text(text, encoding="utf-8")
    return comparison, page


def make_comparison_figures(comparison: Comparison) -> dict[str, Figure]:
    """Return the possible pictures, by name, of the best `PICTURED` groups."""
    groups = {f"{place}  {group.label}": group for place, group in enumerate(comparison.groups[:PICTURED], start=1)}
    found = {}
    curves = {title: {name: group.curve(metric) for name, group in groups.items()} for metric, title in CURVES.items()}
    if there := {title: bands for title, bands in curves.items() if any(band.rounds for band in bands.values())}:
        found["curves"] = figures.bands_figure(there)
    trust = {name: values for name, group in groups.items() if np.isfinite(values := group.trust()).any()}
    if trust:
        found["trust"] = figures.strips_figure(trust)
        found["reputation"] = figures.panels_figure(
            [_panel(name, groups[name].runs[0]) for name in trust], "reputation"
        )
    return found


def folder_name(names: Sequence[str]) -> str:
    """Return a folder's name: what is compared, separated by commas. Different names give different folders."""
    joined = ",".join(file_name(_short(name)) for name in names)
    return joined if len(joined.encode()) <= 120 else file_name(joined)


def _title(names: Sequence[str]) -> str:
    short = [_short(name) for name in names]
    return ", ".join(short[:6]) + (f" and {len(short) - 6} more" if len(short) > 6 else "")


def _short(name: str) -> str:
    return name[:8] if re.fullmatch("[0-9a-f]{32}", name) else name


def _panel(label: str, run: RecordedRun) -> figures.Panel:
    marks = figures.Marks(attacking=run.marks("attacking"), quarantined=run.marks("quarantined"), acts=run.acts)
    rounds = [record.round for record in run.rounds]
    return figures.Panel(label, run.by_client("reputation"), rounds, run.attackers, marks)
