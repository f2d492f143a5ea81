"""The report as one HTML page without scripts, and without references to anything outside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from fedrobust.report.elements import document, escaped, picture, plural
from fedrobust.report.story import Hospital, Run, attack, defence, protocol
from fedrobust.tracking import flatten

LONG_TABLE = 30
"""More hospitals than this, and the table keeps to those that attacked, were suspected, quarantined or rejected."""
CARDS = {
    "test/balanced_accuracy": "balanced accuracy",
    "test/accuracy": "accuracy",
    "test/auroc": "AUROC",
    "test/worst_hospital_accuracy": "worst hospital",
    "attack/success_rate": "attack success",
    "defense/precision": "suspicion precision",
    "defense/recall": "suspicion recall",
}

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
}
"""The report's chapters: the pictures in each, with their captions."""


def html(run: Run, pictures: Mapping[str, bytes], audit: str = "") -> str:
    """The report as one page without scripts or references to anything outside it.

    `audit` says whether the run's audit log verifies.
    """
    experiment = run.start["experiment"]
    title = escaped(experiment["name"])
    partition = experiment["data"]["partition"]
    facts = [
        f"{attack(experiment)} against {defence(experiment)}",
        plural(run.start["clients"], "hospital"),
        " ".join(str(partition[key]) for key in ("name", "alpha") if key in partition),
        plural(len(run.rounds), "round"),
        f"seed {experiment['seed']}",
        protocol(experiment),
    ]
    settings = flatten({key: value for key, value in experiment.items() if key != "name"})
    rows = "".join(f"<tr><td>{escaped(path)}</td><td>{escaped(value)}</td></tr>" for path, value in settings.items())
    labels = ", ".join(f"“{escaped(name)}”" for name in run.start["label_names"])
    body = f"""<h1>{title}</h1>
<p class="facts">{" · ".join(escaped(fact) for fact in facts)}</p>
{_skipped(run)}{_cards(run.final)}
<p class="verdict">{escaped(verdict(run))}</p>
{_sections(run, pictures)}
<section>
<h2>Hospital by hospital</h2>
{_table(run)}
</section>
{_steps(run)}
<section>
<h2>Settings</h2>
<details><summary>All {len(settings)} settings of the experiment</summary>
<div class="wide"><table class="settings"><tbody>{rows}</tbody></table></div></details>
<p class="note">Labels, in the order of the pictures: {labels}.</p>
<p class="note">run {escaped(run.start["run"])} · {run.start["parameters"]:,} parameters ·
data {escaped(str(run.start["digest"])[:16])} · {_seconds(run)}{f" · {escaped(audit)}" if audit else ""}</p>
</section>"""
    return document(experiment["name"], body)


def verdict(run: Run) -> str:
    """Who attacked, who was found out after the last round, and whether rightly so, in one or two sentences.

    Found out is who is in quarantine, or, where quarantine does not act, who is suspected.
    """
    stories = run.hospitals()
    if run.skips.untrained and not run.judged:
        attacked = f"{plural(len(run.attackers), 'hospital')} attacked" if run.attackers else "No hospital attacked"
        return f"{attacked}; nobody was judged, as no round had an update to compare with others."
    count = Counter(story.verdict.split()[0] for story in stories)
    attackers, found = count["caught"] + count["missed"], count["caught"] + count["wrongly"]
    state = "quarantined" if run.acts else "suspected"
    told = f"{plural(found, 'hospital')} {'is' if found == 1 else 'are'} {state}"
    when = f"after round {run.rounds[-1]['round']}" if run.rounds else "so far"
    if not attackers:
        return f"No hospital attacked; {when}, {told}{', wrongly' if found else ''}."
    outcome = f": {count['caught']} rightly, {count['wrongly']} wrongly" if found else ""
    missed = f"{count['missed']} of the attackers {'was' if count['missed'] == 1 else 'were'} missed"
    return (
        f"{attackers} of {plural(len(stories), 'hospital')} attacked. {when.capitalize()}, {told}{outcome}; "
        f"{missed if count['missed'] else 'no attacker was missed'}."
    )


def _skipped(run: Run) -> str:
    """How many rounds were skipped and why; nothing where none was."""
    if not run.skips.reasons:
        return ""
    told = f"Rounds skipped: {run.skips.told()}."
    if run.skips.untrained:
        told = f"No round changed the model: it is the initial one, and has no figures here. {told}"
    return f'<p class="verdict missed">{escaped(told)}</p>\n'


def _sections(run: Run, pictures: Mapping[str, bytes]) -> str:
    parts = []
    for heading, captions in CHAPTERS.items():
        shown = [picture(name, text, pictures[name]) for name, text in captions.items() if name in pictures]
        if "reputation" in captions and run.rounds and "weights" not in pictures:
            shown.append('<p class="note">The rule works coordinate by coordinate, so no hospital has a weight.</p>')
        if shown:
            parts.append(f"<section>\n<h2>{heading}</h2>\n" + "\n".join(shown) + "\n</section>")
    return "\n".join(parts)


