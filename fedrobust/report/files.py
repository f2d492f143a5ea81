"""The report in a run's folder: PNG figures and one HTML page, made from the journal alone."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fedrobust import figures
from fedrobust.audit.contents import contents
from fedrobust.audit.signing import AuditError, open_key, public_hex
from fedrobust.audit.verification import Verdict, seal_files, verify, verify_all
from fedrobust.errors import ExperimentError
from fedrobust.records import RecordedRun, read_run
from fedrobust.records.trace import ROUND, TRACE, Trace, read_trace
from fedrobust.report.officer import Checked, officer_page
from fedrobust.report.page import ALL_HOSPITALS, html
from fedrobust.report.story import Hospital, hospitals, listed
from fedrobust.texts import cell

logger = logging.getLogger(__name__)

OFFICER = "officer.html"
"""The page for a security officer."""
MONTAGE = "figures/misread.png"
"""The only picture that needs the patches themselves."""
LANES = 16
"""The timeline has at most so many processes: those that did something for the longest time."""
OUTER = (ROUND, "hospital", "stack")
"""Steps that the picture of the timeline leaves out: what is inside of them, or around them, is shown."""
CURVES = {
    "balanced accuracy": "test/balanced_accuracy",
    "accuracy": "test/accuracy",
    "worst hospital": "test/worst_hospital_accuracy",
    "attack success": "attack/success_rate",
}


def save_partition(
    folder: Path,
    counts: np.ndarray,
    label_names: Sequence[str],
    attackers: Collection[int] = (),
    patients: Sequence[int] | None = None,
) -> None:
    """Write `partition.png`, the picture of the partition.

    folder: the run's folder.
    counts: (hospitals, labels) int, training patches.
    label_names: one for each column.
    attackers: ids of the malicious hospitals.
    patients: (hospitals,) number of patients.
    """
    named = attackers if isinstance(attackers, Mapping) else dict.fromkeys(attackers, "attacker")
    (folder / "partition.png").write_bytes(figures.png(figures.partition_figure(counts, label_names, named, patients)))


def write_report(folder: Path, images: np.ndarray | None = None, recorded: RecordedRun | None = None) -> Path:
    """Write `figures/*.png` and `report.html` into a run's folder, from its journal; return the page's path. If the
    page lists only some of the hospitals, `hospitals.csv` has them all.

    images: (n, H, W, 3) uint8, the patches to which the `misread` indices of the `end` record refer; without them, an
        existing montage is kept. For a run that stopped early, the report contains what there is.
    recorded: the run, if its journal has been read.
    """
    run = recorded or read_run(folder)
    trace = _trace(folder)
    pictures = {name: figures.png(figure) for name, figure in make_figures(run, images, trace).items()}
    (folder / "figures").mkdir(exist_ok=True)
    kept = {MONTAGE} if images is None else set()
    for old in (folder / "figures").glob("*.png"):
        if old.stem not in pictures and f"figures/{old.name}" not in kept:
            old.unlink()  # from an earlier report, and no longer covered by the seal
    for name, picture in pictures.items():
        (folder / "figures" / f"{name}.png").write_bytes(picture)
    if images is None and (folder / MONTAGE).exists():
        pictures["misread"] = (folder / MONTAGE).read_bytes()
    if not (folder / "partition.png").exists():
        save_partition(folder, np.array(run.start.hospital_labels), run.start.label_names, run.attackers)
    pictures["partition"] = (folder / "partition.png").read_bytes()
    stories = hospitals(run)
    if listed(stories)[1]:
        _write_hospitals(folder / ALL_HOSPITALS, stories)
    else:
        (folder / ALL_HOSPITALS).unlink(missing_ok=True)
    page = folder / "report.html"
    page.write_text(html(run, pictures, _audit(folder), (folder / OFFICER).exists(), trace), encoding="utf-8")
    return page


def _write_hospitals(path: Path, stories: Sequence[Hospital]) -> None:
    """Write the history of every hospital, one a row: the fields of `Hospital`, and its verdict."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        names = [field.name for field in fields(Hospital) if field.name != "acts"]
        table.writerow(["verdict", *names])
        for story in sorted(stories, key=lambda story: story.client):
            own = {name: getattr(story, name) for name in names}
            own["identities"] = " ".join(map(str, story.identities))
            table.writerow([story.verdict, *(cell(value) for value in own.values())])


