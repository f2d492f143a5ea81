"""The report as one HTML page without scripts, and without references to anything outside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedrobust.figures.rows import MOST_ROWS
from fedrobust.records import RecordedRun
from fedrobust.records.trace import TRACE, Trace
from fedrobust.report.elements import Table, plural, render
from fedrobust.report.story import CHOSEN, SHORT_LIST, Hospital, hospitals, listed, unlearnt
from fedrobust.report.titles import titles_of_one
from fedrobust.texts import fit
from fedrobust.tracking import flatten

ALL_HOSPITALS = "hospitals.csv"
"""The file with the rows of all hospitals, in the run's folder, if the page lists only some."""
VERDICTS = {
    "caught": "attackers, caught",
    "missed": "attackers, missed",
    "wrongly quarantined": "honest, wrongly quarantined",
    "wrongly suspected": "honest, wrongly suspected",
    "honest": "honest, not found",
}
"""Verdict on a hospital → the row of all hospitals with it."""
LONGEST_NOTE = 300
"""Characters of a note of the rules; some name hospitals."""
WORKING = 0.05
"""An attack that succeeds at least this often is shown as something bad."""

CHAPTERS = {
    "How well the global model reads, and how well the attack works": {
        "curves": "Held-out patients, after each evaluated round. Attack success: of the patches that are read "
        "correctly without the trigger, the share that the trigger turns into the attacker's label."
    },
    "Whom the coordinator trusted": {
        "reputation": "Reputation of each hospital by round. The true attackers stand at the top, in vermilion, with a "
        "line below each round in which they attack; the coordinator does not know this. A dot marks a round after "
        "which the hospital was suspected, a bar one after which it was in quarantine, a cross an update that was "
        "refused. A dark line on the left of a round: from then on the hospital appears under another identity.",
        "weights": "Share of each hospital in the aggregate. A defence that works keeps the attackers' rows pale.",
        "anomaly": "Anomaly score of each update: 0 is inconspicuous, 1 could not be more conspicuous. There is none "
        "where a hospital took no part or its update was refused.",
        "parts": "What the anomaly score is made of, on the same scale: what the detector looked at, one by one.",
    },
    "What the model misreads": {
        "confusion": "Test patches after the last evaluation, as shares of the true label, with their number.",
        "misread": "The misread test patches that the model was surest of: the truth above; below what it read "
        "instead, and with what confidence.",
    },
    "Who holds what": {"partition": "Training patches of each label at each hospital."},
    "Where the seconds of a round go": {
        "timeline": "The round of median length: which process did what, and when. While actors train, the driver "
        "writes the round before to disk; while the coordinator works, the actors evaluate the model before.",
    },
}
"""The report's chapters: the pictures in each, with their captions."""


def html(
    run: RecordedRun, pictures: Mapping[str, bytes], audit: str = "", officer: bool = False, trace: Trace | None = None
) -> str:
    """Return the report as one page without scripts or references to anything outside it.

    run: the records of the run.
    pictures: name → PNG file.
    audit: says whether the run's audit log verifies.
    officer: whether there is a page for the security officer beside it.
    trace: the timeline of the run, if it was recorded.
    """
    options = run.start.options
    partition = options.data.partition
    facts = [
        f"{options.attack} against {options.defence}",
        plural(run.start.clients, "hospital"),
        partition.name if partition.alpha is None else f"{partition.name} {partition.alpha}",
        plural(len(run.rounds), "round"),
        f"seed {options.seed}",
        options.protocol,
    ]
    final, cards = run.final, titles_of_one(run.final)
    return render(
        "report/templates/run.html.j2",
        title=f"{options.name} · privacy {options.privacy.name}",
        facts=facts,
        skipped=run.skips.summary() if run.skips.reasons else "",
        untrained=run.skips.untrained,
        unlearnt=unlearnt(run),
        cards=[
            (title, _number(value), name == "attack/success_rate" and value >= WORKING)
            for name, title in cards.items()
            if (value := final.get(name)) is not None
        ],
        verdict=verdict(run),
        unweighted=unweighted(run),
        crowd=run.start.clients > MOST_ROWS,
        captions=CHAPTERS,
        pictures=pictures,
        rounds=len(run.rounds),
        hospitals=_hospitals(run),
        steps=_steps(run),
        settings=flatten({key: value for key, value in run.start.experiment.items() if key != "name"}),
        labels=run.start.label_names,
        start=run.start,
        seconds=_seconds(run),
        audit=audit,
        officer=officer,
        timeline=_timeline(trace),
    )


