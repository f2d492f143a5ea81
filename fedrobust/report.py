"""The report of a run: PNG figures and one HTML page that needs no other file, made from the journal alone."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fedrobust import figures
from fedrobust.federation.journal import Record, read_journal
from fedrobust.tracking import flatten

DOTS_PER_INCH = 140
LONG_TABLE = 30
"""More hospitals than this, and the table keeps to those that attacked, were suspected or were rejected."""
CARDS = {
    "test/balanced_accuracy": "balanced accuracy",
    "test/accuracy": "accuracy",
    "test/auroc": "AUROC",
    "test/worst_hospital_accuracy": "worst hospital",
    "attack/success_rate": "attack success",
    "defense/precision": "suspicion precision",
    "defense/recall": "suspicion recall",
}
CURVES = {
    "balanced accuracy": "test/balanced_accuracy",
    "accuracy": "test/accuracy",
    "worst hospital": "test/worst_hospital_accuracy",
    "attack success": "attack/success_rate",
}


CHAPTERS = {
    "How well the global model reads, and how well the attack works": {
        "curves": "Held-out patients, after each evaluated round. Attack success: of the patches that are read "
        "correctly without the trigger, the share that the trigger turns into the attacker's label."
    },
    "Whom the coordinator trusted": {
        "reputation": "Reputation of each hospital by round. The true attackers stand at the top, in vermilion; the "
        "coordinator does not know them. A dot marks a round after which the hospital was suspected, a cross an update "
        "that was refused.",
        "weights": "Share of each hospital in the aggregate. A defence that works keeps the attackers' rows pale.",
        "anomaly": "Anomaly score of each update: 0 is inconspicuous, 1 could not be more conspicuous.",
    },
    "What the model misreads": {
        "confusion": "Test patches after the last evaluation, as shares of the true label, with their number.",
        "misread": "The misread test patches that the model was surest of: the truth above; below what it read "
        "instead, and with what confidence.",
    },
    "Who holds what": {"partition": "Training patches of each label at each hospital."},
}
"""The report's chapters: the pictures in each, with their captions."""


@dataclass(frozen=True)
class Hospital:
    """What happened to one hospital in a run, and what it really was."""

    client: int
    attack: str | None
    """The name of its attack; None if it is honest."""
    participated: int
    suspected: int
    """Rounds in which it was suspected."""
    first: int | None
    """The first round in which it was suspected."""
    suspected_now: bool
    """Suspected after the last round."""
    rejected: int
    reputation: float | None
    weight: float | None
    """Its mean share of the aggregate; None where the rule gives no weights."""
    accuracy: float | None
    patches: int

    @property
    def verdict(self) -> str:
        """`caught`, `missed`, `wrongly suspected` or `honest`."""
        if self.attack:
            return "caught" if self.suspected_now else "missed"
        return "wrongly suspected" if self.suspected_now else "honest"


