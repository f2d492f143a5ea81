"""The coordinator: sees of the updates what the protocol reveals, and turns them into the next global model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from fedrobust.aggregation import Context, Protocol, Result, capped_prior
from fedrobust.experiment import Experiment
from fedrobust.federation.journal import Record
from fedrobust.seeds import generator
from fedrobust.trust import detection

Arrays = dict[str, np.ndarray]


class Coordinator:
    """Aggregates a round. Runs as a Ray actor; knows nothing of Ray, and of the rows only what `Protocol` shows."""

    def setup(self, experiment: Experiment, samples: np.ndarray, weights: np.ndarray, arrays: Arrays) -> None:
        """Get ready for an experiment.

        `samples` (clients,) are the hospitals' claimed training patches, `weights` (d,) float32 the global model, and
        `arrays` the coordinator's part of a checkpoint (empty at the start).
        """
        self._experiment, self._samples, self._weights = experiment, samples, weights
        self._pipeline = experiment.aggregation.pipeline()
        self._server = {name[7:]: array for name, array in arrays.items() if name.startswith("server/")}
        trust = {name[6:]: array for name, array in arrays.items() if name.startswith("trust/")}
        self._trust = trust or experiment.trust.reputation.start(experiment.federation.clients)
        self._previous = arrays.get("previous")

    def aggregate(
        self, round: int, ids: Sequence[Sequence[int]], attacking: Sequence[int], *blocks: np.ndarray
    ) -> tuple[Record, np.ndarray, Arrays]:
        """One round: returns its record, the new global weights (d,) float32, and the arrays for the checkpoint.

        `ids[b]` are the clients whose updates are the rows of `blocks[b]` (k, d) float32. `attacking` is the truth of
        the simulation: it is used to measure the detection, never to aggregate.
        """
        start = time.perf_counter()
        experiment = self._experiment
        clients = np.array([client for block in ids for client in block], dtype=np.int64)
        order = np.argsort(clients, kind="stable")
        clients = clients[order]
        samples = self._samples[clients] if experiment.aggregation.weighting == "samples" else None
        protocol = experiment.privacy.receive(blocks, order, capped_prior(samples, len(clients)))
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
        if reason := self._unusable(len(accepted)):
            record["skipped"] = reason
        else:
            rows = protocol if finite.all() else protocol.subset(np.flatnonzero(finite))
            record |= self._combine(round, rows, accepted)
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

    def _unusable(self, accepted: int) -> str | None:
        """Why so few updates cannot be aggregated; None if they can."""
        settings, drawn = self._experiment.federation, self._experiment.federation.participants()
        if accepted < max(1, settings.quorum * drawn):
            return f"{accepted} of {drawn} updates were usable, below the quorum of {settings.quorum:g}"
        return self._experiment.aggregation.refusal(accepted, drawn - accepted)

    def _combine(self, round: int, protocol: Protocol, clients: np.ndarray) -> Record:
        """Scores, weights, aggregate and the server's step for the accepted rows."""
        experiment = self._experiment
        f = experiment.aggregation.declared_f(protocol.n, experiment.federation.participants() - protocol.n)
        context = Context(f, round, generator(experiment.seed, "aggregation", round), self._previous)
        known = {} if self._previous is None else {"momentum": self._previous}
        gram = protocol.gram({name: known[name] for name in self._pipeline.anchors if name in known})
        scores = experiment.trust.detector.score(gram, context)
        result: Result = self._pipeline.run(protocol, context, gram)
        self._previous = result.aggregate
        self._weights, self._server = experiment.learning.server.step(self._weights, result.aggregate, self._server)
        ids = [int(client) for client in clients]
        return {
            "f": f,
            "weights": None if result.weights is None else dict(zip(ids, result.weights.tolist(), strict=True)),
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
        if self._previous is not None and self._pipeline.anchors:
            arrays["previous"] = self._previous
        return arrays
