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
from fedrobust.timeline import Recording, TimedSteps, recording, step
from fedrobust.updates import cut_columns


@dataclass(frozen=True)
class Outlook:
    """What attackers can know of a round besides the updates.

    step: (d,) the last change of the global model.
    arrays: what the coordinator keeps between rounds; only for attacks that are `aware`.
    """

    step: np.ndarray | None = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class Adversary:
    """Replaces the updates of hospitals that craft theirs. It runs as a Ray actor, but uses nothing of Ray."""

    def setup(self, experiment: Experiment, samples: np.ndarray, layers: Sequence[Layer]) -> None:
        """Get ready for an experiment; arguments as for `Coordinator.setup`."""
        self._experiment, self._samples = experiment, samples
        self._attackers = experiment.attackers
        self._defence = experiment.defence(layers)
        self._sender = Sender(experiment.privacy, experiment.seed)

    def send(self, step: str, *arguments: Any) -> Any:
        """Call a step of the protocol for the malicious hospitals; see `Sender`.

        step: name of the method.
        """
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
    ) -> np.ndarray | tuple[np.ndarray | TimedSteps, ...]:
        """The updates (k, d) float32 that the clients `crafting` send instead of what they trained, cut into `columns`.

        round: of the training.
        ids: the clients of each block of trained updates.
        crafting: the clients whose updates are replaced.
        columns: how the d coordinates are cut.
        outlook: what attackers know besides the updates.
        root: (1, d) the server's own update; None if the rule wants none.
        parts: the blocks (m, d), one after the other, each cut into `columns`; those of all participants.

        If steps are recorded, they are the last of the results.
        """
        seen = Recording() if self._experiment.tracking.profile else None
        with recording(seen), step("craft", round=round):
            made = self._crafted(round, ids, crafting, columns, outlook, root, parts)
        if seen is not None:
            return (*made, seen.recorded())
        return made[0] if len(columns) == 1 else tuple(made)

    def _crafted(
        self,
        round: int,
        ids: Sequence[Sequence[int]],
        crafting: Sequence[int],
        columns: Sequence[slice],
        outlook: Outlook,
        root: np.ndarray | None,
        parts: Sequence[np.ndarray],
    ) -> list[np.ndarray]:
        """The crafted updates, cut into `columns`; arguments as for `replace`."""
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
                samples=self._samples,
                histories=below(outlook.arrays, "history"),
                root=None if root is None else root[0],
            )

        crafted = craft(self._attackers, updates, updates, round, experiment.seed, outlook.step, preview)
        return list(cut_columns(np.stack([crafted[client] for client in crafting]), columns))