def verdict(run: RecordedRun) -> str:
    """Say who attacked, who was detected after the last round, and whether rightly so, in one or two sentences.

    A hospital counts as detected if it is in quarantine or, if quarantine does not act, if it is suspected.
    """
    stories = hospitals(run)
    if run.skips.untrained and not run.judged:
        attacked = f"{plural(len(run.attackers), 'hospital')} attacked" if run.attackers else "No hospital attacked"
        return f"{attacked}; nobody was judged, as no round had an update to compare with others."
    count = Counter(story.verdict.split()[0] for story in stories)
    attackers, found = count["caught"] + count["missed"], count["caught"] + count["wrongly"]
    state = "quarantined" if run.acts else "suspected" + (" (recorded only)" if found else "")
    told = f"{plural(found, 'hospital')} {'is' if found == 1 else 'are'} {state}"
    when = f"after round {run.rounds[-1].round}" if run.rounds else "so far"
    if not attackers:
        return f"No hospital attacked; {when}, {told}{', wrongly' if found else ''}."
    outcome = f": {count['caught']} rightly, {count['wrongly']} wrongly" if found else ""
    missed = f"{count['missed']} of the attackers {'was' if count['missed'] == 1 else 'were'} missed"
    return (
        f"{attackers} of {plural(len(stories), 'hospital')} attacked. {when.capitalize()}, {told}{outcome}; "
        f"{missed if count['missed'] else 'no attacker was missed'}."
    )


def unweighted(run: RecordedRun) -> str:
    """Say why no hospital has a weight in any round; empty if there are weights, or no rounds."""
    if not run.rounds or any(record.weights for record in run.rounds):
        return ""
    if run.skips.untrained:
        return "No hospital has a weight, because every round was skipped."
    rule = run.start.options.aggregation.rule.name
    return f"No hospital has a weight, because {rule} gives none: its aggregate is no weighted mean of the updates."


def _hospitals(run: RecordedRun) -> dict[str, Any]:
    """Return the table of the hospitals: its heads, the cells of each hospital, how many are not listed and why, and,
    if it is a short list, a table of all of them by verdict."""
    stories = hospitals(run)
    shown, short = listed(stories)
    renamed = any(len(story.identities) > 1 for story in stories)
    inside = "rounds quarantined" if run.acts else "quarantine, recorded only"
    quarantine = run.acts or any(story.quarantined for story in stories)
    judged = run.judged or not run.skips.untrained
    rows = []
    for story in shown:
        verdict = story.verdict if judged and story.verdict != "honest" else ""
        cells = {
            "hospital": str(story.client),
            "truth": _truth(story),
            "in the end": verdict,
            "rounds suspected" if run.acts else "suspected, recorded only": _since(story.suspected, story.first),
            inside: _since(story.quarantined, story.quarantined_from),
            "identities": _identities(story),
            "rejected": str(story.rejected or "–"),
            "reputation": _number(story.reputation),
            "mean weight": _number(story.weight),
            "test accuracy": _number(story.accuracy),
            "patches": f"{story.patches:,}",
        }
        left_out = {inside: not quarantine, "identities": not renamed}
        rows.append((story, {head: cell for head, cell in cells.items() if not left_out.get(head)}))
    return {
        "heads": list(rows[0][1]) if rows else [],
        "rows": rows,
        "rest": len(stories) - len(shown),
        "never": "suspected or quarantined" if quarantine else "suspected",
        "groups": _groups(stories) if short else None,
        "chosen": CHOSEN,
        "all": ALL_HOSPITALS,
    }