@dataclass(frozen=True)
class Run:
    """A journal, sorted by kind; `start` is its first record."""

    start: Record
    rounds: list[Record]
    evaluations: list[Record]
    end: Record | None

    @classmethod
    def of(cls, journal: Sequence[Record]) -> Run:
        """Sort the records of a journal, which begins with its `start`."""
        kinds: dict[str, list[Record]] = {"round": [], "evaluation": [], "end": []}
        for record in journal[1:]:
            kinds[record["kind"]].append(record)
        return cls(journal[0], kinds["round"], kinds["evaluation"], kinds["end"][-1] if kinds["end"] else None)

    @property
    def attackers(self) -> dict[int, str]:
        """The true attackers: client → name of the attack."""
        return {int(client): str(name) for client, name in self.start["attackers"].items()}

    @property
    def final(self) -> dict[str, float]:
        """The figures after the last round."""
        found: dict[str, float] = {}
        for record in (*self.rounds[-1:], *self.evaluations[-1:]):
            found |= record.get("detection", {}) | record.get("metrics", {})
        return found

    def by_client(self, field: str) -> np.ndarray:
        """A per-client field of the round records as (clients, rounds) float64, NaN where there is no figure."""
        values = np.full((self.start["clients"], len(self.rounds)), np.nan)
        for column, record in enumerate(self.rounds):
            for client, value in (record.get(field) or {}).items():
                values[int(client), column] = np.nan if value is None else value
        return values

    def marks(self, field: str) -> np.ndarray:
        """Which clients `field`, a list or a mapping, names in each round: (clients, rounds) bool."""
        named = np.zeros((self.start["clients"], len(self.rounds)), dtype=bool)
        for column, record in enumerate(self.rounds):
            for client in record.get(field) or ():
                named[int(client), column] = True
        return named

    def hospitals(self) -> list[Hospital]:
        """Every hospital's story, attackers first."""
        suspected, rejected, present = self.marks("suspected"), self.marks("rejected"), self.marks("participants")
        reputation, weights = self.by_client("reputation"), self.by_client("weights")
        accuracy = self.evaluations[-1].get("hospitals", {}) if self.evaluations else {}
        patches = np.asarray(self.start["hospital_labels"]).sum(axis=1)
        stories = []
        for client in sorted(range(self.start["clients"]), key=lambda client: (client not in self.attackers, client)):
            when = np.flatnonzero(suspected[client])
            stories.append(
                Hospital(
                    client=client,
                    attack=self.attackers.get(client),
                    participated=int(present[client].sum()),
                    suspected=len(when),
                    first=self.rounds[when[0]]["round"] if len(when) else None,
                    suspected_now=bool(self.rounds) and bool(suspected[client, -1]),
                    rejected=int(rejected[client].sum()),
                    reputation=_last(reputation[client]),
                    weight=float(np.nanmean(weights[client])) if np.isfinite(weights[client]).any() else None,
                    accuracy=accuracy.get(str(client)),
                    patches=int(patches[client]),
                )
            )
        return stories


def defence(experiment: Mapping[str, Any]) -> str:
    """The stages and the rule of a resolved experiment, as `clip → nnm → geometric_median`."""
    aggregation = experiment["aggregation"]
    return " → ".join([stage["name"] for stage in aggregation["stages"]] + [aggregation["rule"]["name"]])


def attack(experiment: Mapping[str, Any]) -> str:
    """The attacks of a resolved experiment, as `sign_flip + label_flip`, or `no attack`."""
    return " + ".join(attack["name"] for attack in experiment["attacks"]) or "no attack"


def save_partition(
    folder: Path,
    counts: np.ndarray,
    label_names: Sequence[str],
    attackers: Collection[int] = (),
    patients: Sequence[int] | None = None,
) -> None:
    """Write `partition.png`, the picture of who holds what: `counts` (hospitals, labels), `patients` (hospitals,)."""
    named = attackers if isinstance(attackers, Mapping) else dict.fromkeys(attackers, "attacker")
    (folder / "partition.png").write_bytes(_png(figures.partition_figure(counts, label_names, named, patients)))


def write_report(folder: Path, images: np.ndarray | None = None) -> Path:
    """Write `figures/*.png` and `report.html` into a run's folder, from its journal; returns the page's path.

    `images` (n, H, W, 3) uint8 are the patches that the `end` record's `misread` indices point into; without them there
    is no montage. A run that stopped early gives a report of what there is.
    """
    run = Run.of(read_journal(folder))
    pictures = {name: _png(figure) for name, figure in make_figures(run, images).items()}
    (folder / "figures").mkdir(exist_ok=True)
    for name, picture in pictures.items():
        (folder / "figures" / f"{name}.png").write_bytes(picture)
    if not (folder / "partition.png").exists():
        save_partition(folder, np.array(run.start["hospital_labels"]), run.start["label_names"], run.attackers)
    pictures["partition"] = (folder / "partition.png").read_bytes()
    page = folder / "report.html"
    page.write_text(html(run, pictures), encoding="utf-8")
    return page


