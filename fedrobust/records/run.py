"""A whole run as its journal records it, sorted by kind once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median_low

import numpy as np

from fedrobust.errors import ExperimentError, Origin, Problem
from fedrobust.records.kinds import EvaluationRecord, Record, RoundRecord, RunEnd, RunStart
from fedrobust.records.skips import Skips

_OF_HOSPITALS = (
    *("participants", "attacking", "suspected", "quarantined", "late", "rejected", "commitments", "identities"),
    *("anomaly", "anomaly_parts", "update_norm", "weights", "reputation", "train_loss"),
)


@dataclass(frozen=True)
class RecordedRun:
    """The records of a run as far as it got; every hospital and label in them is one of the run."""

    start: RunStart
    rounds: tuple[RoundRecord, ...]
    evaluations: tuple[EvaluationRecord, ...]
    end: RunEnd | None
    """None for a run that is not complete."""
    records: tuple[Record, ...]
    """All of them, in the order of the journal."""

    @classmethod
    def of(cls, records: Sequence[Record], path: Path = Path("journal.jsonl")) -> RecordedRun:
        """Sort the records of a journal.

        path: names the journal in errors.

        Raises `ExperimentError` if they do not belong together.
        """
        if not records or not isinstance(start := records[0], RunStart):
            said = "this is no run's first record" if records else "empty: the run stopped before it began"
            raise ExperimentError(Problem(said, origins=(Origin(path, 1 if records else None),)))
        for number, record in enumerate(records, 1):
            if wrong := _misfit(record, start, first=number == 1, last=number == len(records)):
                raise ExperimentError(Problem(f"damaged: {wrong}", origins=(Origin(path, number),)))
        rounds = tuple(record for record in records if isinstance(record, RoundRecord))
        evaluations = tuple(record for record in records if isinstance(record, EvaluationRecord))
        last = records[-1]
        return cls(start, rounds, evaluations, last if isinstance(last, RunEnd) else None, tuple(records))

    @property
    def attackers(self) -> dict[int, str]:
        """The true attackers: client → name of the attack."""
        return self.start.attackers

    @property
    def acts(self) -> bool:
        """Whether quarantine leaves hospitals out of the aggregate."""
        return self.start.options.trust.acts

    @cached_property
    def skips(self) -> Skips:
        """Which of its rounds were skipped."""
        return Skips.of(record.skipped for record in self.rounds)

    @cached_property
    def seconds(self) -> float:
        """Return the duration of its rounds without start-up: the median round, times the number of rounds, and by how
        much longer those with a repair of the model took.

        A round lasts from the start of its training to its aggregate. The first rounds of new actors also import
        libraries, which may take ten seconds, so a sum would compare start-ups. Of an even number of rounds, the lower
        one in the middle counts. NaN without a round.
        """
        known = [(seconds, record) for record in self.rounds if (seconds := record.seconds.get("round")) is not None]
        if not known:
            return math.nan
        usual = median_low(seconds for seconds, _ in known)
        repairs = [max(0.0, seconds - usual) for seconds, record in known if record.repair is not None]
        return usual * len(self.rounds) + math.fsum(repairs)

    @property
    def judged(self) -> bool:
        """Whether any update was ever scored."""
        return any(record.anomaly for record in self.rounds)

    @property
    def final(self) -> dict[str, float | None]:
        """The figures after the last round; empty if all rounds were skipped, because then the model is the initial
        one."""
        if self.skips.untrained:
            return {}
        detected = self.rounds[-1].detection if self.rounds else {}
        return detected | (self.evaluations[-1].metrics if self.evaluations else {})

    def by_client(self, field: str) -> np.ndarray:
        """A per-client field of the round records, (clients, rounds) float64; NaN where there is no figure.

        field: its name.
        """
        values = np.full((self.start.clients, len(self.rounds)), np.nan)
        for column, record in enumerate(self.rounds):
            for client, value in (getattr(record, field) or {}).items():
                values[client, column] = np.nan if value is None else value
        return values

    def marks(self, field: str) -> np.ndarray:
        """The clients that a field names in each round, (clients, rounds) bool.

        field: name of a list or a mapping in the round records.
        """
        named = np.zeros((self.start.clients, len(self.rounds)), dtype=bool)
        for column, record in enumerate(self.rounds):
            named[list(getattr(record, field)), column] = True
        return named

    def parts(self) -> dict[str, np.ndarray]:
        """The parts of the anomaly scores: part → (clients, rounds) float64, NaN where there is no figure."""
        found: dict[str, np.ndarray] = {}
        for column, record in enumerate(self.rounds):
            for client, parts in record.anomaly_parts.items():
                for part, value in parts.items():
                    values = found.setdefault(part, np.full((self.start.clients, len(self.rounds)), np.nan))
                    values[client, column] = np.nan if value is None else value
        return found

    def identities(self) -> np.ndarray:
        """The id with which each hospital appears in each round, or would if it took part: (clients, rounds) int."""
        own = np.arange(self.start.clients)
        found = np.repeat(own[:, None], len(self.rounds), axis=1)
        for column, record in enumerate(self.rounds):
            for client, id in record.identities.items():
                found[client, column] = id
        return found

    def renewed(self) -> np.ndarray:
        """Where a hospital appears with another id than in the round before: (clients, rounds) bool."""
        own = np.arange(self.start.clients)[:, None]
        renewed: np.ndarray = np.diff(self.identities(), axis=1, prepend=own) != 0
        return renewed


def _misfit(record: Record, start: RunStart, first: bool, last: bool) -> str:
    """Why a record cannot be at its position in the run that begins with `start`; empty if it can."""
    labels = len(start.label_names)
    if isinstance(record, RunStart):
        held = [len(row) for row in record.hospital_labels]
        if not first:
            return "another run begins here"
        if held != [labels] * record.clients or not _within(record.attackers, record.clients):
            return f"attackers or patches are not those of {record.clients} hospitals and {labels} labels"
    elif isinstance(record, RoundRecord):
        for field in _OF_HOSPITALS:
            if not _within(getattr(record, field) or (), start.clients):
                return f"{field} are not those of {start.clients} hospitals"
    elif isinstance(record, EvaluationRecord):
        if [len(row) for row in record.confusion] != [labels] * len(record.confusion) or (
            len(record.confusion) not in (0, labels)
        ):
            return f"confusion is not that of {labels} labels"
    elif not last:
        return "the run goes on behind its end"
    else:
        read = record.misread
        if len({len(read.indices), len(read.truth), len(read.predicted), len(read.confidence)}) > 1:
            return "misread does not have as many labels as patches"
        if not _within((*read.truth, *read.predicted), labels):
            return f"misread is not of {labels} labels"
    return ""


def _within(numbers: Iterable[int], count: int) -> bool:
    return all(map(range(count).__contains__, numbers))
