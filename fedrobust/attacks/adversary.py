"""Who is malicious, and what they may see.

The adversary stands between training and the protocol: it replaces the rows of malicious hospitals. Its knowledge is
enforced here: `craft` hands an attack only what its `knowledge` allows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fedrobust.attacks.identity import Identity, OneEach, Sybil
from fedrobust.attacks.local import LocalAttack, LocalView
from fedrobust.attacks.rows import Vectors, noisy
from fedrobust.attacks.schedules import Always, Schedule
from fedrobust.errors import ExperimentError, Problem
from fedrobust.options import Many, OneOf, Options, refusal
from fedrobust.portions import portion
from fedrobust.seeds import generator


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


def draw_attackers(attacks: Sequence[Attack], clients: int, seed: int) -> dict[int, int]:
    """The malicious hospitals: client id -> index into `attacks`, by ascending id.

    Explicit ids come first; the other attacks take, in their order, the next hospitals of one random order that depends
    on nothing but `clients` and `seed`. So attacks of the same size have the same hospitals, whatever their kind, and a
    larger fraction holds those of a smaller one. Raises `ExperimentError` where the attacks do not fit.
    """
    drawn: dict[int, int] = {}
    for index, attack in enumerate(attacks):
        for client in attack.clients or ():
            if client >= clients:
                raise _refused(index, "clients", "no such hospital", str(client), f"0 to {clients - 1}")
            if client in drawn:
                raise _refused(index, "clients", f"attacks.{drawn[client]} has this hospital already", str(client))
            drawn[client] = index
    sizes = [attack.attackers(clients) for attack in attacks]
    if attacks and sum(sizes) >= clients:
        reason = f"{sum(sizes)} malicious hospitals of {clients}; at least one must be honest: "
        raise ExperimentError(Problem(f"{reason}lower fraction or count, or raise federation.clients", "attacks"))
    order = iter([int(c) for c in generator(seed, "attackers").permutation(clients) if int(c) not in drawn])
    for index, (attack, size) in enumerate(zip(attacks, sizes, strict=True)):
        if size == 0 and attack.fraction:
            reason = f"is none of {clients} hospitals; raise it or give a count"
            raise _refused(index, "fraction", reason, str(attack.fraction))
        if size and (unbound := attack.bound(size)):
            raise _refused(index, "", unbound)
        if attack.clients is None:
            drawn.update({next(order): index for _ in range(size)})
    return dict(sorted(drawn.items()))


def _refused(index: int, option: str, message: str, found: str = "", *allowed: str) -> ExperimentError:
    """What is wrong with an option of an attack."""
    return ExperimentError(Problem(message, option, found, allowed).below(f"attacks.{index}"))


def attacking(
    attacks: Sequence[Attack], attackers: Mapping[int, int], participants: Iterable[int], round: int
) -> list[int]:
    """The participants whose attack, on data or on updates, is active in `round`, by ascending id."""
    return sorted(c for c in participants if c in attackers and attacks[attackers[c]].schedule.active(round))


def absent(attacks: Sequence[Attack], attackers: Mapping[int, int], round: int) -> set[int]:
    """The hospitals that send nothing in `round`, because their attack is `Absent`."""
    active = attacking(attacks, attackers, attackers, round)
    return {client for client in active if isinstance(attacks[attackers[client]], Absent)}


def crafts(attack: Attack) -> bool:
    """Whether the adversary replaces what the hospitals of this attack trained, as `craft` says."""
    return isinstance(attack, CraftedAttack) or isinstance(attack.identity, Sybil)


def craft(
    attacks: Sequence[Attack],
    attackers: Mapping[int, int],
    participants: Iterable[int],
    updates: Mapping[int, np.ndarray],
    round: int,
    seed: int,
    step: np.ndarray | None = None,
    preview: Callable[[list[int]], Preview] | None = None,
) -> dict[int, np.ndarray]:
    """The updates (d,) float32 that hospitals send instead of what they trained, by client id: those of active attacks
    that `crafts` names.

    Whoever is not in the result sends what it trained: the honest, the data attackers, those whose schedule is off.
    The hospitals of one attack collude; different attacks do not.

    updates: what each participant trained, (d,) float32. Those of honest hospitals are needed, and handed on, only
        where an active attack has the knowledge `all` or `aware`. Rows may be read-only; none is changed or copied.
    step: the last change of the global model (d,), None in the first round.
    preview: makes the preview of the defence for a group of attackers; needed, and called, only for attacks with the
        knowledge `aware`.
    """
    participants = sorted(participants)
    active = attacking(attacks, attackers, participants, round)
    crafted: dict[int, np.ndarray] = {}
    for index, attack in enumerate(attacks):
        group = [client for client in active if attackers[client] == index]
        if not group or not crafts(attack):
            continue
        rows = np.array([updates[group[0]]])
        draws = generator(seed, "craft", round, index)
        if isinstance(attack, CraftedAttack):
            if attack.knowledge == "aware" and preview is None:
                raise _refused(index, "", f"{attack.name} knows the defence; no preview of it is given")
            view = _view(attack, group, participants, updates, round, draws, step, preview)
            rows = attack.craft(view)
            expected = (len(group), len(view.own[0]))
            if rows.shape != expected or rows.dtype != np.float32:
                found = f"{rows.dtype} {rows.shape}"
                raise _refused(index, "", f"{attack.name} must craft float32 {expected}", found)
        if isinstance(attack.identity, Sybil):
            copies = np.broadcast_to(rows[0], (len(group), rows.shape[1]))
            rows = noisy(copies, attack.identity.noise, draws)
        crafted.update(zip(group, rows, strict=True))
    return dict(sorted(crafted.items()))


def _view(
    attack: Attack,
    group: list[int],
    participants: Sequence[int],
    updates: Mapping[int, np.ndarray],
    round: int,
    draws: np.random.Generator,
    step: np.ndarray | None,
    preview: Callable[[list[int]], Preview] | None,
) -> View:
    """What the `group` may see."""
    others = None
    if attack.knowledge != "own":
        # A row that is not finite is no update, as anyone can see who sees it.
        others = [c for c in participants if c not in group and bool(np.isfinite(updates[c]).all())]
    return View(
        own=tuple(_read_only(updates[client]) for client in group),
        others=None if others is None else tuple(_read_only(updates[client]) for client in others),
        n=len(participants),
        round=round,
        generator=draws,
        clients=others,
        step=None if step is None else _read_only(step),
        preview=preview(group) if attack.knowledge == "aware" and preview is not None else None,
    )


def _read_only(row: np.ndarray) -> np.ndarray:
    view = row.view()
    view.flags.writeable = False
    return view
