"""The files of a matrix: tables for programs, one page of Markdown for readers, pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedrobust.figures import png
from fedrobust.intervals import Estimate, mean_interval
from fedrobust.matrices.gaps import ceilings, hopeless, legend, unlearnt
from fedrobust.matrices.grid import NOBODY, MatrixPlan
from fedrobust.matrices.pictures import heat_map
from fedrobust.matrices.results import (
    DefenceSummary,
    attacks_by_seed,
    detections,
    harmless,
    remarks,
    screened,
    verdicts,
)
from fedrobust.matrices.statistics import lowest
from fedrobust.studies.writing import GO_ON_ANYWAY, drawn
from fedrobust.texts import cell, file_names, markdown

AGAIN = "When the matrix is started again with the same command"
UNDETECTED = {
    "detection_auroc": "no update of malicious and honest hospitals was scored",
    "precision": "nobody was suspected in rounds 11 to 20, or there are fewer rounds",
    "recall": "nobody attacked in rounds 11 to 20, or there are fewer rounds",
    "ejected": "nobody attacked",
    "rounds_to_eject": "no malicious hospital was ejected",
    "rounds_to_forgive": "no honest hospital was in quarantine under an attack",
}
"""Figures of detection → what it means if a defence has none."""


def write_results(folder: Path, grid: MatrixPlan, table: Any, complete: bool = True) -> list[DefenceSummary]:
    """Write `cells`, `summary` and `detection` as CSV, `cells.parquet`, `table.md`, and a heat map for each setting.

    grid: the matrix.
    folder: must exist.
    table: the cells, as `results.table_of` makes them; cells may be missing.
    complete: False marks `table.md` and the pictures as those of a matrix that was stopped.

    Returns the verdicts, one for each setting and defence.
    """
    found = verdicts(table, grid.matrix.control, grid.backdoors, grid.matrix.worst)
    _write_csv(table, folder / "cells.csv")
    table.to_parquet(folder / "cells.parquet", index=False)
    _write_csv(_frame([verdict.flat() for verdict in found]), folder / "summary.csv")
    _write_csv(detections(table), folder / "detection.csv")
    (folder / "table.md").write_text(page(grid, table, found, complete), encoding="utf-8")
    name = grid.matrix.name if complete else f"{grid.matrix.name}, incomplete"
    files = file_names(grid.settings)
    warning = unlearnt(table, grid.rounds)
    for setting in grid.settings:
        pale = harmless(table, setting, grid.matrix.control, grid.backdoors)
        own = table[(table["setting"] == setting) & (table["phase"] == "screening")]
        empty = legend(own, "robustness", ceilings(table[table["setting"] == setting]))
        headlines = {verdict.defence: verdict.robustness.value for verdict in found if verdict.setting == setting}
        values, place = screened(table, setting), folder / f"heatmap_{files[setting]}.png"
        with drawn(place):
            place.write_bytes(png(heat_map(values, pale, headlines, f"{name}: {setting}", warning, empty), dots=130))
    return found


def headline_metrics(found: Iterable[DefenceSummary]) -> dict[str, float]:
    """Return the headlines under the names that MLflow shows; those that are incomplete have none.

    found: the summaries, as `write_results` returns them.
    """
    return {
        f"{verdict.setting}/{verdict.defence}/{name}": value
        for verdict in found
        for name in ("robustness", "gain", "success", "cost", "accuracy")
        if math.isfinite(value := getattr(verdict, name).value)
    }


def headline_tags(grid: MatrixPlan, table: Any, found: Iterable[DefenceSummary]) -> dict[str, str]:
    """Return the tags of the matrix's own run in MLflow: which headlines are incomplete and why, and which oracles are
    at chance. Where there is nothing to say they are empty, so that they replace those of an earlier execution.

    grid, table: as in `write_results`.
    found: what it returns.
    """
    lacking = [f"{each.setting}/{each.defence}: {each.why['robustness']}" for each in found if each.lacks]
    return {"incomplete": "; ".join(lacking), "unlearnt": unlearnt(table, grid.rounds)}


def page(grid: MatrixPlan, table: Any, found: Sequence[DefenceSummary], complete: bool = True) -> str:
    """Return the whole result as Markdown; arguments as in `write_results`, `found` is what it returns."""
    done, failed, left = ((table["state"] == state).sum() for state in ("done", "failed", "missing"))
    counts = f"{done} of {len(table)} cells are done, {failed} failed"
    lines = [f"# {grid.matrix.name}", "", f"{counts}, {left} are missing." if left else f"{counts}.", ""]
    if not complete:
        again = GO_ON_ANYWAY[0].upper() + GO_ON_ANYWAY[1:]
        how = again if hopeless(table, grid.matrix.screening) else f"{AGAIN}, it goes on"
        lines += [f"**Incomplete**: the matrix was stopped before its end. {how}.", ""]
    if warning := unlearnt(table, grid.rounds):
        lines += [f"**{warning[0].upper()}{markdown(warning[1:])}.**", ""]
    for setting in grid.settings:
        own = table[table["setting"] == setting]
        here = [verdict for verdict in found if verdict.setting == setting]
        lines += [f"## {setting}", "", *_about(grid, own, setting)]
        lines += ["### Headline", "", *_headline(here), "", "### Every attack, screening", ""]
        pale = harmless(own, setting, grid.matrix.control, grid.backdoors)
        lines += [*_screening(own, setting, pale), ""]
        lines += ["### The worst attacks of each defence, fresh seeds", "", *_again(own, here), ""]
        if grid.backdoors:
            lines += ["### Backdoors", "", *_backdoors(own, here, grid.backdoors), ""]
        lines += ["### Detection", "", *_detection(own), "", "### Nobody attacks", "", *_cost(own, here), ""]
    broken = table[table["state"] == "failed"]
    if len(broken):
        lines += ["## Failed cells", "", f"{AGAIN}, they are run again.", ""]
        lines += [
            f"- {line.setting}, {line.attack}, {line.defence}, seed {line.seed}: {markdown(line.failed)}"
            for line in broken.itertuples()
        ]
        lines.append("")
    return "\n".join(lines)


def _about(grid: MatrixPlan, own: Any, setting: str) -> list[str]:
    found = [ceiling.accuracy for ceiling in ceilings(own).values()]
    seeds = f"screening on {_listed(grid.matrix.screening)}, fresh {_listed(grid.matrix.fresh)}"
    fraction = grid.settings[setting]["fraction"]
    reached = (
        f"reaches a balanced accuracy of {_number(mean_interval(found).value)} on average"
        if found
        else "is not measured"
    )
    return [
        f"{fraction:.0%} malicious; seeds: {seeds}. The oracle, which leaves the attackers out, {reached}.",
        "",
    ]


def _headline(found: Sequence[DefenceSummary]) -> list[str]:
    head = ("defence", "robustness", "worst attack", "to the best", "backdoor gain", "cost", "seconds", "unfinished")
    best = "best of the complete ones" if any(verdict.lacks for verdict in found) else "best"
    lines = [
        (
            verdict.defence,
            "incomplete"
            if verdict.lacks
            else f"**{_number(verdict.robustness.value)}**{_interval(verdict.robustness)}",
            verdict.worst_attack or "–",
            best if index == 0 and not verdict.lacks else _estimate(verdict.to_the_best),
            _estimate(verdict.gain),
            _estimate(verdict.cost),
            _seconds(verdict),
            verdict.unfinished or "–",
        )
        for index, verdict in enumerate(found)
    ]
    notes = [f"- {markdown(remark)}" for remark in remarks(found)]
    return [*_markdown(head, lines), *(["", *notes] if notes else [])]


def _screening(own: Any, setting: str, pale: Sequence[str]) -> list[str]:
    values = screened(own, setting)
    worst = {defence: lowest(row.to_dict()) for defence, row in values.iterrows()}
    lines = []
    for attack in values.columns:
        shown = {defence: _number(value) for defence, value in values[attack].items()}
        row = [f"**{value}**" if attack in worst[defence] else value for defence, value in shown.items()]
        lines.append([f"{attack} (harmless)" if attack in pale else attack, *row])
    empty = legend(own[own["phase"] == "screening"], "robustness", ceilings(own))
    note = " ".join(filter(None, ("Bold: the worst attack of each defence.", empty)))
    return [*_markdown(["attack", *values.index], lines), "", note]


def _again(own: Any, found: Sequence[DefenceSummary]) -> list[str]:
    lines = []
    for verdict in found:
        accuracies = attacks_by_seed(own, verdict.defence, "balanced_accuracy")
        measured = attacks_by_seed(own, verdict.defence, "robustness")
        for attack in sorted(measured, key=lambda name: mean_interval(list(measured[name].values())).value):
            estimate = mean_interval(list(measured[attack].values()), len(measured))
            accuracy = mean_interval(list(accuracies[attack].values())).value
            lines.append((verdict.defence, attack, _estimate(estimate), _number(accuracy), len(measured[attack])))
    if not lines:
        return ["No attack has a figure on the fresh seeds; the reasons are below the headline."]
    return _markdown(("defence", "attack", "robustness", "balanced accuracy", "seeds"), lines)


def _backdoors(own: Any, found: Sequence[DefenceSummary], backdoors: Sequence[str]) -> list[str]:
    """Return the success of every backdoor on the screening seeds, and on the fresh ones if it was measured again."""
    unplanted = []
    for attack in backdoors:
        cells = own[own["attack"] == attack]
        first, again = (cells[cells["phase"] == phase]["baseline_success"] for phase in ("screening", "fresh"))
        shown = _number(first.mean())
        unplanted.append(f"*{shown}; {_number(again.mean())}*" if again.notna().any() else f"*{shown}*")
    lines = [["*nobody planted it*", *unplanted]]
    for verdict in found:
        row = [verdict.defence]
        for attack in backdoors:
            first, again = (
                attacks_by_seed(own, verdict.defence, "attack_success", phase).get(attack, {})
                for phase in ("screening", "fresh")
            )
            shown = _number(mean_interval(list(first.values())).value)
            row.append(f"{shown}; {_number(mean_interval(list(again.values())).value)}" if again else shown)
        lines.append(row)
    planted = own[own["attack"].isin(backdoors) & (own["phase"] == "screening")]
    empty = legend(planted, "attack_success", ceilings(own))
    note = " ".join(filter(None, ("After the semicolon: the mean over the fresh seeds.", empty)))
    return [*_markdown(["defence", *backdoors], lines), "", note]


def _detection(own: Any) -> list[str]:
    found = detections(own)
    head = {
        "defence": "defence",
        "detection_auroc": "AUROC by round 20",
        "least_auroc": "worst attack",
        "hardest_attack": "which",
        "precision": "precision",
        "recall": "recall",
        "ejected": "ejected",
        "rounds_to_eject": "rounds to eject",
        "rounds_to_forgive": "rounds to forgive",
        "cells_with_honest_ejected": "cells, also without an attack, that eject an honest one for good",
        "cells_with_rarest_ejected": "the rarest one",
    }
    if not len(found):
        return ["No cell with an attack is done."]
    empty = [f"{head[name]}: {why}" for name, why in UNDETECTED.items() if found[name].isna().any()]
    note = ["", f"–: {'; '.join(empty)}."] if empty else []

    lines = [[line[name] for name in head] for line in found.to_dict("records")]
    return [*_markdown(list(head.values()), lines), *note]


def _cost(own: Any, found: Sequence[DefenceSummary]) -> list[str]:
    head = ("defence", "balanced accuracy", "cost", "seconds a cell")
    lines = [(v.defence, _estimate(v.accuracy), _estimate(v.cost), _seconds(v)) for v in found]
    empty = legend(own[own["attack"] == NOBODY], "balanced_accuracy", ceilings(own))
    return [*_markdown(head, lines), *(["", empty] if empty else [])]


def _markdown(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> list[str]:
    shown = [[_number(cell) if isinstance(cell, float) else str(cell) for cell in line] for line in lines]
    return [f"| {' | '.join(row)} |" for row in (list(head), ["---"] * len(head), *shown)]


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _seconds(verdict: DefenceSummary) -> str:
    return f"{verdict.seconds:.1f}" if math.isfinite(verdict.seconds) else "–"


def _interval(estimate: Estimate) -> str:
    return f" [{_number(estimate.low)}, {_number(estimate.high)}]" if math.isfinite(estimate.low) else ""


def _estimate(estimate: Estimate) -> str:
    return f"{_number(estimate.value)}{_interval(estimate)}"


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _write_csv(table: Any, file: Path) -> None:
    table.map(cell).to_csv(file, index=False)


def _frame(lines: Sequence[Mapping[str, Any]]) -> Any:
    import pandas as pd

    return pd.DataFrame(lines)
