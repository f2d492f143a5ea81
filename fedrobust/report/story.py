"""The history of each hospital in a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from fedrobust.metrics.chance import MORE, against, at_chance
from fedrobust.records import RecordedRun

LONG_TABLE = 30
"""With more hospitals than this, tables list only those that attacked, were suspected, quarantined or rejected."""
SHORT_LIST = 10
"""So many hospitals are listed if even those are more than `LONG_TABLE`."""
CHOSEN = (
    "taken in turn from the attackers that were missed (largest mean weight first), the honest hospitals that were "
    "found (most rounds first) and the attackers that were caught (lowest reputation first)"
)
"""How the hospitals of a short list are chosen."""


@dataclass(frozen=True)
class Hospital:
    """The history of one hospital in a run, and whether it was malicious."""

    client: int
    attack: str | None
    """The name of its attack; None if it is honest."""
    attacked: int
    """Number of rounds in which it attacked."""
    participated: int
    suspected: int
    """Number of rounds in which it was suspected."""
    first: int | None
    """The first round in which it was suspected."""
    suspected_now: bool
    """Whether it was suspected after the last round."""
    quarantined: int
    """Number of rounds after which it was in quarantine."""
    quarantined_from: int | None
    """The first of these rounds."""
    quarantined_now: bool
    """Whether it was in quarantine after the last round."""
    acts: bool
    """Whether quarantine excludes hospitals; if not, the coordinator's final judgement is suspicion."""
    identities: tuple[int, ...]
    """The ids under which it appeared, in this order."""
    rejected: int
    reputation: float | None
    weight: float | None
    """Its mean share of the aggregate; None if the rule gives no weights."""
    accuracy: float | None
    patches: int

    @property
    def eventful(self) -> bool:
        """Whether it attacked, or was ever suspected, quarantined or rejected."""
        return bool(self.attack is not None or self.suspected or self.quarantined or self.rejected)

    @property
    def verdict(self) -> str:
        """`caught`, `missed`, `wrongly suspected` (if quarantine acts: `wrongly quarantined`) or `honest`."""
        found = self.quarantined_now if self.acts else self.suspected_now
        if self.attack is not None:
            return "caught" if found else "missed"
        return f"wrongly {'quarantined' if self.acts else 'suspected'}" if found else "honest"


def hospitals(run: RecordedRun) -> list[Hospital]:
    """Return the history of every hospital, attackers first."""
    suspected, rejected, present = run.marks("suspected"), run.marks("rejected"), run.marks("participants")
    quarantined, attacking, identities = run.marks("quarantined"), run.marks("attacking"), run.identities()
    reputation, weights = run.by_client("reputation"), run.by_client("weights")
    accuracy = run.evaluations[-1].hospitals if run.evaluations and not run.skips.untrained else {}
    patches = np.asarray(run.start.hospital_labels).sum(axis=1)
    stories = []
    for client in sorted(range(run.start.clients), key=lambda client: (client not in run.attackers, client)):
        when, inside = np.flatnonzero(suspected[client]), np.flatnonzero(quarantined[client])
        stories.append(
            Hospital(
                client=client,
                attack=run.attackers.get(client),
                attacked=int(attacking[client].sum()),
                participated=int(present[client].sum()),
                suspected=len(when),
                first=run.rounds[when[0]].round if len(when) else None,
                suspected_now=bool(run.rounds) and bool(suspected[client, -1]),
                quarantined=len(inside),
                quarantined_from=run.rounds[inside[0]].round if len(inside) else None,
                quarantined_now=bool(run.rounds) and bool(quarantined[client, -1]),
                acts=run.acts,
                identities=tuple(dict.fromkeys([client, *identities[client].tolist()])),
                rejected=int(rejected[client].sum()),
                reputation=_last(reputation[client]),
                weight=float(np.nanmean(weights[client])) if np.isfinite(weights[client]).any() else None,
                accuracy=accuracy.get(client),
                patches=int(patches[client]),
            )
        )
    return stories


def ranked(stories: Sequence[Hospital]) -> dict[str, list[Hospital]]:
    """Return the hospitals that a reader asks for first, by the first word of their verdict: `missed`, `wrongly` and
    `caught`, each in the order of `CHOSEN`."""
    kinds: dict[str, list[Hospital]] = {"missed": [], "wrongly": [], "caught": []}
    for story in stories:
        kinds.setdefault(story.verdict.split()[0], []).append(story)
    kinds["missed"].sort(key=lambda story: (-(story.weight or 0.0), -(story.reputation or 0.0), story.client))
    kinds["wrongly"].sort(key=lambda story: (-story.quarantined, -story.suspected, story.reputation or 0, story.client))
    kinds["caught"].sort(key=lambda story: (story.reputation or 0.0, story.client))
    return {kind: kinds[kind] for kind in ("missed", "wrongly", "caught")}


def listed(stories: Sequence[Hospital]) -> tuple[list[Hospital], bool]:
    """Return the hospitals that a table lists, attackers first, and whether it is a short list (see `CHOSEN`).

    stories: of all hospitals that the table is about.
    """
    if len(stories) <= LONG_TABLE:
        return list(stories), False
    eventful = [story for story in stories if story.eventful]
    return (eventful, False) if len(eventful) <= LONG_TABLE else (short_list(stories), True)


def short_list(stories: Sequence[Hospital]) -> list[Hospital]:
    """Return the hospitals of a short list, attackers first."""
    turns = [story for turn in zip_longest(*ranked(stories).values()) for story in turn if story is not None]
    return sorted(turns[:SHORT_LIST], key=lambda story: (story.attack is None, story.client))


def unlearnt(run: RecordedRun) -> str:
    """Return one line if the last evaluated model is at chance, with what can be done about it; else an empty text."""
    if run.skips.untrained or not run.evaluations:
        return ""
    last = run.evaluations[-1]
    accuracy, labels = last.metrics.get("test/balanced_accuracy"), sum(any(row) for row in last.confusion)
    if accuracy is None or labels < 2 or not at_chance(accuracy, 1 / labels):
        return ""
    rounds = f"{last.round} round{'' if last.round == 1 else 's'}"
    said = f"the model is at chance (balanced accuracy {against(accuracy, 1 / labels)}) after {rounds}"
    if not run.attackers:
        return f"{said}: {MORE}"
    return f"{said}: the attackers have ruined it, or it needs {MORE}; a run with attacks=[] shows which"


def _last(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None