def _cards(final: Mapping[str, float]) -> str:
    cards = [
        f'<div class="card{" attack" if name.startswith("attack") else ""}"><b>{_number(final[name])}</b>'
        f"<span>{title}</span></div>"
        for name, title in CARDS.items()
        if final.get(name) is not None
    ]
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _table(run: Run) -> str:
    stories = run.hospitals()
    shown = [s for s in stories if len(stories) <= LONG_TABLE or _matters(s)]
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
            "rounds suspected": _since(story.suspected, story.first),
            inside: _since(story.quarantined, story.quarantined_from),
            "identities": _identities(story),
            "rejected": str(story.rejected or "–"),
            "reputation": _number(story.reputation),
            "mean weight": _number(story.weight),
            "test accuracy": _number(story.accuracy),
            "patches": f"{story.patches:,}",
        }
        left_out = {inside: not quarantine, "identities": not renamed}
        cells = {head: cell for head, cell in cells.items() if not left_out.get(head)}
        kind = ' class="attacker"' if story.attack is not None else ""
        shown_cells = {head: escaped(cell) for head, cell in cells.items()}
        shown_cells["in the end"] = f'<span class="{story.verdict.split()[0]}">{verdict}</span>'
        rows.append(f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in shown_cells.values()) + "</tr>")
    rest = len(stories) - len(shown)
    never = "suspected or quarantined" if quarantine else "suspected"
    note = f'<p class="note">{rest} other hospitals were honest and never {never}.</p>' if rest else ""
    head = "".join(f"<th>{head}</th>" for head in cells) if shown else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>{note}'


def _matters(story: Hospital) -> bool:
    return bool(story.attack is not None or story.suspected or story.quarantined or story.rejected)


def _truth(story: Hospital) -> str:
    """The attack, and how often it was active if that is not always."""
    if story.attack is None:
        return "honest"
    always = story.attacked == story.participated
    return story.attack + ("" if always else f", {story.attacked} of {story.participated} rounds")


def _since(count: int, first: int | None) -> str:
    return f"{count}, from {first}" if count else "–"


def _identities(story: Hospital) -> str:
    """The ids under which a hospital appeared, if not its own alone: the first three, and how many more."""
    if len(story.identities) == 1:
        return "–"
    ids, more = story.identities[:3], len(story.identities) - 3
    return ", ".join(map(str, ids)) + (f" and {more} more" if more > 0 else "")


def _steps(run: Run) -> str:
    """What each part of the defence made of every hospital in the last round, and what the rules noted."""
    aggregated = [record for record in run.rounds if record.get("stages")]
    if not aggregated:
        return ""
    last = aggregated[-1]
    usable = (int(client) for client in last["participants"] if str(client) not in last["rejected"])
    clients = sorted(usable, key=lambda c: (c not in run.attackers, c))
    shown = clients if len(clients) <= LONG_TABLE else [c for c in clients if c in run.attackers]
    parts = last.get("anomaly_parts") or {}
    seen = list(dict.fromkeys(part for own in parts.values() for part in own))
    columns = [(stage, kind) for stage in last["stages"] for kind in ("scores", "weights") if stage[kind]]
    names = [f"anomaly: {part.replace('_', ' ')}" for part in seen]
    names += [f"{stage['name']}: {kind[:-1]}" for stage, kind in columns]
    head = "".join(f"<th>{escaped(name)}</th>" for name in names)
    rows = []
    for client in shown:
        cells = [str(client), run.attackers.get(client, "honest")]
        cells += [_figure_of(parts.get(str(client), {}).get(part)) for part in seen]
        cells += [_figure_of(stage[kind].get(str(client), stage[kind].get(client))) for stage, kind in columns]
        kind = ' class="attacker"' if client in run.attackers else ""
        rows.append(f"<tr{kind}>" + "".join(f"<td>{escaped(cell)}</td>" for cell in cells) + "</tr>")
    notes = Counter(note for record in run.rounds for note in record.get("notes", ()))
    told = "".join(
        f'<p class="note">{escaped(note)} ({plural(count, "round")})</p>' for note, count in notes.most_common()
    )
    rest = len(clients) - len(shown)
    note = f'<p class="note">{rest} other hospitals were honest.</p>' if rest else ""
    judged = "The anomaly score is told by its parts. " if seen else ""
    when = f"Round {escaped(last['round'])}, f = {escaped(last['f'])}."
    return f"""<section>
<h2>What the defence made of each update, step by step</h2>
<p class="note">{when} {judged}A score is what a step judged the update by: the
higher, the worse. A weight is the update's share in the mean of what the step passed on, and in the aggregate after the
last.</p>
<div class="wide"><table><thead><tr><th>hospital</th><th>truth</th>{head}</tr></thead>
<tbody>{"".join(rows)}</tbody></table></div>{note}{told}
</section>"""


def _figure_of(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else "< 0.001" if value > 0 else "> −0.001"


def _seconds(run: Run) -> str:
    seconds = [record["seconds"]["round"] for record in run.rounds if record.get("seconds", {}).get("round")]
    return f"{sum(seconds):,.0f} s in all, {np.median(seconds):.2f} s a round" if seconds else "no round was finished"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
