"""What a defence asks of the updates of a round: protocols that hide updates open that, and no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Opens = Literal["sum", "norms", "gram"]
"""What servers of secret shares open of the updates' products: none; each update's with itself; all."""


@dataclass(frozen=True)
class Demand:
    """What a part of a defence, or all of it, asks of the updates.

    needs: what they must reveal, of "sum", "norms", "gram", "rows".
    vectors: number of public vectors that each update is multiplied by in a round.
    histories: those of the clients' rows; see `Updates.remembered`.
    """

    needs: frozenset[str] = frozenset({"sum"})
    vectors: int = 0
    histories: tuple[str, ...] = ()

    def __or__(self, other: Demand) -> Demand:
        """What both ask."""
        histories = tuple(dict.fromkeys([*self.histories, *other.histories]))
        return Demand(self.needs | other.needs, self.vectors + other.vectors, histories)

    @property
    def opens(self) -> Opens:
        """The least that suffices, but for rows. Products with histories are only known together with all others, and
        products with public vectors only together with norms."""
        if self.needs & {"gram", "rows"} or self.histories:
            return "gram"
        return "norms" if "norms" in self.needs or self.vectors else "sum"
