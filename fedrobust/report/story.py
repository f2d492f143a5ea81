"""A run as its journal tells it: the records sorted by kind, and each hospital's story."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedrobust.errors import ExperimentError
from fedrobust.records import Record, Skips


@dataclass(frozen=True)
class Hospital:
    """What happened to one hospital in a run, and what it really was."""

    client: int
    attack: str | None
    """The name of its attack; None if it is honest."""
    attacked: int
    """Rounds in which it attacked."""
    participated: int
    suspected: int
    """Rounds in which it was suspected."""
    first: int | None
    """The first round in which it was suspected."""
    suspected_now: bool
    """Suspected after the last round."""
    quarantined: int
    """Rounds after which it was in quarantine."""
    quarantined_from: int | None
    """The first of them."""
    quarantined_now: bool
    """In quarantine after the last round."""
    acts: bool
    """Whether quarantine leaves hospitals out; if not, the coordinator's last word is suspicion."""
    identities: tuple[int, ...]
    """The ids under which it appeared, in their order."""
    rejected: int
    reputation: float | None
    weight: float | None
    """Its mean share of the aggregate; None where the rule gives no weights."""
    accuracy: float | None
    patches: int

    @property
    def verdict(self) -> str:
        """`caught`, `missed`, `wrongly suspected` (where quarantine acts: `wrongly quarantined`) or `honest`."""
        found = self.quarantined_now if self.acts else self.suspected_now
        if self.attack is not None:
            return "caught" if found else "missed"
        return f"wrongly {'quarantined' if self.acts else 'suspected'}" if found else "honest"


@dataclass(frozen=True)
class Run:
    """A journal, sorted by kind; `start` is its first record."""

    start: Record
    rounds: list[Record]
    evaluations: list[Record]
    end: Record | None

    @classmethod
    def of(cls, journal: Sequence[Record]) -> Run:
        """Sort the records of a journal, which begins with its `start`. Raises `ExperimentError` for an empty one."""
        if not journal:
            raise ExperimentError("the run's journal is empty: it stopped before it began")
        kinds: dict[str, list[Record]] = {"round": [], "evaluation": [], "end": []}
        for record in journal[1:]:
            kinds[record["kind"]].append(record)
        return cls(journal[0], kinds["round"], kinds["evaluation"], kinds["end"][-1] if kinds["end"] else None)

    @property
    def attackers(self) -> dict[int, str]:
        """The true attackers: client → name of the attack."""
        return {int(client): str(name) for client, name in self.start["attackers"].items()}

    @property
    def acts(self) -> bool:
        """Whether quarantine leaves hospitals out of the aggregate."""
        return bool(self.start["experiment"].get("trust", {}).get("acts", False))

    @property
    def skips(self) -> Skips:
        """Which of its rounds were skipped."""
        return Skips.of(self.rounds)

    @property
    def judged(self) -> bool:
        """Whether any update was ever scored."""
        return any(record.get("anomaly") for record in self.rounds)

    @property
    def final(self) -> dict[str, float]:
        """The figures after the last round; none where no round was made, as the model is the initial one."""
        found: dict[str, float] = {}
        if self.skips.untrained:
            return found
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

    def parts(self) -> dict[str, np.ndarray]:
        """What the anomaly scores are made of: part → (clients, rounds) float64, NaN where there is no figure."""
        found: dict[str, np.ndarray] = {}
        for column, record in enumerate(self.rounds):
            for client, parts in (record.get("anomaly_parts") or {}).items():
                for part, value in parts.items():
                    values = found.setdefault(part, np.full((self.start["clients"], len(self.rounds)), np.nan))
                    values[int(client), column] = np.nan if value is None else value
        return found

    def identities(self) -> np.ndarray:
        """The id under which each hospital appears in each round, or would if it took part: (clients, rounds) int."""
        own = np.arange(self.start["clients"])
        found = np.repeat(own[:, None], len(self.rounds), axis=1)
        for column, record in enumerate(self.rounds):
            for client, id in (record.get("identities") or {}).items():
                found[int(client), column] = id
        return found

    def renewed(self) -> np.ndarray:
        """Where a hospital appears under another id than in the round before: (clients, rounds) bool."""
        own = np.arange(self.start["clients"])[:, None]
        renewed: np.ndarray = np.diff(self.identities(), axis=1, prepend=own) != 0
        return renewed

    def hospitals(self) -> list[Hospital]:
        """Every hospital's story, attackers first."""
        suspected, rejected, present = self.marks("suspected"), self.marks("rejected"), self.marks("participants")
        quarantined, attacking, identities = self.marks("quarantined"), self.marks("attacking"), self.identities()
        reputation, weights = self.by_client("reputation"), self.by_client("weights")
        accuracy = self.evaluations[-1].get("hospitals", {}) if self.evaluations and not self.skips.untrained else {}
        patches = np.asarray(self.start["hospital_labels"]).sum(axis=1)
        stories = []
        for client in sorted(range(self.start["clients"]), key=lambda client: (client not in self.attackers, client)):
            when, inside = np.flatnonzero(suspected[client]), np.flatnonzero(quarantined[client])
            stories.append(
                Hospital(
                    client=client,
                    attack=self.attackers.get(client),
                    attacked=int(attacking[client].sum()),
                    participated=int(present[client].sum()),
                    suspected=len(when),
                    first=self.rounds[when[0]]["round"] if len(when) else None,
                    suspected_now=bool(self.rounds) and bool(suspected[client, -1]),
                    quarantined=len(inside),
                    quarantined_from=self.rounds[inside[0]]["round"] if len(inside) else None,
                    quarantined_now=bool(self.rounds) and bool(quarantined[client, -1]),
                    acts=self.acts,
                    identities=tuple(dict.fromkeys([client, *identities[client].tolist()])),
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


def protocol(experiment: Mapping[str, Any]) -> str:
    """The protocol of a resolved experiment, and whether its secrets are any, as `shares, real secrets`."""
    privacy = experiment.get("privacy", {"name": "clear"})
    if "randomness" not in privacy:
        return f"privacy {privacy['name']}"
    real = "real secrets" if privacy["randomness"] == "system" else "NOT SECRET: all secrets come from the seed"
    return f"privacy {privacy['name']}, {real}"


def _last(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None
