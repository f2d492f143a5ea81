"""The patches of an experiment before a run: how they are divided, and what that means for a defence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedrobust.data import Outline
from fedrobust.data.hospitals import label_counts
from fedrobust.data.majorities import VOTES, breakdown, dissimilarity, majority_share, safe_liars
from fedrobust.experiment import Experiment
from fedrobust.portions import portion
from fedrobust.secure import SecretSharing
from fedrobust.terminal.elements import plain
from fedrobust.trust import Jury

ENOUGH_PATIENTS = 10
"""With patches of fewer patients, a referee decided worse in trials."""
ASSUMED = (0.1, 0.2, 0.3, 0.4)
"""Shares of malicious hospitals for which is said whether the honest ones have the majority."""
FEW = 8
"""More names than these are not listed, only counted."""


def show_data(
    out: Console, experiment: Experiment, outline: Outline, parts: Mapping[str, np.ndarray], hospital: np.ndarray
) -> None:
    """Print which patches an experiment has, as its source tells before any image is opened.

    outline: of the patches.
    parts: the positions of each part of the split, with `root` if patches are set aside.
    hospital: (N,) of each patch.
    """
    table = Table(show_header=False)
    table.add_row("patches", str(len(outline)))
    table.add_row("labels", _counted(np.array(outline.label_names)[outline.labels], outline.label_names))
    for name, texts in (("patients", outline.groups), ("centres", outline.centres)):
        table.add_row(name, "unknown" if texts is None else _counted(texts, np.unique(texts).tolist()))
    for part, positions in parts.items():
        if not len(positions):
            continue
        whose = "" if outline.groups is None else f" of {len(np.unique(outline.groups[positions]))} patients"
        table.add_row("set aside" if part == "root" else part, f"{len(positions)}{whose}")
    if "root" in parts:
        table.add_row("coordinator", _own(experiment, outline, parts["root"]))
    clients, classes = experiment.federation.clients, outline.classes
    counts = label_counts(parts["train"], hospital, outline.labels, clients, classes)
    held = counts.sum(axis=1)
    table.add_row("hospitals", f"{clients}, with {held.min()} to {held.max()} patches to train on")
    if clients > 1:
        table.add_row("honest majority", _majority(experiment, counts, outline.label_names))
        if experiment.trust.jury is not None:
            table.add_row("jury", plain(_jury(experiment.trust.jury, counts, outline.label_names)))
        table.add_row("breakdown", plain(_breakdown(experiment, counts)))
    if isinstance(experiment.privacy, SecretSharing):
        pool = parts.get("root", np.zeros(0, dtype=np.int64))
        own = experiment.data.root.drawn(pool, outline.labels, outline.groups, experiment.seed)
        table.add_row("opened", plain(_opened(experiment, experiment.privacy, len(np.unique(outline.labels[own])))))
    for note in outline.notes:
        table.add_row("note", plain(note))
    out.print(table)


def _own(experiment: Experiment, outline: Outline, pool: np.ndarray) -> Text:
    """Which of the patches that are set aside the coordinator gets, and whether they suffice."""
    drawn = experiment.data.root.drawn(pool, outline.labels, outline.groups, experiment.seed)
    patients = len(drawn) if outline.groups is None else len(np.unique(outline.groups[drawn]))
    whose = "" if outline.groups is None else f" of {patients} patients"
    names, labels = outline.label_names, outline.labels[drawn]
    doubts = [f"no {name}" for label, name in enumerate(names) if not (labels == label).any()]
    if patients < ENOUGH_PATIENTS:
        doubts.append(f"{ENOUGH_PATIENTS} patients or more decide better")
    if len(drawn) < experiment.data.root.patches:
        doubts.append(f"{experiment.data.root.patches} patches were asked for")
    doubts += ["raise data.root.set_aside"] * bool(doubts)
    found = f"{len(drawn)}{whose}: {_counted(np.array(names)[labels], names)}"
    return plain("; ".join([found, *doubts]))


def _majority(experiment: Experiment, counts: NDArray[np.int64], names: Sequence[str]) -> Text:
    """Whether the honest hospitals have the majority within each label, for some numbers of malicious hospitals."""
    clients, own, safe = len(counts), len(experiment.attackers.drawn), safe_liars(counts)
    able = (counts >= VOTES).sum(axis=0)
    rarest = int(able.argmin())
    lines = [
        f"hospitals with {VOTES} patches of a label can judge a model by it: {able[rarest]} of {clients} or more",
        f"({names[rarest]}); do the honest ones among them outnumber the malicious, within each label?",
    ]
    for liars in sorted({portion(share, clients) for share in ASSUMED} | {own}):
        if 0 < liars < clients:
            share = majority_share(counts, liars, experiment.seed)
            whose = ", as in this experiment" if liars == own else ""
            lines.append(f"{liars} of {clients} malicious{whose}: {_often(share, liars <= safe)}")
    return Text("\n").join([plain(line) for line in lines])


def _jury(jury: Jury, counts: NDArray[np.int64], names: Sequence[str]) -> str:
    """Whether there are votes enough if all hospitals take part and none lies."""
    voters, needed = (counts >= VOTES).sum(axis=0), jury.needed(len(counts))
    rarest, liars = int(voters.argmin()), needed // 2
    found = f"it needs {needed} votes about each label, because {liars} of {len(counts)} hospitals may be malicious"
    if voters[rarest] < needed:
        lower = "; lower trust.jury.fraction, or take another partition"
        return f"{found}, and has {voters[rarest]} about {names[rarest]}: the defence alone will decide{lower}"
    left = int(voters[rarest]) - liars
    if left >= needed:
        return f"{found}, and has them, whether the malicious ones vote or not"
    return (
        f"{found}, and has {voters[rarest]} or more; but if the malicious ones do not vote, {left} about "
        f"{names[rarest]} may be left, and the defence alone decides"
    )


def _often(share: float, certain: bool) -> str:
    """A share of the draws of the malicious hospitals, in words."""
    if certain:
        return "yes, whichever they are"
    return f"in {min(99, max(1, round(100 * share)))} of 100 cases" if share else "no"


def _breakdown(experiment: Experiment, counts: NDArray[np.int64]) -> str:
    """From which share of malicious hospitals on no rule can promise anything, as far as the labels say."""
    b2 = dissimilarity(counts)
    limit, attacking = breakdown(b2), len(experiment.attackers.drawn) / len(counts)
    beyond = f"; in this experiment {attacking:.0%} are" if attacking >= limit else ""
    return f"no rule can promise anything once {limit:.0%} are malicious, by the labels alone (B² {b2:.2f}){beyond}"


def _opened(experiment: Experiment, privacy: SecretSharing, labels: int) -> str:
    """What the servers open in a round, and which option asks for more than stages and rule do.

    labels: of the coordinator's own patches.
    """
    demand, alone, updates = experiment.demand(labels), experiment.aggregation.demand, experiment.most_there()
    lines = updates * (1 + len(demand.histories))
    kept = ", and what is kept of earlier ones," if demand.histories else ""
    found = {
        "gram": f"all {lines * (lines + 1) // 2} products of {updates} updates{kept} with each other",
        "norms": f"the lengths of {updates} updates, no product of two",
        "sum": "no product of updates",
    }[demand.opens]
    if alone.opens != demand.opens:
        detector = experiment.trust.detector
        asks = f"detector {detector.name}" if detector.demand(labels).opens == demand.opens else "referee"
        less = {"norms": "the lengths", "sum": "nothing"}[alone.opens]
        found += f" (because of trust.{asks}; stages and rule need {less})"
    if opened := privacy.opened(demand):
        limit = privacy.limit(demand, experiment.federation.rounds)
        most = "without a limit" if limit is None else f"{limit} in the run at most"
        found += f"; {opened} linear functionals of each update, {most}"
    exceeded = privacy.exceeded(demand, experiment.federation.rounds)
    return f"in a round {found}; one sum" + (f"; refused: {exceeded}" if exceeded else "")


def _counted(texts: np.ndarray, names: Sequence[str]) -> Text:
    """How often each name occurs; of many names, how many there are."""
    counts = [int((texts == name).sum()) for name in names[:FEW]]
    if len(names) > FEW:
        return plain(str(len(names)))
    return plain(", ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True)))
