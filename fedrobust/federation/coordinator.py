"""The coordinator: sees of the updates what the protocol reveals, and turns them into the next global model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

import numpy as np

from fedrobust.aggregation import Layer, Protocol, capped_prior
from fedrobust.experiment import Experiment
from fedrobust.federation.journal import Record, below
from fedrobust.federation.shards import Scattered
from fedrobust.trust import detection
from fedrobust.trust.defence import Defence, Known

Arrays = dict[str, np.ndarray]


class Coordinator:
    """Aggregates a round. Runs as a Ray actor; knows nothing of Ray, and of the rows only what `Protocol` shows."""

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
        *blocks: np.ndarray | Scattered,
    ) -> tuple[Record, np.ndarray, Arrays]:
        """One round: returns its record, the new global weights (d,) float32, and the arrays for the checkpoint.

        `ids[b]` are the clients whose updates are the rows of `blocks[b]` (k, d) float32, or the rows of the b-th block
        that the shards receive. `root` (1, d) is the server's own update, for rules that want one. `attacking` is the
        truth of the simulation: it is used to measure the detection, never to aggregate.
        """
        start = time.perf_counter()
        experiment = self._experiment
        clients = np.array([client for block in ids for client in block], dtype=np.int64)
        order = np.argsort(clients, kind="stable")
        clients = clients[order]
        samples = self._samples[clients] if experiment.aggregation.weighting == "samples" else None
        prior = capped_prior(samples, len(clients))
        protocol: Protocol
        if isinstance(blocks[0], Scattered):
            protocol = blocks[0].receive(order, prior, clients)
        else:
            protocol = experiment.privacy.receive(blocks, order, prior, clients, self._histories)
        finite = protocol.finite_rows()
        accepted = clients[finite]
        record: Record = {
            "kind": "round",
            "round": round,
            "participants": clients.tolist(),
            "attacking": sorted(attacking),
            "rejected": {int(client): "not finite" for client in clients[~finite]},
            "upload_bytes": experiment.privacy.upload_bytes(protocol.d) * len(clients),
        }
        rejected = [int(client) for client in clients[~finite]]
        if reason := self._unusable(len(accepted), root):
            record["skipped"] = reason
            self._known = self._defence.punished(self._known, rejected)
        else:
            rows = protocol if finite.all() else protocol.subset(np.flatnonzero(finite))
            record |= self._combine(round, rows, accepted, None if root is None else root[0], rejected)
        scores = dict.fromkeys(rejected, 1.0) | record.get("anomaly", {})
        record |= self._standing(accepted)
        malicious = np.isin(clients, attacking)
        found = detection(
            np.array([scores.get(int(c), 0.0) for c in clients]), np.isin(clients, record["suspected"]), malicious
        )
        record["detection"] = {f"defense/{name}": figure for name, figure in found.items()}
        record["model"] = sha256(self._weights.tobytes()).hexdigest()
        record["seconds"] = {"aggregate": time.perf_counter() - start}
        return record, self._weights, self._arrays()

    def _unusable(self, accepted: int, root: np.ndarray | None) -> str | None:
        """Why so few updates, beside the server's own, cannot be aggregated; None if they can."""
        if root is not None and not np.isfinite(root).all():
            return "the server's own update is not finite"
        settings, drawn = self._experiment.federation, self._experiment.federation.participants()
        if accepted < max(1, settings.quorum * drawn):
            return f"{accepted} of {drawn} updates were usable, below the quorum of {settings.quorum:g}"
        return None

    def _combine(
        self,
        round: int,
        protocol: Protocol,
        clients: np.ndarray,
        root: np.ndarray | None,
        rejected: Sequence[int],
    ) -> Record:
        """Scores, weights, aggregate and the server's step for the accepted rows."""
        judged = self._defence.judge(self._known, protocol, clients, round, root, rejected)
        self._known, self._histories = judged.known, protocol.remembered(self._defence.histories)
        ids, scores = [int(client) for client in clients], judged.scores
        record: Record = {
            "anomaly": by_client(ids, scores.score),
            "anomaly_parts": {
                client: {part: float(values[row]) for part, values in scores.parts.items()}
                for row, client in enumerate(ids)
            },
            "update_norm": by_client(ids, judged.gram.norms()),
        }
        if judged.decision is None:
            return record | {"skipped": judged.skipped}
        result = self._defence.pipeline.carry_out(judged.decision, protocol)
        before = self._weights
        self._weights, self._server = self._experiment.learning.server.step(before, result.aggregate, self._server)
        self._known = replace(self._known, previous=result.aggregate, step=self._weights - before)
        return record | {
            "f": judged.decision.context.f,
            "stages": [
                {"name": step.name, "scores": by_client(ids, step.scores), "weights": by_client(ids, step.weights)}
                for step in result.steps
            ],
            "notes": list(result.notes),
            "weights": by_client(ids, result.weights),
            "aggregate_norm": float(np.linalg.norm(result.aggregate)),
        }

    def _standing(self, accepted: np.ndarray) -> Record:
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


def by_client(ids: Sequence[int], values: np.ndarray | None) -> dict[int, float] | None:
    """Figures (n,) of the rows by client id."""
    return None if values is None else dict(zip(ids, values.tolist(), strict=True))
