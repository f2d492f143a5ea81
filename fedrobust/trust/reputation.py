"""Reputation: what the scores of all rounds say about a client."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from fedrobust.options import Options

State = dict[str, np.ndarray]
"""What a reputation remembers: arrays (clients,), which go into the checkpoint as they are."""


class Reputation(Options):
    """Turns anomaly scores into a standing in [0, 1] for each client. Pure: the memory is a `State` handed about."""

    name: str
    threshold: float = Field(default=0.4, ge=0, le=1)
    """A client whose reputation is below it is suspected."""

    @abstractmethod
    def start(self, clients: int) -> State:
        """The state before the first round."""

    @abstractmethod
    def update(self, state: State, scores: Mapping[int, float]) -> State:
        """The state after a round; `state` itself stays.

        scores: client id -> anomaly score in [0, 1], and 1 for who sent something that is no update (not finite, of a
            wrong shape). Who is not in it was absent, and keeps its values.
        """

    @abstractmethod
    def value(self, state: State) -> np.ndarray:
        """The reputation (clients,) float64 in [0, 1]."""

    def suspected(self, state: State) -> list[int]:
        """The clients below the threshold, by ascending id."""
        return [int(client) for client in np.flatnonzero(self.value(state) < self.threshold)]


class BetaReputation(Reputation):
    """Beta evidence with forgetting (Jøsang and Ismail, Bled 2002).

    A round with score s is good evidence 1 − s and bad evidence s, so a rejected update is bad evidence 1:
    α ← λα + good, β ← λβ + bad; the reputation is (α + 1) / (α + β + 2), one half for a stranger. With λ = 0.9 the last
    ten rounds or so count, and the standing of who always scores s tends to (11 − 10 s) / 12.

    An honest hospital with rare data scores higher than the others in every round, so forgetting does not help it:
    scores alone cannot tell it from a malicious one.
    """

    name: Literal["beta"] = "beta"
    forgetting: float = Field(default=0.9, ge=0, le=1)
    """λ: what is left of old evidence after a round of new; 1 forgets nothing."""

    def start(self, clients: int) -> State:
        return {"good": np.zeros(clients), "bad": np.zeros(clients)}

    def update(self, state: State, scores: Mapping[int, float]) -> State:
        present, bad = list(scores), np.array(list(scores.values()), dtype=np.float64)
        good, evil = state["good"].copy(), state["bad"].copy()
        good[present] = self.forgetting * good[present] + (1.0 - bad)
        evil[present] = self.forgetting * evil[present] + bad
        return {"good": good, "bad": evil}

    def value(self, state: State) -> np.ndarray:
        return np.asarray((state["good"] + 1.0) / (state["good"] + state["bad"] + 2.0))
