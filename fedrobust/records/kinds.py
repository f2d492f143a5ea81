"""The records in a run's journal: one frozen model for each kind of line.

A journal is a `RunStart`, then a `RoundRecord` for each round, an `EvaluationRecord` behind the next round's record,
and a `RunEnd`. The start has the format of all lines, and the versions that wrote them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

FORMAT = 1
"""Format of journals and checkpoints. Version 0, from the time before there was a number, has the same fields."""

Fields = dict[str, Any]
"""Fields of a record that is not complete yet."""
Count = Annotated[int, Field(ge=0, lt=2**53)]
Figure = Annotated[float, Field(allow_inf_nan=False)] | None
"""A number; None if it was not finite."""
ByClient = dict[int, Figure]
"""Figures of hospitals, by their number."""


class RecordModel(BaseModel):
    """Frozen. Fields that a later version has added are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class RecordLine(RecordModel):
    """A line of a journal."""

    kind: str

    @classmethod
    def of(cls, fields: Fields) -> Self:
        """The record with these fields. NaN and infinity become None; NumPy's numbers become Python's."""
        return cls.model_validate(_plain(fields))

    def line(self) -> bytes:
        """The line with the fields that are set, with its newline."""
        return written({"kind": self.kind, **self.model_dump(exclude_unset=True)})

    def fields(self) -> Fields:
        """The fields that are set, as they are read from the line: JSON's types, strings as keys."""
        found: Fields = json.loads(self.line())
        return found


class _Named(RecordModel):
    name: str


class _Aggregation(RecordModel):
    stages: tuple[_Named, ...] = ()
    rule: _Named


class _Partition(_Named):
    alpha: float | None = None


class _Data(RecordModel):
    partition: _Partition


class _Federation(RecordModel):
    rounds: Count | None = None


class _Trust(RecordModel):
    acts: bool = False


class _Privacy(_Named):
    randomness: str | None = None


class _Tracking(RecordModel):
    experiment: str | None = None
    registered: str | None = Field(default=None, alias="register")


class RecordedExperiment(RecordModel):
    """The options that are needed after a run, whichever version wrote them."""

    name: str
    seed: int
    data: _Data
    federation: _Federation = _Federation()
    attacks: tuple[_Named, ...] = ()
    aggregation: _Aggregation
    trust: _Trust = _Trust()
    privacy: _Privacy = _Privacy(name="clear")
    tracking: _Tracking = _Tracking()

    @property
    def defence(self) -> str:
        """The stages and the rule, as `clip → nnm → geometric_median`."""
        return " → ".join([stage.name for stage in self.aggregation.stages] + [self.aggregation.rule.name])

    @property
    def attack(self) -> str:
        """The attacks, as `sign_flip + label_flip`, or `no attack`."""
        return " + ".join(attack.name for attack in self.attacks) or "no attack"

    @property
    def protocol(self) -> str:
        """The protocol, and whether its secrets are real, as `privacy shares, real secrets`."""
        if self.privacy.randomness is None:
            return f"privacy {self.privacy.name}"
        real = self.privacy.randomness == "system"
        secrets = "real secrets" if real else "NOT SECRET: all secrets come from the seed"
        return f"privacy {self.privacy.name}, {secrets}"


class RunStart(RecordLine):
    """The first line: the experiment, and the truth of the simulation."""

    kind: Literal["start"] = "start"
    format: int = 0
    """Format of all lines of the journal."""
    run: str
    """The run's id, and the name of its folder."""
    name: str = ""
    experiment: dict[str, Any]
    """All options, resolved."""
    clients: Count
    label_names: tuple[str, ...]
    attackers: dict[int, str]
    """Malicious hospital → name of its attack."""
    hospital_labels: tuple[tuple[Count, ...], ...]
    """(hospitals, labels) training patches."""
    parameters: Count
    """Number of the model's parameters."""
    test_patients: Count | None = None
    """Number of patients whose patches the model is tested on; None if patients are unknown, or for an older run."""
    digest: str
    """Digest of the data."""
    configuration: str = ""
    """Digest of the options that can change the result."""
    versions: dict[str, str] = {}
    """Versions of the software that computed the run: package → version."""
    model: str = ""
    """SHA-256 of the first weights."""
    encoder: str = ""
    """Digest of the pretrained encoder whose weights are not in the updates, and, if training reads its features, of
    these; empty for other models."""
    cautions: tuple[str, ...] = ()
    """What the user was warned of before the run."""
    disclosure: tuple[tuple[str, str], ...] = ()
    """What each party of a protocol of the user's own sees, as its author says."""

    @cached_property
    def options(self) -> RecordedExperiment:
        """Those of the experiment's options that readers of a run need."""
        return RecordedExperiment.model_validate(self.experiment)


