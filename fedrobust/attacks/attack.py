"""What all attacks have: their hospitals, when they are active, their knowledge, and what they see of a round."""

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
    """What the malicious hospitals of one group do, and which they are: exactly one of fraction, count, clients."""

    name: str
    fraction: float | None = Field(default=None, ge=0, lt=1)
    """Share of all hospitals that are malicious, rounded to the nearest number (a half upwards); drawn by the seed."""
    count: int | None = Field(default=None, ge=0)
    """Number of malicious hospitals, drawn by the seed."""
    clients: Many[Annotated[int, Field(ge=0)]] | None = None
    """The ids of the malicious hospitals."""
    chosen: Literal["random", "largest", "smallest"] = "random"
    """Which hospitals `fraction` and `count` take; by size with `data.partition.ratio` only."""
    claim: float = Field(default=1.0, gt=0, le=1e9)
    """The multiple of their training patches that its hospitals claim; it counts with `aggregation.weighting: samples`.
    """
    knowledge: Literal["own", "patches", "all", "aware"] = "own"
    """`own`: the attackers see only their own trained updates; `all`: every update of the round; `aware`: the defence
    as well, with its memory; `patches`: the coordinator's own patches. Every attacker knows the last change of the
    global model."""
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
        """Whether the adversary replaces the trained updates of its hospitals, see `adversary.craft`."""
        return isinstance(self.identity, Sybil)

    def bound(self, attackers: int) -> str | None:
        """Why so many `attackers` cannot run this attack; None where they can."""
        return None


class DataAttack(Attack):
    """Poisons the training data of its hospitals. Otherwise they train honestly."""

    knowledge: Literal["own", "patches"] = "own"
    """`own`: a hospital poisons its own data, and sees nothing else; `patches`: it has the coordinator's patches as
    well, and trains on these with the right labels, so that a referee finds the model good."""
    pleasing: float = Field(default=0.5, gt=0, lt=1)
    """With the knowledge `patches`, the share of each batch that the coordinator's patches replace."""

    @property
    def knows_patches(self) -> bool:
        """Whether its hospitals have the coordinator's own patches."""
        return self.knowledge == "patches"

    def check(self, classes: int, size: int) -> None:
        """Raise `ExperimentError` where the attack does not fit the data.

        classes: number of labels.
        size: side of an image, in pixels.
        """

    @abstractmethod
    def poison(
        self, images: np.ndarray, labels: np.ndarray, generator: np.random.Generator, classes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """A poisoned batch: new images and labels, of the same shapes and types.

        images: (B, H, W, 3) uint8; not changed.
        labels: (B,) int64; not changed.
        generator: for the attack's random draws.
        classes: number of labels.

        Raises `ExperimentError` where `check` does.
        """

    @property
    def needs_step(self) -> bool:
        """Whether `local` uses `LocalView.step`, the last change of the global model."""
        return False

    def local(self, view: LocalView) -> LocalAttack:
        """What a hospital of this attack does in a round: it poisons its batches, and trains honestly otherwise.

        view: what the hospital knows.
        """
        return LocalAttack(self.poison)


class Absent(Attack):
    """Sends nothing: its hospitals are left out while it is active.

    With the mean as the rule, this is an oracle that knows the attackers: the best that a defence can reach.
    """

    name: Literal["absent"] = "absent"
    knowledge: Literal["own"] = "own"
    """It does not need to see anything."""


class CraftedAttack(Attack):
    """Replaces the trained updates of its hospitals."""

    @property
    def crafts(self) -> bool:
        return True

    @abstractmethod
    def craft(self, view: View) -> np.ndarray:
        """The rows (k, d) float32 that are sent instead of `view.own`.

        view: what the hospitals of the attack see; it must not be changed.
        """


class Search(Protocol):
    """One round through the real defence, which can be called many times, for crafted rows in the span of the same
    lines.
    """

    def damage(self, crafted: NDArray[np.float64]) -> float:
        """‖aggregate − mean of the others' rows‖ if the attackers send `crafted @ lines`. 0 where the round would be
        skipped.

        crafted: (k, L) float64, the coefficients of the k crafted rows.
        """


class Preview(Protocol):
    """What an `aware` attack knows of the defence: the aggregate that it would compute in this round."""

    def lines(self, extra: Vectors) -> Search:
        """A search in the span of L lines: the attack's own rows, the finite rows of the others, then `extra`.

        extra: further directions (d,).
        """


@dataclass(frozen=True)
class View:
    """What the colluding hospitals of one attack see in a round."""

    own: Vectors
    """k rows (d,): their trained updates, in the order of their ids."""
    others: Vectors | None
    """m finite rows (d,): the trained updates of the other participants, before any attack; None with the knowledge
    `own`."""
    n: int
    """Number of participants in the round, which every client knows."""
    round: int
    generator: np.random.Generator
    clients: Sequence[int] | None = None
    """m ids of the hospitals behind `others`; None with the knowledge `own`."""
    step: np.ndarray | None = None
    """(d,) the last change of the global model, which every client can compute; None in the first round."""
    preview: Preview | None = None
    """The defence, with the knowledge `aware` only."""

    @property
    def f(self) -> int:
        """Number of rows that these hospitals control."""
        return len(self.own)

    @property
    def reference(self) -> Vectors:
        """The rows that represent honest behaviour: the others' rows if they are seen, else the attackers' own trained
        rows.

        Rows of hospitals with another attack count among the others: these attackers cannot see the difference. With a
        single attack in the federation, the mean of these rows is the honest mean of the papers.
        """
        return self.others if self.others is not None and len(self.others) else self.own
