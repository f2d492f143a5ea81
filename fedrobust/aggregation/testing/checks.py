"""The checks of `testing.check_rule`, one for each promise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fedrobust.aggregation.base import Context, Rows, Rule, Stage
from fedrobust.aggregation.byzantine import violation
from fedrobust.aggregation.outcome import Aggregated
from fedrobust.aggregation.pipeline import Pipeline
from fedrobust.aggregation.testing import cases
from fedrobust.aggregation.testing.cases import Case, Cut, Exact, Holder, clear, context_of, play, remembered, sharded
from fedrobust.errors import ExperimentError, Problem
from fedrobust.updates.gram import Combination, Floats, Gram

LONG = 2 * 4096 + 508
"""Coordinates for more than one shard."""
TIED = {"duplicated", "with_zeros", "all_equal"}
"""Kinds with equal rows: where the order of the rows decides between equal ones, the aggregate may depend on it."""
SIZES = (1e1, 1e4, 1e9, 1e18, 1e60)
"""The sizes of an attacker's rows."""


class Checks:
    """The checks of one pipeline."""

    def __init__(
        self,
        pipeline: Pipeline,
        instances: Mapping[str, Callable[[np.random.Generator, int, int, int], Floats]],
        seed: int,
    ) -> None:
        self.pipeline, self.instances, self.seed = pipeline, instances, seed

    def run(self, shapes: Sequence[tuple[int, int, int]], claims: frozenset[str]) -> None:
        """Run all checks for the `shapes` (n, d, f), with these `claims`."""
        self.needs()
        self.bounds()
        allowed = [(n, d, f) for n, d, most in shapes if (f := self.largest(n, most)) is not None]
        fitting = [(n, d, f) for n, d, f in allowed if self.fits(n, d, f)]
        if not fitting:
            self.fail("bound", f"it admits none of the shapes (n, d, f) {list(shapes)}")
        for place, case in enumerate(self.cases(fitting)):
            results = self.play(case)
            self.results(case, results)
            self.again(case, results)
            self.parts(case, results)
            self.cuts(case, results)
            if "permutation" in claims:
                self.permutation(case, results)
            if "translation" in claims:
                self.translation(case, results)
            if "scaling" in claims:
                self.scaling(case, results, (0.125, 3.0, 1024.0)[place % 3])
        n, d, f = fitting[-1]
        self.shards(n, f)
        self.types(n, d, f)
        self.refusals(n, d, f)
        self.newcomers(n, d, f)
        self.degenerate(fitting)
        if "breakdown" in claims:
            for n, d, f in fitting[-2:]:
                self.breakdown(n, d, f)

    # What every rule promises

    def needs(self) -> None:
        """Parts that need only a sum, or norms, decide without the rest of the Gram."""
        case, rule = self.case("plain", 9, 6, 0), self.pipeline.rule
        context, held = context_of(case, 0, None), Exact(case.rounds[0], case.priors[0], {}, case.clients[0])
        for part in self.pipeline.parts:
            if not part.asks() <= {"sum", "norms"} or part.bound(9, 0) is not None:
                continue
            norms = "norms" in part.asks()
            gram = held.norms(rule.vectors(context) if isinstance(rule, Rule) else {})
            gram = gram if norms else Gram.unknown(held.prior)
            assert isinstance(part, Stage | Rule)
            decided = part.mix(gram, context) if isinstance(part, Stage) else part.combine(gram, context).weights
            if not np.isfinite(decided).all():
                told = "norms" if norms else "a sum"
                self.fail("needs", f"{part.name} says that {told} will do, and uses more of the Gram", case)

    def bounds(self) -> None:
        """Refusals are texts, and whatever is not refused can be aggregated."""
        for part in self.pipeline.parts:
            for n in range(1, 30):
                for f in range(n // 2 + 2):
                    reason = part.bound(n, f)
                    if not (reason is None or (isinstance(reason, str) and reason.strip())):
                        self.fail("bound", f"{part.name}.bound({n}, {f}) is {reason!r}, neither None nor a reason")
        for n in range(1, 8):
            for f in range((n + 1) // 2):
                case = self.case("plain", n, 6, f)
                if reason := violation(self.pipeline.parts, n, f):
                    problems = self.refused(case.rounds[0], case)
                    if reason not in [each.message for each in problems]:
                        told = "; ".join(map(str, problems)) or "nothing"
                        self.fail("bound", f"{reason}, but the pipeline says: {told}", case)
                else:
                    self.results(case, self.play(case))

    def results(self, case: Case, results: list[Aggregated]) -> None:
        """The results are finite, and of the right shape."""
        for result in results:
            figures = [("aggregate", result.aggregate, case.d), ("weights", result.weights, case.n)]
            for step in result.steps:
                figures += [(f"scores of {step.name}", step.scores, case.n)]
            for what, values, length in figures:
                if values is not None and np.shape(values) != (length,):
                    self.fail(what, f"an array {np.shape(values)} instead of ({length},)", case)
                left_out = what.startswith("scores") and bool(self.pipeline.stages)  # a stage may: NaN
                if values is not None and not left_out and not np.isfinite(values).all():
                    self.fail(what, f"not finite: {values}", case)

    def parts(self, case: Case, results: list[Aggregated]) -> None:
        """No part changes its arguments; no score draws random numbers; the weights give the aggregate."""
        number = len(results) - 1
        before = results[-2] if number else None
        context, histories = context_of(case, number, before), remembered(self.pipeline, case, number)
        held = Exact(case.rounds[number], case.priors[number], histories, case.clients[number])
        gram, mixing = self.pipeline.gram(held, context), np.eye(case.n)
        for part in self.pipeline.parts:
            copies = {name: array.copy() for name, array in _arrays(gram, context).items()}
            state = str(context.generator.bit_generator.state)
            part.scores(gram, context)
            if str(context.generator.bit_generator.state) != state:
                self.fail("scores", f"{part.name} draws random numbers for its scores", case)
            made: Any = None
            if isinstance(part, Stage):
                made = part.mix(gram, context)
                if made.shape != (part.rows(gram.n), gram.n) or not np.isfinite(made).all():
                    self.fail("mix", f"{part.name} mixes {gram.n} rows by a matrix {made.shape}:\n{made}", case)
            else:
                rule, rows = self.pipeline.rule, Rows(held, mixing, gram)
                made = rule.combine(gram, context) if isinstance(rule, Rule) else rule.decide(rows, context)
            for name, array in _arrays(gram, context).items():
                if not np.array_equal(array, copies[name], equal_nan=True):
                    self.fail("inputs", f"{part.name} changes {name}", case)
            if isinstance(part, Stage):
                gram, mixing = gram.mixed(made), made @ mixing
        if isinstance(made, Combination):
            self.combination(case, made, mixing, context, results[-1])

    def combination(self, case: Case, made: Combination, mixing: Floats, context: Context, result: Aggregated) -> None:
        """Σ weights_i u_i + Σ anchors_j v_j is the aggregate, but for the noise."""
        if np.shape(made.weights) != (len(mixing),):
            self.fail("weights", f"an array {np.shape(made.weights)} instead of ({len(mixing)},)", case)
        if not np.isfinite(made.noise) or made.noise < 0:
            self.fail("noise", f"its standard deviation is {made.noise}", case)
        rule, used = self.pipeline.rule, {name: value for name, value in made.anchors.items() if value}
        vectors = rule.vectors(context) if isinstance(rule, Rule) else {}
        if unknown := used.keys() - vectors.keys():
            self.fail("anchors", f"it uses {', '.join(sorted(unknown))}, which it does not have", case)
        total = made.weights @ mixing @ case.rounds[context.round]
        for name, value in used.items():
            total = total + value * vectors[name]
        if made.noise == 0.0:
            self.same("weights do not make the aggregate", case, result.aggregate, total, 1e-7)

    def again(self, case: Case, results: list[Aggregated]) -> None:
        """The same bits a second time."""
        for first, second in zip(results, self.play(case), strict=True):
            if not np.array_equal(first.aggregate, second.aggregate):
                self.fail("same bits", f"a second call differs by {_gap(first.aggregate, second.aggregate):.2g}", case)

    def cuts(self, case: Case, results: list[Aggregated]) -> None:
        """The cuts of the columns change nothing but roundings, and all that is sent to the columns' holders can be
        pickled.
        """
        found = self.play(case, Cut)
        self.same("depends on where the columns are cut", case, _last(found), _last(results), 1e-7)

    def shards(self, n: int, f: int) -> None:
        """The same bits from columns in several shards."""
        case = self.case("plain", n, LONG, f)
        whole, split = _last(self.play(case, clear)), _last(self.play(case, sharded))
        if not np.array_equal(whole, split):
            self.fail("shards", f"the aggregate from shards differs by {_gap(whole, split):.2g}", case)

    def types(self, n: int, d: int, f: int) -> None:
        """float32, float64 and bfloat16 agree, arrays and tensors too, and the input is not changed."""
        case = self.case("plain", n, d, f)
        rows = case.rounds[0].astype(np.float32)
        single, double = self.aggregate(rows, case), self.aggregate(rows.astype(np.float64), case)
        self.same("float32 and float64 differ", case, single, double, 1e-4)
        if find_spec("torch"):
            self.tensors(rows, case, single)
        if not np.array_equal(rows, case.rounds[0].astype(np.float32)):
            self.fail("inputs", "the rows are changed", case)

    def tensors(self, rows: NDArray[np.float32], case: Case, single: NDArray[Any]) -> None:
        """The same for torch tensors."""
        import torch

        tensor = torch.from_numpy(rows.copy())
        if not np.array_equal(self.aggregate(tensor, case).numpy(), single):
            self.fail("types", "a tensor gives another aggregate than an array", case)
        if not np.array_equal(tensor.numpy(), rows):
            self.fail("inputs", "the rows are changed", case)
        short = tensor.bfloat16()
        if not torch.equal(self.aggregate(short, case), self.aggregate(short.float(), case).bfloat16()):
            self.fail("types", "bfloat16 gives another aggregate than the same numbers in float32", case)

    def refusals(self, n: int, d: int, f: int) -> None:
        """A row that is not finite is named."""
        case = self.case("plain", n, d, f)
        for wrong in (np.nan, np.inf):
            rows = case.rounds[0].copy()
            rows[n // 2, d - 1] = wrong
            if f"row {n // 2}" not in [each.found for each in self.refused(rows, case)]:
                self.fail("not finite", f"a row with {wrong} is not refused", case)

    def newcomers(self, n: int, d: int, f: int) -> None:
        """Clients who come and go are no problem for a rule that remembers clients."""
        case = self.case("plain", n, d, f)
        ids = tuple(np.arange(2 * number, 2 * number + n, dtype=np.int64) for number in range(len(case.rounds)))
        case = replace(case, clients=ids, kind="plain, with newcomers")
        self.results(case, self.play(case))

    def degenerate(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """No NaN, no warning, no error, whatever the rows are."""
        for n, d, f in [(1, 6, 0), (2, 6, 0), (3, 6, 0), *shapes[-2:]]:
            if violation(self.pipeline.parts, n, f) is not None:
                continue
            rng = np.random.default_rng([self.seed, n])
            rows, one, place = rng.standard_normal((n, d)), rng.standard_normal(d), np.arange(n)[:, None]
            kinds = {
                "all zero": 0.0 * rows,
                "two opposite groups": np.where(place < n - f, one, -one),
                "alternating signs": np.where(place % 2 == 0, one, -one),
                "tiny": 1e-30 * rows,
                "large": 1e12 * rows,
                "on a line": place * one,
                "one not zero": np.where(place == 0, one, 0.0),
            }
            for kind, given in kinds.items():
                case = Case.of(kind, [given] * 3, f, self.seed)
                self.results(case, self.play(case))
            silent = replace(self.case("plain", n, d, f), root=np.zeros(d), kind="plain, root zero")
            self.results(silent, self.play(silent))

    # What a rule claims

    def permutation(self, case: Case, results: list[Aggregated]) -> None:
        """The order of the rows changes nothing, unless it decides between equal rows."""
        moved, orders = case.permuted(np.random.default_rng(self.seed))
        try:
            for result, other, order in zip(results, self.play(moved), orders, strict=False):
                self.same("not equivariant under permutation", case, other.aggregate, result.aggregate, 1e-6)
                for step, again in zip(result.steps, other.steps, strict=True):
                    if step.scores is not None and again.scores is not None:
                        promise = f"the scores of {step.name} are not equivariant under permutation"
                        self.same(promise, case, again.scores, step.scores[order], 1e-6)
        except AssertionError:
            if case.kind not in TIED or not self.tied(case, results):
                raise

    def translation(self, case: Case, results: list[Aggregated]) -> None:
        """Rows that are all moved by c move the aggregate by c."""
        shift = np.round(100.0 * np.random.default_rng(self.seed).standard_normal(case.d))
        found = self.play(case.mapped(lambda rows: rows + shift))
        self.same("not equivariant under translation", case, _last(found) - shift, _last(results), 1e-6)

    def scaling(self, case: Case, results: list[Aggregated], scale: float) -> None:
        """Rows that are all scaled scale the aggregate."""
        found = self.play(case.mapped(lambda rows: scale * rows))
        self.same(f"not equivariant under scaling by {scale}", case, _last(found) / scale, _last(results), 1e-5)

    def breakdown(self, n: int, d: int, f: int, sizes: Sequence[float] = SIZES) -> None:
        """f rows of any size and direction leave the aggregate near the others."""
        for place, (kind, attack) in enumerate(cases.ATTACKS.items()):
            for size in sizes:
                rng = np.random.default_rng([self.seed, n, d, place])
                centre, bad = rng.standard_normal(d), rng.choice(n, f, replace=False)
                rounds = [centre + rng.standard_normal((n, d)) for _ in range(3)]
                honest = np.delete(np.stack(rounds), bad, axis=1)
                for rows in rounds:
                    rows[bad] = size * attack(rng, centre, f)
                case = Case.of(f"{kind}, of size {size:.0e}", rounds, f, self.seed, root=centre)
                radius = max(float(np.linalg.norm(honest, axis=2).max()), float(np.linalg.norm(case.root)))
                most = (2 * n + np.sqrt(d)) * radius
                for result in self.play(case):
                    norm = float(np.linalg.norm(result.aggregate))
                    if not norm <= most:
                        detail = f"the aggregate has norm {norm:.2g}, the honest rows {radius:.2g} at most"
                        self.fail("breakdown", detail, case)

    # Help

    def largest(self, n: int, most: int) -> int | None:
        """The largest f ≤ most that the bounds allow."""
        allowed = [f for f in range(most + 1) if violation(self.pipeline.parts, n, f) is None]
        return max(allowed, default=None)

    def fits(self, n: int, d: int, f: int) -> bool:
        """Whether d coordinates can be layers as the rule needs them."""
        try:
            play(self.pipeline, self.case("plain", n, d, f), Exact)
        except ExperimentError as error:
            return all(each.path != "layers" for each in error.problems)
        except Exception:
            pass  # the checks report it
        return True

    def cases(self, shapes: Sequence[tuple[int, int, int]]) -> Iterator[Case]:
        """Cases of every shape and kind, some with uneven priors; but not after stages, which may make rows equal."""
        weighs = self.pipeline.rule.weighs and not self.pipeline.stages
        for n, d, f in shapes:
            for kind in self.instances:
                yield self.case(kind, n, d, f, uneven=weighs and kind in {"plain", "with_common_part"})

    def case(self, kind: str, n: int, d: int, f: int, uneven: bool = False) -> Case:
        """Three rounds of a kind of rows."""
        rng = np.random.default_rng([self.seed, n, d, f])
        return Case.of(kind, [self.instances[kind](rng, n, d, f) for _ in range(3)], f, self.seed, uneven)

    def play(self, case: Case, hold: Holder = Exact) -> list[Aggregated]:
        """The results of the rounds of `case`, in updates made by `hold`."""
        try:
            return play(self.pipeline, case, hold)
        except Exception as error:
            self.fail("runs", f"{type(error).__name__}: {error}", case, error)

    def aggregate(self, rows: Any, case: Case) -> Any:
        """The aggregate of other `rows` than the case's."""
        try:
            return self.pipeline.aggregate(rows, f=case.f, root=case.root.copy(), layers=case.layers)
        except Exception as error:
            self.fail("runs", f"{type(error).__name__}: {error}", case, error)

    def refused(self, rows: Floats, case: Case) -> tuple[Problem, ...]:
        """The problems for which the pipeline refuses `rows`; none if it does not."""
        try:
            self.pipeline.aggregate(rows, f=case.f, root=case.root.copy(), layers=case.layers)
        except ExperimentError as error:
            return error.problems
        return ()

    def tied(self, case: Case, results: list[Aggregated]) -> bool:
        """Whether the aggregate jumps when the rows of `case` change a little."""
        rng = np.random.default_rng(self.seed)
        size = max(1.0, float(np.abs(case.rounds[0]).max()))
        for step in (1e-9 * size, 1e-5 * size) * 2:
            near = self.play(case.mapped(partial(_shaken, rng=rng, step=step)))
            if _gap(_last(near), _last(results)) > 1e3 * step:
                return True
        return False

    def same(self, promise: str, case: Case, found: Any, expected: Any, tolerance: float) -> None:
        """Check that two arrays are equal up to `tolerance`, relative to the largest figure."""
        gap, scale = _gap(found, expected), max(1.0, float(np.nanmax(np.abs(expected))))
        if not gap <= tolerance * scale:
            self.fail(promise, f"the difference is {gap:.2g}", case)

    def fail(self, promise: str, detail: str, case: Case | None = None, cause: Exception | None = None) -> NoReturn:
        """Raise an `AssertionError` with the promise, the detail, the case and the cause."""
        names = " + ".join(part.name for part in self.pipeline.parts)
        raise AssertionError(f"{names}: {promise}: {detail}" + (f" ({case})" if case else "")) from cause


def _shaken(rows: Floats, rng: np.random.Generator, step: float) -> Floats:
    return rows + step * rng.standard_normal(rows.shape)


def _last(results: list[Aggregated]) -> Floats:
    return results[-1].aggregate.astype(np.float64, copy=False)


def _gap(found: Any, expected: Any) -> float:
    """The largest difference; NaN in the same places counts as none."""
    difference = np.abs(np.asarray(found) - np.asarray(expected))
    both = np.isnan(found) & np.isnan(expected)
    return float(np.where(both, 0.0, difference).max())


def _arrays(gram: Gram, context: Context) -> dict[str, Any]:
    """Every array that a part is shown."""
    found: dict[str, Any] = {"gram.matrix": gram.matrix, "gram.prior": gram.prior}
    found |= {f"gram.anchors['{name}']": anchor.products for name, anchor in gram.anchors.items()}
    for name, history in gram.histories.items():
        found |= {f"gram.histories['{name}'].matrix": history.matrix, f"gram.histories['{name}'].cross": history.cross}
    if gram.centred is not None:
        found |= {"gram.centred.products": gram.centred.products, "gram.centred.share": gram.centred.share}
    for name in ("clients", "previous", "step", "root"):
        if (array := getattr(context, name)) is not None:
            found[f"context.{name}"] = array
    return found | {f"context.state['{name}']": array for name, array in context.state.items()}