def make_figures(run: Run, images: np.ndarray | None = None) -> dict[str, Figure]:
    """All the figures that the records allow, by name, in the order of the report."""
    names = run.start["label_names"]
    rounds = [record["round"] for record in run.rounds]
    found: dict[str, Figure] = {}
    if run.evaluations:
        curves = {}
        for title, metric in CURVES.items():
            points = [(record["round"], record["metrics"].get(metric)) for record in run.evaluations]
            points = [point for point in points if point[1] is not None]
            if points:
                curves[title] = ([round for round, _ in points], [float(value) for _, value in points])
        attacking = {record["round"]: len(record["attacking"]) for record in run.rounds}
        found["curves"] = figures.curves_figure(curves, attacking, chance=1 / len(names))
    for kind in figures.HEAT_MAPS:
        values = run.by_client(kind)
        if np.isfinite(values).any():
            marks = (run.marks("suspected"), run.marks("rejected")) if kind == "reputation" else (None, None)
            found[kind] = figures.client_figure(values, rounds, run.attackers, kind, *marks)
    if run.evaluations:
        found["confusion"] = figures.confusion_figure(np.array(run.evaluations[-1]["confusion"]), names)
    misread = (run.end or {}).get("misread")
    if images is not None and misread and misread["indices"]:
        read = (misread["truth"], misread["predicted"], misread["confidence"])
        found["misread"] = figures.misread_figure(images[misread["indices"]], *read, names)
    return found


