"""The adversary's actor: part of the simulation, between training and the protocol, never of the coordinator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedrobust.aggregation import Layer
from fedrobust.attacks import craft
from fedrobust.experiment import Experiment
from fedrobust.federation.preview import DefencePreview
from fedrobust.records import below
from fedrobust.secure.sending import Sender
from fedrobust.updates import cut_columns


@dataclass(frozen=True)
class Outlook:
    """What attackers can know of a round beside the updates.

    `step` (d,) is the last change of the global model; `arrays`, only for attacks that are `aware`, what the
    coordinator keeps between rounds.
    """

    step: np.ndarray | None = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class Adversary:
    """Replaces the updates of the hospitals that craft theirs. Runs as a Ray actor; knows nothing of Ray."""

    def setup(self, experiment: Experiment, samples: np.ndarray, layers: Sequence[Layer]) -> None:
        """Get ready for an experiment; arguments as for `Coordinator.setup`."""
        self._experiment, self._samples = experiment, samples
        self._attackers = experiment.attackers
        self._defence = experiment.defence(layers)
        self._sender = Sender(experiment.privacy, experiment.seed)

    def send(self, step: str, *arguments: Any) -> Any:
        """A step of the protocol for the malicious hospitals; see `Sender`."""
        return getattr(self._sender, step)(*arguments)

    def replace(
        self,
        round: int,
        ids: Sequence[Sequence[int]],
        crafting: Sequence[int],
        columns: Sequence[slice],
        outlook: Outlook,
        root: np.ndarray | None,
        *parts: np.ndarray,
    ) -> np.ndarray | tuple[np.ndarray, ...]:
        """The updates (k, d) float32 that the clients `crafting` send instead of what they trained, cut into `columns`.

        `ids[b]` are the clients of the b-th block (m, d) of what all participants trained; `parts` are the blocks, one
        after the other, each cut into `columns`. `root` (1, d) is the server's own update.
        """
        count = len(columns)
        blocks = [parts[i] if count == 1 else np.hstack(parts[i : i + count]) for i in range(0, len(parts), count)]
        updates = {
            client: row
            for part, block in zip(ids, blocks, strict=True)
            for client, row in zip(part, block, strict=True)
        }
        experiment, elsewhere = self._experiment, self._attackers.new_ids(round)

        def preview(group: list[int]) -> DefencePreview:
            return DefencePreview(
                defence=self._defence,
                memory=self._defence.memory(outlook.arrays, len(self._samples)),
                group=group,
                updates=updates,
                ids={client: elsewhere.get(client, client) for client in updates},
                round=round,
                samples=self._samples if experiment.aggregation.weighting == "samples" else None,
                histories=below(outlook.arrays, "history"),
                root=None if root is None else root[0],
            )

        crafted = craft(self._attackers, updates, updates, round, experiment.seed, outlook.step, preview)
        made = cut_columns(np.stack([crafted[client] for client in crafting]), columns)
        return made[0] if count == 1 else tuple(made)
