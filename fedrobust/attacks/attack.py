"""What every attack has: who its hospitals are, when it is active, what it knows, and what it sees of a round."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fedrobust.attacks.identity import Identity, OneEach, Sybil
from fedrobust.attacks.local import LocalAttack, LocalView
from fedrobust.attacks.rows import Vectors
from fedrobust.attacks.schedules import Always, Schedule
from fedrobust.errors import Problem
from fedrobust.options import Many, OneOf, Options, refusal
from fedrobust.portions import portion


class Attack(Options):
    """What the malicious hospitals of one group do, and who they are: exactly one of fraction, count, clients."""

    name: str
    fraction: float | None = Field(default=None, ge=0, lt=1)
    """Share of all hospitals that is malicious, rounded to the nearest number (a half upwards); drawn by the seed."""
    count: int | None = Field(default=None, ge=0)
    """Number of malicious hospitals, drawn by the seed."""
    clients: Many[Annotated[int, Field(ge=0)]] | None = None
    """The ids of the malicious hospitals."""
    knowledge: Literal["own", "all", "aware"] = "own"
    """`own`: the attackers see only what they trained themselves; `all`: every update of the round; `aware`: the
    defence as well, with all that it remembers. The last change of the global model is known to everyone."""
    schedule: Annotated[Schedule, OneOf(Schedule)] = Always()
    """In which rounds the attack is active."""
    identity: Annotated[Identity, OneOf(Identity)] = OneEach()
    """How its hospitals appear to the coordinator."""

    @model_validator(mode="after")
    def _exactly_one_size(self) -> Self:
        given = [field for field in ("fraction", "count", "clients") if getattr(self, field) is not None]
        if len(given) != 1:
            raise refusal(Problem("give exactly one of fraction, count, clients", found=" and ".join(given) or "none"))
        if self.clients is not None and (not self.clients or len(set(self.clients)) < len(self.clients)):
            reason = "must name each hospital once, and at least one"
            raise refusal(Problem(reason, "clients", found=str(list(self.clients))))
        return self

    def attackers(self, clients: int) -> int:
        """How many of `clients` hospitals are malicious."""
        if self.clients is not None:
            return len(self.clients)
        if self.count is not None:
            return self.count
        assert self.fraction is not None
        return portion(self.fraction, clients)

    @property
    def crafts(self) -> bool:
        """Whether the adversary replaces what its hospitals trained, see `adversary.craft`."""
        return isinstance(self.identity, Sybil)

    def bound(self, attackers: int) -> str | None:
        """Why this attack cannot be run by so many hospitals; None where it can."""
        return None


class DataAttack(Attack):
    """Poisons the training data of its hospitals, which train honestly otherwise."""

    knowledge: Literal["own"] = "own"
    """A hospital poisons its own data and needs to see nothing else."""

    def check(self, classes: int, size: int) -> None:
        """Raise `ExperimentError` where the attack does not fit data of so many labels, or images of `size` pixels."""

    @abstractmethod
    def poison(
        self, images: np.ndarray, labels: np.ndarray, generator: np.random.Generator, classes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """A batch, poisoned: images (B, H, W, 3) uint8, labels (B,) int64. Never changes its arguments.

        Raises `ExperimentError` where `check` does.
        """

    @property
    def needs_step(self) -> bool:
        """Whether `local` asks for `LocalView.step`, the last change of the global model."""
        return False

    def local(self, view: LocalView) -> LocalAttack:
        """What one hospital of this attack does in a round: it poisons its batches, and trains honestly otherwise."""
        return LocalAttack(self.poison)


class Absent(Attack):
    """Sends nothing: its hospitals are left out while it is active.

    With the mean as the rule this is the oracle that knows the attackers, the most that a defence can hope for.
    """

    name: Literal["absent"] = "absent"
    knowledge: Literal["own"] = "own"
    """It needs to see nothing."""


class CraftedAttack(Attack):
    """Replaces the updates of its hospitals."""

    @property
    def crafts(self) -> bool:
        return True

    @abstractmethod
    def craft(self, view: View) -> np.ndarray:
        """The rows (k, d) float32 that are sent instead of `view.own`. Never changes what it sees."""


class Search(Protocol):
    """One round through the real defence, asked many times for crafted rows in the span of the same lines."""

    def damage(self, crafted: NDArray[np.float64]) -> float:
        """‖aggregate − mean of the others' rows‖ if the attackers sent `crafted @ lines`, for `crafted` (k, L).

        0 where the round would be skipped.
        """


class Preview(Protocol):
    """What an `aware` attack knows of the defence: what it would make of the round."""

    def lines(self, extra: Vectors) -> Search:
        """A search in the span of L lines: the own rows, the others' finite ones, then the directions `extra` (d,)."""


@dataclass(frozen=True)
class View:
    """What the hospitals of one attack, which collude, see in a round."""

    own: Vectors
    """k rows (d,): what they trained themselves, in the order of their ids."""
    others: Vectors | None
    """m finite rows (d,): what the other participants trained, before anyone crafts; None with the knowledge `own`."""
    n: int
    """Number of participants in the round, which every client is told."""
    round: int
    generator: np.random.Generator
    clients: Sequence[int] | None = None
    """m ids of the hospitals behind `others`; None with the knowledge `own`."""
    step: np.ndarray | None = None
    """(d,) the last change of the global model, which every client can work out; None in the first round."""
    preview: Preview | None = None
    """The defence, with the knowledge `aware` only."""

    @property
    def f(self) -> int:
        """Number of rows they control."""
        return len(self.own)

    @property
    def reference(self) -> Vectors:
        """The rows that stand for honest behaviour: the others' where they are seen, else what they trained themselves.

        Rows of hospitals with another attack count among the others: these attackers cannot tell them from honest ones.
        With a single attack in the federation, the mean of these rows is the honest mean of the papers.
        """
        return self.others if self.others is not None and len(self.others) else self.own
