"""What an attacker that knows the defence can compute before it sends: what the defence would do with a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrobust.aggregation import Combination
from fedrobust.attacks import Vectors
from fedrobust.trust.defence import Defence, DefenceMemory
from fedrobust.updates import Span


@dataclass(frozen=True, eq=False)
class DefencePreview:
    """The defence, with its state, before a round, as the hospitals of one attack see it.

    defence: stages, rule and detector.
    memory: its state.
    group: hospitals of the attack.
    updates: hospital → what it trained (d,), for all participants.
    ids: hospital → the id with which it appears.
    round: number of the round.
    samples: (ids,) the claimed sample counts of every id; None where they do not count.
    histories: those of the clients' rows.
    root: (d,) the server's own update, where the defence needs one.
    """

    defence: Defence
    memory: DefenceMemory
    group: Sequence[int]
    updates: Mapping[int, np.ndarray]
    ids: Mapping[int, int]
    round: int
    samples: np.ndarray | None = None
    histories: Mapping[str, np.ndarray] | None = None
    root: np.ndarray | None = None

    def lines(self, extra: Vectors) -> DefenceSearch:
        """A search in the span of L lines: the group's own rows, the others' finite ones, then the directions `extra`
        (d,).

        Own rows that are not finite count as zeros.
        """
        finite = {client: bool(np.isfinite(row).all()) for client, row in self.updates.items()}
        group = sorted(self.group)
        others = [client for client in sorted(self.updates) if client not in group and finite[client]]
        rejected = [self.ids[client] for client in self.updates if client not in group and not finite[client]]
        own = [self.updates[client] if finite[client] else np.zeros_like(self.updates[client]) for client in group]
        line_of = {self.ids[client]: line for line, client in enumerate([*group, *others])}
        lines = np.stack([*own, *(self.updates[client] for client in others), *extra])
        return DefenceSearch(self, lines, dict(sorted(line_of.items())), rejected)


class DefenceSearch:
    """One round through the defence, evaluated many times for crafted rows in the span of the same lines (L, d)."""

    def __init__(
        self, preview: DefencePreview, lines: np.ndarray, line_of: Mapping[int, int], rejected: Sequence[int]
    ) -> None:
        self._preview, self._rejected = preview, rejected
        self._clients = np.array(list(line_of), dtype=np.int64)
        self._lines, self._span = lines, Span([lines], preview.histories or {}, self._clients)
        self._rows = np.eye(len(lines))[list(line_of.values())]
        attackers = len(preview.group)
        self._crafted = [list(line_of.values()).index(line) for line in range(attackers)]
        honest = [line for line in line_of.values() if line >= attackers]
        self._honest_mean = np.isin(np.arange(len(lines)), honest) / max(1, len(honest))
        everybody = np.array(sorted(preview.ids[client] for client in preview.updates))
        samples = None if preview.samples is None else preview.samples[everybody]
        prior = preview.defence.aggregation.prior(samples, len(everybody), preview.defence.participants)
        self._prior = prior[np.isin(everybody, self._clients)]

    def damage(self, crafted: NDArray[np.float64]) -> float:
        """‖aggregate − mean of the others' rows‖ if the attackers send `crafted @ lines`; 0 where the round would be
        skipped.

        crafted: (k, L) coefficients.
        """
        coefficients = self._rows.copy()
        coefficients[self._crafted] = crafted
        rows = self._span.rows(coefficients, self._prior)
        asked = self._preview
        judged = asked.defence.judge(
            asked.memory, rows, self._clients, asked.round, asked.root, self._rejected, len(self._rejected)
        )
        if judged.decision is None:
            return 0.0
        decided = judged.decision.decided
        if isinstance(decided, Combination):
            return float(np.sqrt(rows.squared_distance(decided, self._honest_mean)))
        aggregate = rows.reduce(decided, judged.decision.mixing).astype(np.float64)
        return float(np.linalg.norm(aggregate - self._honest_mean @ self._lines))
