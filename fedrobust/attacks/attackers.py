"""The malicious hospitals of a federation: drawn once, and passed to all code that needs them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from fedrobust.attacks.attack import Absent, Attack
from fedrobust.attacks.identity import Whitewash
from fedrobust.errors import ExperimentError, Problem
from fedrobust.seeds import generator


@dataclass(frozen=True)
class Attackers:
    """The malicious hospitals of a federation.

    attacks: the attacks of the experiment.
    clients: number of hospitals.
    drawn: hospital → index into `attacks`.
    """

    attacks: Sequence[Attack]
    clients: int
    drawn: Mapping[int, int]

    @classmethod
    def draw(cls, attacks: Sequence[Attack], clients: int, seed: int) -> Self:
        """The attackers that `draw_attackers` draws; arguments and errors as there: `attacks`, `clients`, `seed`."""
        return cls(attacks, clients, draw_attackers(attacks, clients, seed))

    @property
    def names(self) -> dict[int, str]:
        """Hospital → name of its attack, by ascending id."""
        return {client: self.attacks[index].name for client, index in self.drawn.items()}

    def attack(self, client: int) -> Attack | None:
        """The attack of hospital `client`; None for an honest hospital."""
        return self.attacks[self.drawn[client]] if client in self.drawn else None

    def accomplices(self, client: int) -> list[int]:
        """The hospitals with the same attack as `client`, itself among them, by ascending id."""
        return [other for other, index in self.drawn.items() if index == self.drawn[client]]

    def active(self, participants: Iterable[int], round: int) -> list[int]:
        """The participants whose attack, on data or on updates, is active in `round`, by ascending id."""
        return sorted(c for c in participants if (attack := self.attack(c)) and attack.schedule.active(round))

    def crafting(self, participants: Iterable[int], round: int) -> list[int]:
        """Those of the `active` participants in `round` whose updates the adversary replaces, by ascending id."""
        return [client for client in self.active(participants, round) if self.attacks[self.drawn[client]].crafts]

    @property
    def crafts(self) -> bool:
        """Whether the adversary ever replaces an update."""
        return any(self.attacks[index].crafts for index in self.drawn.values())

    def absent(self, round: int) -> set[int]:
        """The hospitals that send nothing in `round`, because their attack is `Absent`."""
        return {client for client in self.active(self.drawn, round) if isinstance(self.attack(client), Absent)}

    def new_ids(self, round: int) -> dict[int, int]:
        """The hospitals that use another id than their own in `round`, and that id, by ascending hospital.

        A hospital's e-th new id is clients + (e − 1) · W + r, where W is the number of all whitewashing hospitals and r
        its rank among them. So no two hospitals share an id, whatever the attacks' intervals are.
        """
        found = {}
        for rank, (client, identity) in enumerate(self._washers()):
            if epoch := (round - 1) // identity.every:
                found[client] = self.clients + (epoch - 1) * len(self._washers()) + rank
        return found

    def ids(self, rounds: int) -> int:
        """How many ids appear in so many `rounds`: the hospitals' own ids, then new ones."""
        washers = self._washers()
        return self.clients + max(((rounds - 1) // identity.every for _, identity in washers), default=0) * len(washers)

    def _washers(self) -> list[tuple[int, Whitewash]]:
        """The whitewashing hospitals, by ascending id."""
        own = [(client, self.attacks[index].identity) for client, index in sorted(self.drawn.items())]
        return [(client, identity) for client, identity in own if isinstance(identity, Whitewash)]


def draw_attackers(attacks: Sequence[Attack], clients: int, seed: int) -> dict[int, int]:
    """The malicious hospitals: hospital → index into `attacks`, by ascending id.

    attacks: the attacks of the experiment.
    clients: number of hospitals.
    seed: of the run.

    Explicit ids come first. The other attacks take, in their order, the next hospitals of one random order that depends
    only on `clients` and `seed`. So attacks of the same size have the same hospitals, whatever their kind, and a larger
    fraction includes the hospitals of a smaller one. By size, hospital 0 is the largest.

    Raises `ExperimentError` where the attacks do not fit.
    """
    drawn: dict[int, int] = {}
    for index, attack in enumerate(attacks):
        for client in attack.clients or ():
            if client >= clients:
                raise attack_error(index, "clients", "no such hospital", str(client), f"0 to {clients - 1}")
            if client in drawn:
                raise attack_error(index, "clients", f"attacks.{drawn[client]} has this hospital already", str(client))
            drawn[client] = index
    sizes = [attack.attackers(clients) for attack in attacks]
    if attacks and sum(sizes) >= clients:
        reason = f"{sum(sizes)} malicious hospitals of {clients}; at least one must be honest: "
        raise ExperimentError(Problem(f"{reason}lower fraction or count, or raise federation.clients", "attacks"))
    free = [int(c) for c in generator(seed, "attackers").permutation(clients) if int(c) not in drawn]
    for index, (attack, size) in enumerate(zip(attacks, sizes, strict=True)):
        if size == 0 and attack.fraction:
            reason = f"is none of {clients} hospitals; raise it or give a count"
            raise attack_error(index, "fraction", reason, str(attack.fraction))
        if size and (unbound := attack.bound(size)):
            raise attack_error(index, "", unbound)
        if attack.clients is None:
            ordered = {"random": free, "largest": sorted(free), "smallest": sorted(free, reverse=True)}[attack.chosen]
            drawn.update(dict.fromkeys(ordered[:size], index))
            free = [client for client in free if client not in drawn]
    return dict(sorted(drawn.items()))


def attack_error(index: int, option: str, message: str, found: str = "", *allowed: str) -> ExperimentError:
    """The error for an option of an attack.

    index: of the attack in the experiment.
    option: its name; empty for the attack itself.
    message: what is wrong.
    found: the value that was found.
    allowed: the values that are allowed.
    """
    return ExperimentError(Problem(message, option, found, allowed).below(f"attacks.{index}"))
