"""Samplers: they choose the parameters of the next trial.

Each trial has its own generator, seeded by its number. So its parameters depend on the seed, its number and the trials
before it, but not on when a driver was started.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fedrobust.options import Options
from fedrobust.seeds import derived_seed, generator
from fedrobust.tuning.space import Choice, Number, Space, Values

if TYPE_CHECKING:
    import optuna

LARGEST_GRID = 10_000
"""Maximum number of points of a grid."""


class Sampler(Options, ABC):
    """Chooses the parameters of the next trial."""

    name: str

    def refusal(self, space: Space, objectives: int) -> str | None:
        """Return why it cannot search `space`, or for so many `objectives`; None if it can."""
        return None

    def most(self, space: Space) -> int | None:
        """Return how many different trials there can be; None if there is no limit."""
        return None

    def certain(self, before: int) -> bool:
        """Return whether a batch of trials is the same whatever the outcomes of the `before` trials before it are."""
        return False

    @abstractmethod
    def build(self, seed: int, number: int, space: Space) -> optuna.samplers.BaseSampler:
        """Return Optuna's sampler for the trial `number` of a sweep with that `seed`."""


class Tpe(Sampler):
    """Tree-structured Parzen estimator: it compares the density of the good trials with that of the others.

    Bergstra, Bardenet, Bengio and Kégl, "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011. The next point is
    where ℓ(x) / g(x) is largest among `candidates` draws from ℓ, the density of the good trials; g is that of the
    others. Multivariate for one objective. Trials that are still running count as bad, so that a batch spreads out.
    """

    name: Literal["tpe"] = "tpe"
    startup: int = Field(default=10, ge=1)
    """Trials drawn at random before the first estimate."""
    candidates: int = Field(default=24, ge=1, le=100_000)
    """Draws among which the best is chosen."""

    def certain(self, before: int) -> bool:
        return before < self.startup

    def build(self, seed: int, number: int, space: Space) -> optuna.samplers.BaseSampler:
        from optuna.samplers import TPESampler

        return TPESampler(
            n_startup_trials=self.startup,
            n_ei_candidates=self.candidates,
            seed=_seed(seed, number),
        )


class CmaEs(Sampler):
    """CMA-ES: a normal distribution that moves, stretches and turns towards what is good; for numbers only.

    Hansen and Ostermeier, "Completely Derandomized Self-Adaptation in Evolution Strategies", Evolutionary Computation
    9(2), 2001.
    """

    name: Literal["cma_es"] = "cma_es"
    population: int | None = Field(default=None, ge=5, le=10_000)
    """Trials of a generation; by default 4 + ⌊3 ln d⌋ for d searched numbers."""

    def refusal(self, space: Space, objectives: int) -> str | None:
        if objectives > 1:
            return "has one objective only; use tpe, nsga_ii, qmc, grid or random"
        if choices := [name for name, each in space.searched.items() if isinstance(each, Choice)]:
            return f"searches numbers only, and {choices[0]} is a choice; use tpe, nsga_ii, qmc, grid or random"
        return None

    def build(self, seed: int, number: int, space: Space) -> optuna.samplers.BaseSampler:
        from optuna.samplers import CmaEsSampler

        return CmaEsSampler(seed=_seed(seed, number), popsize=self.population, warn_independent_sampling=False)


class Qmc(Sampler):
    """Scrambled Sobol points: they fill the space evenly, whatever the results are.

    Sobol, "On the distribution of points in a cube and the approximate evaluation of integrals", 1967; scrambled as in
    Owen, "Randomly permuted (t,m,s)-nets and (t,s)-sequences", 1995. A number of trials that is a power of two is best.
    """

    name: Literal["qmc"] = "qmc"

    def certain(self, before: int) -> bool:
        return True

    def build(self, seed: int, number: int, space: Space) -> optuna.samplers.BaseSampler:
        from scipy.stats.qmc import Sobol

        names = list(space.searched)
        engine = Sobol(len(names), scramble=True, seed=generator(seed, "sweep", "sobol"))
        if number:
            engine.fast_forward(number)
        shares = dict(zip(names, engine.random(1)[0].tolist(), strict=True))
        return _given(lambda: space.at(shares), space)


class NsgaII(Sampler):
    """NSGA-II: generations of trials; the next one is bred from the trials that no other beats in all objectives.

    Deb, Pratap, Agarwal and Meyarivan, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", IEEE
    Transactions on Evolutionary Computation 6(2), 2002.
    """

    name: Literal["nsga_ii"] = "nsga_ii"
    population: int = Field(default=16, ge=2, le=10_000)
    """Trials of a generation."""
    crossover: float = Field(default=0.9, ge=0, le=1)
    """Probability that a trial has two parents."""
    mutation: float | None = Field(default=None, ge=0, le=1)
    """Probability that a parameter is drawn anew; by default one parameter of a trial on average."""

    def build(self, seed: int, number: int, space: Space) -> optuna.samplers.BaseSampler:
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(
            population_size=self.population,
            crossover_prob=self.crossover,
            mutation_prob=self.mutation,
            seed=_seed(seed, number),
        )


class Grid(Sampler):
    """Every combination of all values once, in an order drawn by the seed; choices not taken make no combinations."""

    name: Literal["grid"] = "grid"

    def refusal(self, space: Space, objectives: int) -> str | None:
        if endless := space.endless():
            found = space.searched[endless[0]]
            remedy = "list values as a choice"
            if isinstance(found, Number) and not found.log:
                remedy = f"give it a step, or {remedy}"
            return f"tries all values, and {endless[0]} has no end of them; {remedy}"
        if space.size > LARGEST_GRID:
            return f"has {space.size} points here, at most {LARGEST_GRID} are allowed; use larger steps or fewer values"
        return None

    def most(self, space: Space) -> int | None:
        return space.size

    def certain(self, before: int) -> bool:
        return True

    def build(self, seed: int, number: int, space: Space) -> optuna.samplers.BaseSampler:
        points = space.points()
        order = generator(seed, "sweep", "grid").permutation(len(points))
        return _given(lambda: points[order[number]], space)


class Random(Sampler):
    """Independent draws, uniform on the scale of each range: the baseline for every search.

    Bergstra and Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 13, 2012.
    """

    name: Literal["random"] = "random"

    def certain(self, before: int) -> bool:
        return True

    def build(self, seed: int, number: int, space: Space) -> optuna.samplers.BaseSampler:
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=_seed(seed, number))


def _seed(seed: int, number: int) -> int:
    """Return a seed of 32 bits, which Optuna's generators need."""
    return derived_seed(seed, "sweep", "trial", number) % 2**32


def _given(point: Callable[[], Values], space: Space) -> optuna.samplers.BaseSampler:
    """Return a sampler of one trial whose parameters are given, by name."""
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    class Given(BaseSampler):
        def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
            return {name: space.searched[name].distribution() for name in point()}

        def sample_relative(
            self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
        ) -> Values:
            return point()

        def sample_independent(
            self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
        ) -> None:
            raise AssertionError(f"{param_name} is not among the parameters of the trial")

    return Given()