class StageRecord(RecordModel):
    """What one part of a defence computed for the updates."""

    name: str
    scores: ByClient | None = None
    weights: ByClient | None = None


class RefereeRecord(RecordModel):
    """What the referee found in a round."""

    chosen: str
    """The hypothesis whose aggregate was used, or refused; `defence`: that of stages and rule."""
    losses: dict[str, Figure] = {}
    """Hypothesis → loss on the coordinator's patches after its aggregate."""
    certainty: dict[str, Figure] = {}
    """Hypothesis → by how many standard errors it was better: than the defence, or, where hypotheses are opened in
    turn, than the model before it and than the reference, the less of the two."""
    refused: bool | None = None
    """Whether no aggregate was used; None in records of older versions."""


class JuryRecord(RecordModel):
    """What the hospitals' votes gave in a round."""

    chosen: str
    """The hypothesis whose aggregate was used; `defence`: that of stages and rule."""
    gains: dict[str, Figure] = {}
    """Hypothesis → how much less the hospitals lose than with the defence: the mean over labels of medians. Empty if a
    label had too few votes."""
    voters: tuple[Count, ...] = ()
    """For each label, how many hospitals voted."""


class RoundRecord(RecordLine):
    """What happened in a round. Figures are by hospital; None is one that was not finite."""

    kind: Literal["round"] = "round"
    round: Count
    participants: tuple[Count, ...]
    attacking: tuple[Count, ...] = ()
    """The truth: the hospitals that attacked."""
    rejected: dict[int, str] = {}
    """Hospital → why its update was refused."""
    commitments: dict[int, str] = {}
    """Digests of what arrived."""
    skipped: str | None = None
    """Why nothing was aggregated; None if something was."""
    anomaly: ByClient = {}
    anomaly_parts: dict[int, dict[str, Figure]] = {}
    update_norm: ByClient = {}
    f: Count | None = None
    """Number of malicious updates that the rule allowed for."""
    stages: tuple[StageRecord, ...] = ()
    weights: ByClient | None = None
    """Shares in the aggregate; None if the rule gives none."""
    aggregate_norm: Figure = None
    referee: RefereeRecord | None = None
    jury: JuryRecord | None = None
    repair: Count | None = None
    """Steps of the repair after the round; None if none was due."""
    notes: tuple[str, ...] = ()
    upload_bytes: Count | None = None
    server_bytes: Count | None = None
    functionals: Count | None = None
    """Number of linear functionals of every update that were opened."""
    products: Count | None = None
    """Number of products of updates and histories, each with itself or another one, that servers of secret shares
    opened; None in older runs: all."""
    reputation: ByClient = {}
    suspected: tuple[Count, ...] = ()
    quarantined: tuple[Count, ...] = ()
    detection: dict[str, Figure] = {}
    model: str = ""
    """SHA-256 of the weights after the round."""
    seconds: dict[str, Figure] = {}
    identities: dict[int, Count] = {}
    """Hospital → the id with which it appeared, if that is not its own."""
    train_loss: ByClient = {}
    late: tuple[Count, ...] = ()
    """Hospitals that missed the deadline."""


class EvaluationRecord(RecordLine):
    """The metrics of the model after a round."""

    kind: Literal["evaluation"] = "evaluation"
    round: Count
    metrics: dict[str, Figure]
    hospitals: ByClient = {}
    """Accuracy by hospital."""
    confusion: tuple[tuple[Count, ...], ...] = ()
    """(truth, predicted) test patches."""
    triggers: dict[int, dict[str, Figure]] = {}
    """Success rates of each backdoor's trigger, by its index among the attacks."""


class MisreadPatches(RecordModel):
    """The wrong predictions on test patches of which the final model was most certain."""

    indices: tuple[Count, ...] = ()
    truth: tuple[Count, ...] = ()
    predicted: tuple[Count, ...] = ()
    confidence: tuple[float, ...] = ()


class RunEnd(RecordLine):
    """The last line of a completed run."""

    kind: Literal["end"] = "end"
    round: Count
    final: dict[str, Any]
    """The last figures under their MLflow names, `suspected`, `model_sha256`, `seconds`."""
    misread: MisreadPatches = MisreadPatches()


Record = RunStart | RoundRecord | EvaluationRecord | RunEnd


def written(record: Mapping[str, Any]) -> bytes:
    """The line of a journal for a record, with its newline.

    record: its fields.

    Raises `ValueError` for NaN and infinity.
    """
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _plain(value: Any) -> Any:
    """JSON has neither NaN nor infinity: both become None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
