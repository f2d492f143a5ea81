"""The coordinator: sees of the updates what the protocol reveals, and turns them into the next global model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

import numpy as np

from fedrobust.aggregation import Context, Layer, Protocol, Result, capped_prior
from fedrobust.experiment import Experiment
from fedrobust.federation.journal import Record, below
from fedrobust.federation.shards import Scattered
from fedrobust.seeds import generator
from fedrobust.trust import detection

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

        `samples` (clients,) are the hospitals' claimed training patches, `weights` (d,) float32 the global model,
        `arrays` the coordinator's part of a checkpoint (empty at the start), `layers` what the d coordinates are.
        """
        self._layers = tuple(layers)
        self._experiment, self._samples, self._weights = experiment, samples, weights
        self._pipeline = experiment.aggregation.pipeline()
        self._server, self._rule = below(arrays, "server"), below(arrays, "rule")
        self._trust = below(arrays, "trust") or experiment.trust.reputation.start(experiment.federation.clients)
        self._previous, self._step = arrays.get("previous"), arrays.get("step")
        self._histories = below(arrays, "history")

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
        if reason := self._unusable(len(accepted), root):
            record["skipped"] = reason
        else:
            rows = protocol if finite.all() else protocol.subset(np.flatnonzero(finite))
            record |= self._combine(round, rows, accepted, None if root is None else root[0])
        scores = {int(client): 1.0 for client in record["rejected"]} | record.get("anomaly", {})
        self._trust = experiment.trust.reputation.update(self._trust, scores)
        value = experiment.trust.reputation.value(self._trust)
        record["reputation"] = dict(enumerate(value.tolist()))
        record["suspected"] = experiment.trust.reputation.suspected(self._trust)
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
        return self._experiment.aggregation.refusal(accepted, drawn - accepted)

    def _combine(self, round: int, protocol: Protocol, clients: np.ndarray, root: np.ndarray | None) -> Record:
        """Scores, weights, aggregate and the server's step for the accepted rows."""
        experiment = self._experiment
        context = Context(
            f=0,
            round=round,
            generator=generator(experiment.seed, "aggregation", round),
            clients=clients,
            previous=self._previous,
            step=self._step,
            root=root,
            layers=self._layers,
            state=self._rule,
        )
        gram = self._pipeline.gram(protocol, context)
        missing = experiment.federation.participants() - protocol.n
        context = replace(context, f=experiment.aggregation.declared_f(protocol.n, missing, gram))
        scores = experiment.trust.detector.score(gram, context)
        result: Result = self._pipeline.run(protocol, context, gram)
        self._rule, self._histories = dict(result.state), protocol.remembered(self._pipeline.histories)
        before, self._previous = self._weights, result.aggregate
        self._weights, self._server = experiment.learning.server.step(before, result.aggregate, self._server)
        self._step = self._weights - before
        ids = [int(client) for client in clients]
        return {
            "f": context.f,
            "stages": [
                {"name": step.name, "scores": by_client(ids, step.scores), "weights": by_client(ids, step.weights)}
                for step in result.steps
            ],
            "notes": list(result.notes),
            "weights": by_client(ids, result.weights),
            "anomaly": dict(zip(ids, scores.score.tolist(), strict=True)),
            "anomaly_parts": {
                client: {part: float(values[row]) for part, values in scores.parts.items()}
                for row, client in enumerate(ids)
            },
            "update_norm": dict(zip(ids, gram.norms().tolist(), strict=True)),
            "aggregate_norm": float(np.linalg.norm(result.aggregate)),
        }

    def _arrays(self) -> Arrays:
        arrays = {f"server/{name}": array for name, array in self._server.items()}
        arrays |= {f"trust/{name}": array for name, array in self._trust.items()}
        arrays |= {f"rule/{name}": array for name, array in self._rule.items()}
        arrays |= {f"history/{name}": array for name, array in self._histories.items()}
        if self._previous is not None and self._step is not None and (self._pipeline.anchors or self._rule):
            arrays |= {"previous": self._previous, "step": self._step}
        return arrays


def by_client(ids: Sequence[int], values: np.ndarray | None) -> dict[int, float] | None:
    """Figures (n,) of the rows by client id."""
    return None if values is None else dict(zip(ids, values.tolist(), strict=True))