def html(run: Run, pictures: Mapping[str, bytes]) -> str:
    """The report as one page without scripts or references to anything outside it."""
    experiment = run.start["experiment"]
    title = escape(experiment["name"])
    partition = experiment["data"]["partition"]
    facts = [
        f"{attack(experiment)} against {defence(experiment)}",
        _plural(run.start["clients"], "hospital"),
        " ".join(str(partition[key]) for key in ("name", "alpha") if key in partition),
        _plural(len(run.rounds), "round"),
        f"seed {experiment['seed']}",
    ]
    settings = flatten({key: value for key, value in experiment.items() if key != "name"})
    rows = "".join(f"<tr><td>{escape(path)}</td><td>{escape(value)}</td></tr>" for path, value in settings.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body><main>
<h1>{title}</h1>
<p class="facts">{" · ".join(escape(fact) for fact in facts)}</p>
{_cards(run.final)}
<p class="verdict">{escape(verdict(run))}</p>
{_sections(run, pictures)}
<section>
<h2>Hospital by hospital</h2>
{_table(run.hospitals())}
</section>
<section>
<h2>Settings</h2>
<details><summary>All {len(settings)} settings of the experiment</summary>
<div class="wide"><table class="settings"><tbody>{rows}</tbody></table></div></details>
<p class="note">run {escape(str(run.start["run"]))} · {run.start["parameters"]:,} parameters ·
data {escape(str(run.start["digest"])[:16])} · {_seconds(run)}</p>
</section>
</main></body></html>
"""


def verdict(run: Run) -> str:
    """Who attacked, who was suspected after the last round, and whether rightly so, in one or two sentences."""
    stories = run.hospitals()
    count = Counter(story.verdict for story in stories)
    attackers, suspects = count["caught"] + count["missed"], count["caught"] + count["wrongly suspected"]
    suspected = f"{_plural(suspects, 'hospital')} {'is' if suspects == 1 else 'are'} suspected"
    when = f"after round {run.rounds[-1]['round']}" if run.rounds else "so far"
    if not attackers:
        return f"No hospital attacked; {when}, {suspected}{', wrongly' if suspects else ''}."
    outcome = f": {count['caught']} rightly, {count['wrongly suspected']} wrongly" if suspects else ""
    missed = f"{count['missed']} of the attackers {'was' if count['missed'] == 1 else 'were'} missed"
    return (
        f"{attackers} of {_plural(len(stories), 'hospital')} attacked. {when.capitalize()}, {suspected}{outcome}; "
        f"{missed if count['missed'] else 'no attacker was missed'}."
    )


def _plural(count: int, word: str) -> str:
    return f"{count or 'no'} {word}{'' if count == 1 else 's'}"


def _sections(run: Run, pictures: Mapping[str, bytes]) -> str:
    parts = []
    for heading, captions in CHAPTERS.items():
        shown = [_figure(name, text, pictures[name]) for name, text in captions.items() if name in pictures]
        if "reputation" in captions and run.rounds and "weights" not in pictures:
            shown.append('<p class="note">The rule works coordinate by coordinate, so no hospital has a weight.</p>')
        if shown:
            parts.append(f"<section>\n<h2>{heading}</h2>\n" + "\n".join(shown) + "\n</section>")
    return "\n".join(parts)


def _figure(name: str, text: str, picture: bytes) -> str:
    data, width = base64.b64encode(picture).decode(), int.from_bytes(picture[16:20], "big") * 102 // DOTS_PER_INCH
    image = f'<img src="data:image/png;base64,{data}" width="{width}" alt="{escape(text)}">'
    return f'<figure id="{name}">{image}<figcaption>{escape(text)}</figcaption></figure>'


def _cards(final: Mapping[str, float]) -> str:
    cards = [
        f'<div class="card{" attack" if name.startswith("attack") else ""}"><b>{_number(final[name])}</b>'
        f"<span>{title}</span></div>"
        for name, title in CARDS.items()
        if final.get(name) is not None
    ]
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _table(stories: Sequence[Hospital]) -> str:
    shown = [s for s in stories if len(stories) <= LONG_TABLE or s.attack or s.suspected or s.rejected]
    rows = []
    for story in shown:
        since = f"{story.suspected} of {story.participated}" + (f", from {story.first}" if story.first else "")
        verdict = "" if story.verdict == "honest" else story.verdict
        cells = {
            "hospital": str(story.client),
            "truth": escape(story.attack or "honest"),
            "in the end": f'<span class="{story.verdict.replace(" ", "-")}">{verdict}</span>',
            "rounds suspected": since if story.suspected else "–",
            "rejected": str(story.rejected or "–"),
            "reputation": _number(story.reputation),
            "mean weight": _number(story.weight),
            "test accuracy": _number(story.accuracy),
            "patches": f"{story.patches:,}",
        }
        kind = ' class="attacker"' if story.attack else ""
        rows.append(f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in cells.values()) + "</tr>")
    rest = len(stories) - len(shown)
    note = f'<p class="note">{rest} other hospitals were honest and never suspected.</p>' if rest else ""
    head = "".join(f"<th>{head}</th>" for head in cells) if shown else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>{note}'


def _seconds(run: Run) -> str:
    seconds = [record["seconds"]["round"] for record in run.rounds if record.get("seconds", {}).get("round")]
    return f"{sum(seconds):,.0f} s in all, {np.median(seconds):.2f} s a round" if seconds else "no round was finished"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _last(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return out.getvalue()


_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f6f8; color: #1d2733; overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 0 0 16px; }
.facts, .note, figcaption, summary, th, .card span, .settings td:first-child { color: #56616d; }
.facts { margin: 0 0 24px; }
.note, figcaption { font-size: 14px; margin: 10px 0 0; max-width: 76ch; }
.cards { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); }
.card, section { background: #fff; border: 1px solid #e2e6ea; border-radius: 10px; padding: 12px 14px; }
.card b { display: block; font-size: 25px; font-weight: 650; font-variant-numeric: tabular-nums; }
.card span { font-size: 13px; }
.verdict { font-size: 17px; margin: 20px 0 24px; }
section { padding: 22px 24px; margin: 0 0 20px; }
figure { margin: 0 0 28px; }
figure:last-child { margin-bottom: 0; }
figure img { display: block; max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px 6px 0; border-bottom: 1px solid #edf0f2; text-align: left; vertical-align: bottom; }
td { white-space: nowrap; }
.caught { color: #00734f; font-weight: 600; } .caught::before { content: "✓ "; }
.attacker td:nth-child(-n+2), .attack b, .missed, .wrongly-suspected { color: #b84f00; font-weight: 650; }
.missed::before { content: "✗ "; } .wrongly-suspected::before { content: "! "; }
.settings td { white-space: normal; min-width: 12em; }
summary { cursor: pointer; }
@media (max-width: 640px) { main { padding: 20px 10px 40px; } section { padding: 16px 14px; } }
"""
