"""The coordinator: sees of the updates what the protocol reveals, and turns them into the next global model."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np

from fedrobust.aggregation import Layer, capped_prior
from fedrobust.arrays import Arrays
from fedrobust.experiment import Experiment
from fedrobust.federation.masked_rounds import Masked
from fedrobust.federation.parties import Sent
from fedrobust.federation.shard_hosts import RemoteShardedUpdates, Scattered
from fedrobust.records import Record, below
from fedrobust.secure.masking_terms import MaskingError
from fedrobust.secure.messages import MessageError
from fedrobust.secure.shared_updates import SharedUpdates
from fedrobust.secure.weights import OpeningError
from fedrobust.trust import detection
from fedrobust.trust.defence import Defence, Known
from fedrobust.updates import ClearUpdates, Updates

NOT_OPENED = (MessageError, OpeningError, MaskingError)
"""Why a protocol shows nothing: the round is skipped."""


class Coordinator:
    """Aggregates a round. Runs as a Ray actor; knows nothing of Ray, and of the rows only what `Updates` shows."""

    def setup(
        self,
        experiment: Experiment,
        samples: np.ndarray,
        weights: np.ndarray,
        arrays: Arrays,
        layers: Sequence[Layer] = (),
    ) -> None:
        """Get ready for an experiment.

        `samples` (clients,) are the claimed training patches of every client id, `weights` (d,) float32 the global
        model, `arrays` the coordinator's part of a checkpoint (empty at the start), `layers` what the d coordinates
        are.
        """
        self._experiment, self._samples, self._weights = experiment, samples, weights
        settings = experiment.federation
        self._defence = Defence(
            experiment.aggregation, experiment.trust, settings.participants(), experiment.seed, layers
        )
        self._known = known(self._defence, arrays, len(samples))
        self._server, self._histories = below(arrays, "server"), below(arrays, "history")

    def aggregate(
        self,
        round: int,
        ids: Sequence[Sequence[int]],
        attacking: Sequence[int],
        root: np.ndarray | None,
        *arriving: np.ndarray | Scattered | Sent | Masked,
    ) -> tuple[Record, np.ndarray, Arrays]:
        """One round: returns its record, the new global weights (d,) float32, and the arrays for the checkpoint.

        `ids[b]` are the clients of the b-th block of updates: of `arriving[b]` (k, d) float32 in the clear, else of one
        that the only item of `arriving` has on its way. `root` (1, d) is the server's own update, for rules that want
        one. `attacking` is the truth of the simulation: it is used to measure the detection, never to aggregate.
        """
        start = time.perf_counter()
        participants = sorted(client for block in ids for client in block)
        record: Record = {
            "kind": "round",
            "round": round,
            "participants": participants,
            "attacking": sorted(attacking),
            "rejected": {},
            "commitments": {},
        }
        try:
            protocol, clients, malformed = self._received(ids, arriving, record)
        except NOT_OPENED as error:
            record["skipped"] = str(error)
            self._punish(record)
        else:
            record |= self._combined(round, protocol, clients, None if root is None else root[0], malformed, record)
            if isinstance(protocol, SharedUpdates):
                record["notes"] = [*record.get("notes", ()), *protocol.notes]
        if "skipped" in record and (reasons := counts(record["rejected"])):
            record["skipped"] += f" ({reasons})"
        if isinstance(arriving[0], Masked) and arriving[0].notes:
            record["notes"] = [*record.get("notes", ()), *arriving[0].notes]
        if isinstance(arriving[0], Sent | Masked):
            record |= arriving[0].traffic()
        else:
            record["upload_bytes"] = 4 * len(self._weights) * len(participants)
        scores = record.get("anomaly", {}) | dict.fromkeys(self._guilty(record), 1.0)
        record |= self._standing()
        found = detection(
            np.array([scores.get(client, 0.0) for client in participants]),
            np.isin(participants, record["suspected"]),
            np.isin(participants, attacking),
        )
        judged = scores or not record["rejected"]
        record["detection"] = {f"defense/{name}": figure for name, figure in found.items()} if judged else {}
        record["model"] = sha256(self._weights.tobytes()).hexdigest()
        record["seconds"] = {"aggregate": time.perf_counter() - start}
        return record, self._weights, self._arrays()

    def _received(
        self, ids: Sequence[Sequence[int]], arriving: Sequence[Any], record: Record
    ) -> tuple[Updates, np.ndarray, int]:
        """The usable updates, whose they are, and how many rows arrived that are none.

        The record is told why others are `rejected`, and the `commitments`: a digest of what each client sent.
        """
        clients = np.array([client for block in ids for client in block], dtype=np.int64)
        order = np.argsort(clients, kind="stable")
        clients, first, malformed = clients[order], arriving[0], 0
        protocol: Updates
        if isinstance(first, Sent | Masked):
            record |= {"rejected": first.refused, "commitments": first.commitments}  # which it fills, whatever happens
            protocol, clients = first.receive(clients.tolist(), self._prior, self._too_few)
            malformed = len(protocol.dropped) if isinstance(protocol, SharedUpdates) else 0
        else:
            clear: ClearUpdates | RemoteShardedUpdates
            if isinstance(first, Scattered):
                clear = first.receive(order, self._prior(clients), clients)
            else:
                clear = ClearUpdates(arriving, order, self._prior(clients), self._histories, clients)
            protocol = clear
            record["commitments"] = dict(zip(clients.tolist(), clear.digests(), strict=True))
        usable, arrived = protocol.finite_rows(), len(clients)
        if not usable.all():
            reason = "not finite" if "rows" in protocol.reveals else "longer than an update that was cut to the clip"
            record["rejected"] |= dict.fromkeys(clients[~usable].tolist(), reason)
            clients = clients[usable]
            if usable.any():
                protocol = protocol.subset(np.flatnonzero(usable))
        return protocol, clients, malformed + arrived - len(clients)

    def _guilty(self, record: Record) -> list[int]:
        """Who is rejected, if that sets anybody apart: where all are, the fault may be the experiment's."""
        rejected = list(record["rejected"])
        return rejected if len(rejected) < len(record["participants"]) else []

    def _punish(self, record: Record) -> None:
        """Have the standing of a round's rejected clients follow from that alone."""
        self._known = self._defence.punished(self._known, self._guilty(record))

    def _prior(self, clients: np.ndarray) -> np.ndarray:
        """The prior weights of these clients."""
        samples = self._samples[clients] if self._experiment.aggregation.weighting == "samples" else None
        return capped_prior(samples, len(clients))

    def _unusable(self, accepted: int, root: np.ndarray | None) -> str | None:
        """Why so few updates, beside the server's own, cannot be aggregated; None if they can."""
        if root is not None and not np.isfinite(root).all():
            return "the server's own update is not finite"
        return self._too_few(accepted)

    def _too_few(self, accepted: int) -> str | None:
        """Why so few usable updates are no round; None if they are."""
        settings, drawn = self._experiment.federation, self._experiment.federation.participants()
        if accepted < settings.needed():
            return f"{accepted} of {drawn} updates were usable, below the quorum of {settings.quorum:g}"
        return None

    def _combined(
        self,
        round: int,
        protocol: Updates,
        clients: np.ndarray,
        root: np.ndarray | None,
        malformed: int,
        so_far: Record,
    ) -> Record:
        """Scores, weights, aggregate and the server's step for the usable rows; or why the round is skipped."""
        if reason := self._unusable(len(clients), root):
            self._punish(so_far)
            return {"skipped": reason}
        rejected = list(so_far["rejected"])
        try:
            judged = self._defence.judge(self._known, protocol, clients, round, root, rejected, malformed)
            # What shows no Gram matrix remembers no rows either.
            histories = protocol.remembered(self._defence.histories if "gram" in protocol.reveals else ())
        except NOT_OPENED as error:
            self._punish(so_far)
            return {"skipped": str(error)}
        self._known, self._histories = judged.known, histories
        rows, scores = protocol.groups or [(int(client),) for client in clients], judged.scores
        record: Record = {}
        if "gram" in protocol.reveals:
            parts = {part: by_client(rows, values) or {} for part, values in scores.parts.items()}
            record = {
                "anomaly": judged.anomaly,
                "anomaly_parts": {
                    client: {part: figures[client] for part, figures in parts.items()} for client in judged.anomaly
                },
                "update_norm": by_client(rows, judged.gram.norms()),
            }
        if judged.decision is None:
            return record | {"skipped": judged.skipped}
        try:
            result = self._defence.pipeline.carry_out(judged.decision, protocol)
        except NOT_OPENED as error:
            return record | {"skipped": str(error)}
        before = self._weights
        self._weights, self._server = self._experiment.learning.server.step(before, result.aggregate, self._server)
        self._known = replace(self._known, previous=result.aggregate, step=self._weights - before)
        return record | {
            "f": judged.decision.context.f,
            "stages": [
                {
                    "name": step.name,
                    "scores": by_client(rows, step.scores),
                    "weights": by_client(rows, step.weights, shared=True),
                }
                for step in result.steps
            ],
            "weights": by_client(rows, result.weights, shared=True),
            "aggregate_norm": float(np.linalg.norm(result.aggregate.astype(np.float64))),  # a square may overflow
            "notes": list(result.notes),
        }

    def _standing(self) -> Record:
        """Reputations after the round, who is suspected, and who is in quarantine."""
        trust, state = self._experiment.trust, self._known.trust
        return {
            "reputation": dict(enumerate(trust.reputation.value(state).tolist())),
            "suspected": trust.reputation.suspected(state),
            "quarantined": np.flatnonzero(state["quarantined"]).tolist(),
        }

    def _arrays(self) -> Arrays:
        known = self._known
        folders = {
            "server": self._server,
            "trust": known.trust,
            "rule": known.rule,
            "detector": known.detector,
            "history": self._histories,
        }
        arrays = {f"{folder}/{name}": array for folder, own in folders.items() for name, array in own.items()}
        looks_back = self._defence.pipeline.anchors or known.rule or known.detector
        if known.previous is not None and known.step is not None and looks_back:
            arrays |= {"previous": known.previous, "step": known.step}
        return arrays


def known(defence: Defence, arrays: Arrays, clients: int) -> Known:
    """What a defence of so many clients knows, by the coordinator's part of a checkpoint (empty at the start)."""
    if not (trust := below(arrays, "trust")):
        return defence.start(clients)
    parts = below(arrays, "rule"), below(arrays, "detector")
    return Known(trust, *parts, arrays.get("previous"), arrays.get("step"))


def counts(rejected: Mapping[int, str]) -> str:
    """`not finite: 4, truncated: 1`: why updates were rejected, the most frequent reason first; empty if none was."""
    return ", ".join(f"{reason}: {count}" for reason, count in Counter(rejected.values()).most_common())


def by_client(
    rows: Sequence[Sequence[int]], values: np.ndarray | None, shared: bool = False
) -> dict[int, float] | None:
    """Figures (n,) of the rows by client id: that of its row, or, `shared`, its equal part of it."""
    if values is None:
        return None
    figures = values.tolist()
    found = {
        client: figure / len(row) if shared else figure
        for row, figure in zip(rows, figures, strict=True)
        for client in row
    }
    return dict(sorted(found.items()))