def write_again(folder: Path, key: Path, officer: bool = False) -> Path:
    """Write the report of a run again, from its folder alone; if the run has ended with an audit log, seal it again.
    Return the path of the report.

    folder: the run's folder.
    key: the file of the key that signed the log.
    officer: write the page for a security officer, too, and return its path instead.

    Raises `AuditError`, and writes nothing, if the key is missing, or if any file that is not written again does not
    match the log and the seal.
    """
    logged = (folder / "audit.jsonl").exists()
    if not logged or read_run(folder).end is None:
        written = _officer(folder, verify(folder) if logged else None) if officer else None
        report = write_report(folder)
        return written or report
    if not key.exists():
        raise AuditError(f"{key}: no such file; the run's seal, which holds its report, is made with this key")
    signer = open_key(key)
    remade = _remade(folder, officer)
    verdict = verify_all(folder, public_hex(signer), folder.name, besides=remade)
    if verdict.broken:
        raise AuditError(f"run {folder.name}: {verdict.broken}")
    written = _officer(folder, verdict, sealed=True) if officer else None
    page = write_report(folder)
    made = [name for name in contents(folder) if remade(name)]
    seal_files(folder, signer, made, {name: value for name, value in verdict.seal.items() if not remade(name)})
    return written or page


def _officer(folder: Path, verdict: Verdict | None, sealed: bool = False) -> Path:
    """Write the page for a security officer, see `Checked`."""
    page = folder / OFFICER
    checked = Checked(verdict, sealed, (folder / MONTAGE).exists())
    page.write_text(officer_page(read_run(folder), checked), encoding="utf-8")
    return page


def _remade(folder: Path, officer: bool) -> Callable[[str], bool]:
    """Return whether `write_report` makes a file of a run anew without the patches, as a function of its path."""
    pictures = {"report.html", ALL_HOSPITALS, *([] if (folder / "partition.png").exists() else ["partition.png"])}
    pictures |= {OFFICER} if officer else set()

    def remade(name: str) -> bool:
        return name in pictures or (bool(re.fullmatch(r"figures/[^/]*\.png", name)) and name != MONTAGE)

    return remade


def _trace(folder: Path) -> Trace | None:
    """Return the timeline in a run's folder; None if there is none, or if it cannot be read."""
    if not (folder / TRACE).exists():
        return None
    try:
        return read_trace(folder / TRACE)
    except ExperimentError as error:
        logger.warning("the report has no timeline: %s", error)
        return None


def _audit(folder: Path) -> str:
    """Say whether the run's audit log verifies, up to where the run got; empty without a log."""
    if not (folder / "audit.jsonl").exists():
        return ""
    verdict = verify(folder)
    if verdict.broken:
        return f"audit log does not hold: {verdict.broken}"
    return f"audit log unbroken: {verdict.lines} lines, signed by {verdict.key[:16]}"


def make_figures(run: RecordedRun, images: np.ndarray | None = None, trace: Trace | None = None) -> dict[str, Figure]:
    """Return all possible figures of the records, by name, in the order of the report.

    images: as in `write_report`.
    trace: the timeline of the run, if it was recorded.
    """
    names = run.start.label_names
    rounds = [record.round for record in run.rounds]
    found: dict[str, Figure] = {}
    evaluations = [] if run.skips.untrained else run.evaluations  # the initial model is not a result
    if evaluations:
        curves = {}
        for title, metric in CURVES.items():
            points = [(record.round, record.metrics.get(metric)) for record in evaluations]
            there = [(round, value) for round, value in points if value is not None]
            if there:
                curves[title] = ([round for round, _ in there], [value for _, value in there])
        attacking = {record.round: len(record.attacking) for record in run.rounds}
        tested = sum(any(row) for row in evaluations[-1].confusion)  # balanced accuracy is a mean over these labels
        found["curves"] = figures.curves_figure(curves, attacking, chance=1 / max(tested, 1))
    marks = figures.Marks(attacking=run.marks("attacking"), renewed=run.renewed(), acts=run.acts)
    quarantined, rejected = run.marks("quarantined"), run.marks("rejected")
    marked = {
        "reputation": replace(marks, suspected=run.marks("suspected"), rejected=rejected, quarantined=quarantined),
        "weights": replace(marks, quarantined=quarantined) if run.acts else marks,
        "anomaly": replace(marks, rejected=rejected),
    }
    chosen = [story.client for story in listed(hospitals(run))[0]]
    for kind in figures.HEAT_MAPS:
        values = run.by_client(kind)
        if np.isfinite(values).any():
            found[kind] = figures.client_figure(values, rounds, run.attackers, kind, marked[kind], chosen)
    if parts := run.parts():
        found["parts"] = figures.parts_figure(parts, rounds, run.attackers, marks, chosen)
    if evaluations and evaluations[-1].confusion:
        found["confusion"] = figures.confusion_figure(np.array(evaluations[-1].confusion), names)
    misread = None if run.end is None or run.skips.untrained else run.end.misread
    if images is not None and misread is not None and misread.indices:
        read = (misread.truth, misread.predicted, misread.confidence)
        found["misread"] = figures.misread_figure(images[list(misread.indices)], *read, names)
    if trace is not None and (whole := trace.median_round) is not None:
        lanes = {lane.name: lane.within(whole.start, whole.end) for lane in trace.busiest(whole, LANES)}
        bars = {
            name: [(step.name, step.start, step.end) for step in own if step.name not in OUTER]
            for name, own in lanes.items()
        }
        found["timeline"] = figures.timeline_figure(bars, whole.start, whole.end)
    return found
