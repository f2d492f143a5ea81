"""Quarantine: which clients the coordinator leaves out of the aggregate, for how long, and when they come back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from fedrobust.errors import Problem
from fedrobust.options import Options, refusal
from fedrobust.portions import portion
from fedrobust.trust.reputation import ReputationState


class Quarantine(Options):
    """Leaves clients of low reputation out of the aggregate. They go on training, and their updates are scored.

    A client goes in when its reputation falls below `enter`, and comes out when it rises above `leave`: without a gap
    it would go in and out from round to round. Then it is on probation: its reputation counts half, and one below
    `leave` sends it back at once. After `parole` rounds in quarantine it comes back on probation whatever its
    reputation, and with that of a new client: no client is out for good because it is different.

    Quarantine always leaves enough of the clients that sent an update: a `quorum` of them, and as many as the Byzantine
    f needs. If too few would be left, the clients of the highest reputation stay out of it, on probation; of equals,
    the higher ids.
    """

    enter: float = Field(default=0.4, ge=0, le=1)
    """The reputation below which a client is quarantined."""
    leave: float = Field(default=0.5, ge=0, le=1)
    """The reputation above which it comes back."""
    probation: int = Field(default=3, ge=0)
    """For how many rounds a client that comes back is on probation; only rounds in which it takes part count."""
    parole: int | None = Field(default=10, ge=1)
    """Rounds in quarantine after which a client comes back anyway; null: never. Only rounds in which it takes part
    count."""
    quorum: float = Field(default=0.5, gt=0, le=1)
    """The share of the clients with an update that stay, whatever their reputation; one of them at least."""

    @model_validator(mode="after")
    def _a_gap(self) -> Self:
        if self.leave < self.enter:
            raise refusal(Problem(f"must be at least enter = {self.enter:g}", "leave", f"{self.leave:g}"))
        return self

    def start(self, clients: int) -> ReputationState:
        """The state before the first round, for so many `clients`: no client is in quarantine or on probation.

        Arrays (clients,) int64: `quarantined` is 1 for clients in quarantine, `served` the rounds they have been there,
        `probation` the rounds of probation that are left.
        """
        return {name: np.zeros(clients, dtype=np.int64) for name in ("quarantined", "served", "probation")}

    def due(self, state: ReputationState, present: Sequence[int]) -> list[int]:
        """The clients that have been in quarantine for `parole` rounds.

        state: before the round.
        present: the clients of the round.
        """
        if self.parole is None:
            return []
        return [client for client in present if state["quarantined"][client] and state["served"][client] >= self.parole]

    def update(
        self,
        state: ReputationState,
        reputation: np.ndarray,
        present: Sequence[int],
        paroled: Sequence[int] = (),
        rejected: Collection[int] = (),
        least: int = 1,
    ) -> ReputationState:
        """The state after a round, as new arrays; absent clients keep their values.

        state: before the round.
        reputation: (clients,) after the round.
        present: ids of the clients that took part.
        paroled: ids of those that come back whatever their reputation; see `due`.
        rejected: ids of those that sent no valid update; they do not count for the quorum.
        least: how many of the others stay out of quarantine at least, even if the quorum is less.
        """
        inside, probation = state["quarantined"].astype(bool), state["probation"].copy()
        here = np.zeros(len(inside), dtype=bool)
        here[list(present)] = True
        fallen = here & ~inside & (reputation < np.where(probation > 0, self.leave, self.enter))
        back = here & inside & (reputation > self.leave)
        back[list(paroled)] = True
        inside = (inside | fallen) & ~back
        probation[here] = np.maximum(probation[here] - 1, 0)
        probation[back], probation[fallen] = self.probation, 0
        rows = here.copy()
        rows[list(rejected)] = False
        out, count = np.flatnonzero(rows & inside), int(rows.sum())
        room = max(0, count - max(1, least, portion(self.quorum, count, least=True)))
        spared = out[np.lexsort((out, reputation[out]))][room:]
        inside[spared], probation[spared] = False, max(1, self.probation)
        served = np.where(inside, state["served"] + here, 0)
        return {"quarantined": inside.astype(np.int64), "served": served, "probation": probation}

    def prior(self, state: ReputationState, reputation: np.ndarray) -> np.ndarray:
        """The factor on each client's prior weight, (clients,): its `reputation`, or half of it on probation, by
        `state`.
        """
        return np.asarray(reputation * np.where(state["probation"] > 0, 0.5, 1.0))
