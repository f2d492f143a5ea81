"""Reputation: one figure for each client, from its scores of all rounds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from fedrobust.options import Options

ReputationState = dict[str, np.ndarray]
"""The state of a reputation: arrays (clients,), which are stored in the checkpoint unchanged."""


class Reputation(Options):
    """Turns anomaly scores into a reputation in [0, 1] for each client. Pure: the state is passed in and returned."""

    name: str
    threshold: float = Field(default=0.4, ge=0, le=1)
    """A client whose reputation is below it is suspected."""

    @abstractmethod
    def start(self, clients: int) -> ReputationState:
        """The state before the first round, for so many `clients`."""

    @abstractmethod
    def update(self, state: ReputationState, scores: Mapping[int, float]) -> ReputationState:
        """The state after a round, as new arrays.

        state: before the round.
        scores: client id → anomaly score in [0, 1], which is 1 for an invalid update (not finite, of a wrong shape).
            Clients without an entry were absent, and keep their values.
        """

    @abstractmethod
    def value(self, state: ReputationState) -> np.ndarray:
        """The reputations (clients,) float64 in [0, 1] in `state`."""

    def forgiven(self, state: ReputationState, clients: Sequence[int]) -> ReputationState:
        """The state after the history of `clients` is erased: they are as new clients."""
        fresh = self.start(len(self.value(state)))
        after = {name: state[name].copy() for name in fresh}
        for name, values in after.items():
            values[list(clients)] = fresh[name][list(clients)]
        return after

    def suspected(self, state: ReputationState) -> list[int]:
        """The ids of the clients whose reputation in `state` is below the threshold, ascending."""
        return [int(client) for client in np.flatnonzero(self.value(state) < self.threshold)]


class Evidence(Reputation):
    """A reputation that adds each round's evidence to the earlier evidence, which loses weight over time.

    A round with score s is bad evidence e = max(0, s − t) / (1 − t), t = `tolerance`, and good evidence 1 − e.
    """

    tolerance: float = Field(default=0.5, ge=0, lt=1)
    """t: scores up to it count as 0, in favour of the client; with t = 0, each score counts as it is."""
    forgetting: float = Field(default=0.9, ge=0, le=1)
    """λ: the factor on old evidence in each round; 1 forgets nothing."""

    @abstractmethod
    def weigh(self, state: ReputationState, bad: np.ndarray) -> ReputationState:
        """The values (k,) of the k clients present, after a round.

        state: name → (k,), their values before the round.
        bad: (k,) their bad evidence in [0, 1].
        """

    def update(self, state: ReputationState, scores: Mapping[int, float]) -> ReputationState:
        """The state after a round: `weigh` for the clients in `scores`."""
        present, given = list(scores), np.array(list(scores.values()), dtype=np.float64)
        bad = np.maximum(0.0, given - self.tolerance) / (1.0 - self.tolerance)
        after = {name: values.copy() for name, values in state.items() if name in self.start(0)}
        for name, values in self.weigh({name: values[present] for name, values in after.items()}, bad).items():
            after[name][present] = values
        return after


class BetaReputation(Evidence):
    """Beta evidence with forgetting (Jøsang and Ismail, Bled 2002), in which bad evidence weighs more than good.

    α ← λα + 1 − e, β ← λβ + h e, h = `harshness`, e the bad evidence of the round: 0 up to a score of t, 1 for a score
    of 1 and for a rejected update. The reputation is (α + 1) / (α + β + 2), one half for a new client. With λ = 0.9 the
    last ten rounds or so count, and a client with constant evidence e converges to (11 − 10 e) / (12 + 40 e).

    Trust is lost faster than it is won; otherwise a client that is honest in every second round would keep half of it.
    After ten honest rounds, an attacker whose malicious updates score 0.9 is below 0.4 at the third of them, even if it
    is honest in every second round; from the bottom it needs 15 good rounds to be above one half again. The classic
    form, h = 1 and t = 0, takes eight malicious rounds in a row, and never notices an attacker that is honest in every
    second round. An honest hospital whose score jumps to 0.7 … 1 in one round out of ten is below 0.4 in less than 1 %
    of the rounds.

    An honest hospital with rare data scores higher than the others in every round, so forgetting does not help it: with
    a constant score above 0.62 it is suspected. Scores alone cannot separate it from a malicious one.
    """

    name: Literal["beta"] = "beta"
    harshness: float = Field(default=5.0, gt=0)
    """h: one bad round weighs as much as so many good rounds."""

    def start(self, clients: int) -> ReputationState:
        return {"good": np.zeros(clients), "bad": np.zeros(clients)}

    def weigh(self, state: ReputationState, bad: np.ndarray) -> ReputationState:
        return {
            "good": self.forgetting * state["good"] + (1.0 - bad),
            "bad": self.forgetting * state["bad"] + self.harshness * bad,
        }

    def value(self, state: ReputationState) -> np.ndarray:
        return np.asarray((state["good"] + 1.0) / (state["good"] + state["bad"] + 2.0))


class SubjectiveLogic(Evidence):
    """Belief, disbelief and uncertainty of subjective logic (Jøsang, 2001), as in FRM (Chu et al., NDSS 2023).

    P ← λP + κ (1 − e), N ← λN + (1 − κ) e, e the bad evidence of the round. Belief b = P / (P + N + W), uncertainty u =
    W / (P + N + W), and the reputation is b + a u: `base` for a new client. A client with constant evidence e converges
    to (4 − 3 e) / (5 + 4 e) by default.

    FRM computes evidence from residuals of its own, in a window of ten rounds; here e comes from the detector's score,
    and old evidence is forgotten as in `beta`. W outweighs much of the remaining evidence, so a client that is
    malicious in every second round is noticed late or never.
    """

    name: Literal["subjective_logic"] = "subjective_logic"
    kappa: float = Field(default=0.3, gt=0, lt=1)
    """κ: the weight of good evidence; that of bad evidence is 1 − κ."""
    uncertainty: float = Field(default=2.0, gt=0)
    """W: the evidence that it takes to halve the uncertainty."""
    base: float = Field(default=0.5, ge=0, le=1)
    """a: the share of the uncertainty that counts as trust."""

    def start(self, clients: int) -> ReputationState:
        return {"positive": np.zeros(clients), "negative": np.zeros(clients)}

    def weigh(self, state: ReputationState, bad: np.ndarray) -> ReputationState:
        return {
            "positive": self.forgetting * state["positive"] + self.kappa * (1.0 - bad),
            "negative": self.forgetting * state["negative"] + (1.0 - self.kappa) * bad,
        }

    def value(self, state: ReputationState) -> np.ndarray:
        total = state["positive"] + state["negative"] + self.uncertainty
        return np.asarray((state["positive"] + self.base * self.uncertainty) / total)


class ExponentialAverage(Evidence):
    """The exponential moving average of good evidence.

    r ← γ r + (1 − γ) (1 − e), γ = `forgetting`, e the bad evidence of the round; one half for a new client. The last 1
    / (1 − γ) rounds count, good and bad alike: a client that is malicious in every second round keeps half of its
    reputation.
    """

    name: Literal["ema"] = "ema"
    forgetting: float = Field(default=0.8, ge=0, le=1)
    """γ: the factor on the old reputation in each round; 0: only the last round counts."""

    def start(self, clients: int) -> ReputationState:
        return {"average": np.full(clients, 0.5)}

    def weigh(self, state: ReputationState, bad: np.ndarray) -> ReputationState:
        return {"average": self.forgetting * state["average"] + (1.0 - self.forgetting) * (1.0 - bad)}

    def value(self, state: ReputationState) -> np.ndarray:
        return state["average"].copy()
