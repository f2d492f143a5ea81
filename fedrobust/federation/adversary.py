"""The adversary's actor: part of the simulation, between training and the protocol, never of the coordinator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedrobust.attacks import craft, draw_attackers
from fedrobust.experiment import Experiment


class Adversary:
    """Replaces the updates of the hospitals that craft theirs. Runs as a Ray actor; knows nothing of Ray."""

    def setup(self, experiment: Experiment) -> None:
        """Get ready for an experiment."""
        self._experiment = experiment
        self._attackers = draw_attackers(experiment.attacks, experiment.federation.clients, experiment.seed)

    def replace(
        self, round: int, ids: Sequence[Sequence[int]], crafting: Sequence[int], *blocks: np.ndarray
    ) -> np.ndarray:
        """The updates (k, d) float32 that the clients `crafting` send instead of what they trained.

        `ids[b]` are the clients of the rows of `blocks[b]` (m, d): what all participants trained.
        """
        updates = {
            client: row
            for part, block in zip(ids, blocks, strict=True)
            for client, row in zip(part, block, strict=True)
        }
        crafted = craft(self._experiment.attacks, self._attackers, updates, updates, round, self._experiment.seed)
        return np.stack([crafted[client] for client in crafting])