def _groups(stories: Sequence[Hospital]) -> Table:
    """Return the hospitals by verdict: how many there are, and medians of their figures."""
    figures = {
        "rounds suspected": "suspected",
        "rounds quarantined": "quarantined",
        "rejected": "rejected",
        "reputation": "reputation",
        "mean weight": "weight",
        "test accuracy": "accuracy",
        "patches": "patches",
    }
    verdicts = Counter(story.verdict for story in stories)
    rows = []
    for verdict in sorted(verdicts, key=list(VERDICTS).index):
        own = [story for story in stories if story.verdict == verdict]
        row = [VERDICTS[verdict], f"{len(own):,}"]
        for field in figures.values():
            there = [value for story in own if (value := getattr(story, field)) is not None]
            row.append(f"{np.median(there):.3g}" if there else "–")
        rows.append(row)
    return ["", "hospitals", *figures], rows


def _truth(story: Hospital) -> str:
    """Return the attack, and how often it was active if not always."""
    if story.attack is None:
        return "honest"
    always = story.attacked == story.participated
    return story.attack + ("" if always else f", {story.attacked} of {story.participated} rounds")


def _since(count: int, first: int | None) -> str:
    return f"{count}, from {first}" if count else "–"


def _identities(story: Hospital) -> str:
    """Return the ids under which a hospital appeared, if not only its own: the first three, and how many more."""
    if len(story.identities) == 1:
        return "–"
    ids, more = story.identities[:3], len(story.identities) - 3
    return ", ".join(map(str, ids)) + (f" and {more} more" if more > 0 else "")


def _steps(run: RecordedRun) -> dict[str, Any]:
    """Return how each part of the defence judged every hospital in the last round, and what the rules noted."""
    aggregated = [record for record in run.rounds if record.stages]
    if not aggregated:
        return {}
    last = aggregated[-1]
    usable = (client for client in last.participants if client not in last.rejected)
    clients = sorted(usable, key=lambda c: (c not in run.attackers, c))
    there = set(clients)
    shown = [story.client for story in listed([story for story in hospitals(run) if story.client in there])[0]]
    parts = last.anomaly_parts
    seen = list(dict.fromkeys(part for own in parts.values() for part in own))
    columns = [
        (f"{stage.name}: {kind}", figures)
        for stage in last.stages
        for kind, figures in (("score", stage.scores), ("weight", stage.weights))
        if figures
    ]
    names = [f"anomaly: {part.replace('_', ' ')}" for part in seen]
    names += [name for name, _ in columns]
    rows = []
    for client in shown:
        cells = [str(client), run.attackers.get(client, "honest")]
        cells += [_figure_of(parts.get(client, {}).get(part)) for part in seen]
        cells += [_figure_of(figures.get(client)) for _, figures in columns]
        rows.append((client in run.attackers, cells))
    notes = Counter(note for record in run.rounds for note in record.notes)
    return {
        "round": last.round,
        "f": last.f,
        "parts": seen,
        "heads": ["hospital", "truth", *names],
        "rows": rows,
        "rest": len(clients) - len(shown),
        "notes": [(fit(note, LONGEST_NOTE), count) for note, count in notes.most_common(SHORT_LIST)],
        "more": notes.total() - sum(count for _, count in notes.most_common(SHORT_LIST)),
    }


def _figure_of(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else "< 0.001" if value > 0 else "> −0.001"


def _timeline(trace: Trace | None) -> dict[str, Any]:
    """Return the table of the steps of the median round, and what to know about its picture."""
    if trace is None or (whole := trace.median_round) is None:
        return {}
    rows = [[name, f"{seconds:.3f} s", f"{seconds / whole.seconds:.1%}"] for name, seconds in trace.shares().items()]
    return {
        "round": whole.args.get("round", 0),
        "table": (["step", "seconds", "share of the round"], rows),
        "file": TRACE,
        "hosts": trace.hosts,
        "lanes": len(trace.lanes),
    }


def _seconds(run: RecordedRun) -> str:
    seconds = [seconds for record in run.rounds if (seconds := record.seconds.get("round"))]
    return f"{sum(seconds):,.0f} s in all, {np.median(seconds):.2f} s a round" if seconds else "no round was finished"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
