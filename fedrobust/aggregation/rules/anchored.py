"""Rules that trust an update which the server trained on its own clean data: the anchor "root", g₀."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedrobust.aggregation.base import Context, Rule
from fedrobust.aggregation.numerics import TIE, cosines, lengths
from fedrobust.updates.gram import Combination, Floats, Gram


class RootRule(Rule):
    """What the rules of this module have in common: rows scaled to ‖g₀‖, and the cosines to g₀."""

    needs: ClassVar[frozenset[str]] = frozenset({"norms"})
    anchors: ClassVar[tuple[str, ...]] = ("root",)
    claims: ClassVar[frozenset[str]] = frozenset({"permutation", "breakdown"})

    def _cosines(self, gram: Gram) -> Floats:
        """cos(u_i, g₀) (n,); 0 for a zero row, and for all if g₀ is zero."""
        anchor, norms = gram.anchors["root"], lengths(np.diag(gram.matrix))
        return cosines(anchor.products, norms * _length(gram))

    def _scaled(self, gram: Gram, trust: Floats) -> Combination:
        """Σ trust_i (‖g₀‖ / ‖u_i‖) u_i / Σ trust_i; zero where no row is trusted."""
        norms, total = lengths(np.diag(gram.matrix)), trust.sum()
        if total == 0.0:
            return Combination(np.zeros(gram.n), notes=(f"{self.name}: no update agrees with the server's: no step",))
        scale = np.divide(_length(gram), norms, out=np.zeros(gram.n), where=norms > 0)
        return Combination(trust / total * scale)


def _length(gram: Gram) -> float:
    """‖g₀‖; 0 where its square is below the rounding error of the rows'."""
    return float(lengths(np.array([gram.anchors["root"].squared_norm]), float(np.median(np.diag(gram.matrix))))[0])


class FLTrust(RootRule):
    """Weigh each update by its cosine to the server's own, and scale it to the same norm (Cao et al., NDSS 2021).

    TS_i = ReLU(cos(u_i, g₀)), F(u) = Σ p_i TS_i (‖g₀‖ / ‖u_i‖) u_i / Σ p_i TS_i. Needs norms and the anchor "root". Any
    number of Byzantine rows: f is not used, and ‖F(u)‖ ≤ ‖g₀‖ for any rows. Prior: p, times the trust scores;
    the paper, with equal p, has none.

    If no update has a positive cosine to g₀, the paper divides by Σ TS_i = 0. Here the aggregate is zero then: the
    round makes no step. A zero row has the trust score 0.

    Limits: it is as good as the server's data. Clients with classes that the server has not seen are rejected, and
    attackers who stay within 90° of g₀ count.
    """

    name: Literal["fltrust"] = "fltrust"
    claims: ClassVar[frozenset[str]] = RootRule.claims | {"scaling"}

    def scores(self, gram: Gram, context: Context) -> Floats:
        """1 − cos(u_i, g₀)."""
        return 1.0 - self._cosines(gram)

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The trust scores, times the factors that scale the rows to the norm of g₀."""
        similar = self._cosines(gram)
        return self._scaled(gram, gram.prior * np.where(similar > TIE, similar, 0.0))


class ZenoPlusPlus(RootRule):
    """The mean of the updates that promise descent on the server's data (Zeno++: Xie et al., ICML 2020).

    v_i = u_i ‖g₀‖ / ‖u_i‖ is accepted if γ ⟨g₀, v_i⟩ − ρ ‖v_i‖² ≥ −γ ε: to first order, the descent of the server's
    loss by a step γ v_i, less a penalty on its length. F(u) = Σ p_i v_i / Σ p_i over the accepted. Needs norms and the
    anchor "root". Any number of Byzantine rows: f is not used, and ‖F(u)‖ ≤ ‖g₀‖ for any rows. Prior: the mean weighs.

    The paper is asynchronous: each candidate that is accepted makes a step by itself, and g₀ may be some steps old.
    Here candidates are the updates of one round, g₀ is of that round, and one step is the mean of the accepted. Where
    none is, the aggregate is zero: the round makes no step. A zero row cannot be scaled, and is rejected. Defaults
    are those of the authors' code for CIFAR-10: with ε = 0, it accepts a cosine to g₀ of ρ / γ = 0.01 at least.

    Limits: it is as good as the server's data; an accepted row counts in full, however small its cosine is.
    """

    name: Literal["zeno_pp"] = "zeno_pp"
    gamma: Annotated[float, Field(gt=0)] = 0.1
    """γ: the learning rate in the score."""
    rho: Annotated[float, Field(ge=0)] = 0.001
    """ρ: the penalty on a step's squared length."""
    epsilon: Annotated[float, Field(ge=0)] = 0.0
    """ε: how much ascent is allowed, in the unit of ‖g₀‖²."""

    def scores(self, gram: Gram, context: Context) -> Floats:
        """ρ ‖v_i‖² − γ ⟨g₀, v_i⟩: accepted up to γ ε. A zero row counts as orthogonal to g₀."""
        return np.asarray(_length(gram) ** 2 * (self.rho - self.gamma * self._cosines(gram)))

    def combine(self, gram: Gram, context: Context) -> Combination:
        """The priors of the accepted rows, times the factors that scale these to the norm of g₀."""
        slack = self.gamma * (self.epsilon + TIE * _length(gram) ** 2)
        nothing = lengths(np.diag(gram.matrix)) * _length(gram) == 0
        accepted = (self.scores(gram, context) <= slack) & ~nothing
        return self._scaled(gram, np.where(accepted, gram.prior, 0.0))
