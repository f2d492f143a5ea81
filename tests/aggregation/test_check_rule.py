"""`check_rule` catches rules and stages that are wrong, and says what is wrong with them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from fedrobust.aggregation import Combination, CoordinateRule, Krum, Mean, RowRule, Rule, Stage
from fedrobust.aggregation.testing import check_rule

ALL = frozenset({"permutation", "translation", "scaling", "breakdown"})


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Bad(Rule):
    """A rule for the tests: the mean, spoiled."""

    name: str = "bad"

    def combine(self, gram, context):
        return Combination(np.full(gram.n, 1.0 / gram.n))


class BadRows(RowRule):
    """A rule on rows for the tests."""

    name: str = "bad"


class ByPosition(Bad):
    """The first row."""

    def combine(self, gram, context):
        return Combination(np.eye(gram.n)[0])


class Mutates(Bad):
    """Overwrites the Gram matrix."""

    def combine(self, gram, context):
        gram.matrix[0] *= 2.0
        return super().combine(gram, context)


class MutatesRoot(Bad):
    """Overwrites the server's update."""

    def combine(self, gram, context):
        root = context.root
        root /= np.linalg.norm(root) + 1.0
        return super().combine(gram, context)


class SortsWrongly(Bad):
    """Keeps the rows that Krum would drop."""

    claims = ALL

    def combine(self, gram, context):
        scores = gram.distances_squared().sum(axis=1)
        weights = np.zeros(gram.n)
        weights[np.argsort(-scores, kind="stable")[: gram.n - context.f]] = 1.0 / (gram.n - context.f)
        return Combination(weights)


class TrimsOneSide(CoordinateRule):
    """A trimmed mean that forgets the greatest values."""

    name: str = "bad"
    claims = ALL

    def reduce(self, rows, context):
        return np.sort(rows, axis=0)[context.f :].mean(axis=0)


class FalseBreakdown(Bad):
    """A mean that claims to be robust."""

    claims = ALL


class RobustToOneSizeOnly(Bad):
    """Drops rows of more than a thousand median norms, keeps those below."""

    claims = frozenset({"breakdown"})

    def combine(self, gram, context):
        kept = gram.norms() <= 1e5 * np.median(gram.norms())
        return Combination(kept / kept.sum())


class FalseTranslation(Bad):
    """The mean of the n − f smallest rows."""

    claims = ALL

    def combine(self, gram, context):
        kept = np.argsort(gram.norms(), kind="stable")[: gram.n - context.f]
        weights = np.zeros(gram.n)
        weights[kept] = 1.0 / len(kept)
        return Combination(weights)


class FalseScaling(Bad):
    """Rows clipped to norm 1."""

    claims = frozenset({"permutation", "scaling"})

    def combine(self, gram, context):
        return Combination(1.0 / np.maximum(1.0, gram.norms()) / gram.n)


class DividesByZero(Bad):
    """The mean direction, NaN for zero rows."""

    def combine(self, gram, context):
        with np.errstate(all="ignore"):
            return Combination(1.0 / gram.norms() / gram.n)


class Warns(Bad):
    """As above, and lets NumPy say so."""

    def combine(self, gram, context):
        return Combination(np.nan_to_num(1.0 / gram.norms()) / gram.n)


class Raises(Bad):
    """Cannot do with three rows."""

    def combine(self, gram, context):
        if gram.n == 3:
            raise ValueError("too few")
        return super().combine(gram, context)


class Forgetful(Bad):
    """Another answer each time."""

    def combine(self, gram, context):
        return Combination(np.random.rand(gram.n))  # noqa: NPY002


class DrawsForScores(Bad):
    """Spends the rule's random numbers on its scores."""

    def scores(self, gram, context):
        return context.generator.random(gram.n)


class ScoresByPosition(Bad):
    """Judges rows by where they stand."""

    def scores(self, gram, context):
        return np.arange(gram.n, dtype=float)


class TooManyWeights(Bad):
    """A weight more than rows."""

    def combine(self, gram, context):
        return Combination(np.full(gram.n + 1, 1.0 / gram.n))


class NegativeNoise(Bad):
    """Noise of a negative size."""

    def combine(self, gram, context):
        return Combination(gram.prior, noise=-1.0)


class UnknownAnchor(Bad):
    """Uses a root that it did not ask for."""

    def combine(self, gram, context):
        return Combination(gram.prior, anchors={"root": 0.5})


class MoreThanASum(Bad):
    """Says that a sum will do."""

    needs = frozenset({"sum"})

    def combine(self, gram, context):
        return Combination(gram.norms() / max(gram.norms().sum(), 1e-300))


class SilentBound(Bad):
    """Refuses without a word."""

    def bound(self, n, f):
        return "" if n < 5 else None


class RemembersRows(Bad):
    """Keeps last round's norms by row, not by client."""

    def combine(self, gram, context):
        last = context.state.get("norms", np.ones(gram.n))
        weights = last / last.sum() if last.sum() > 0 else np.full(gram.n, 1.0 / gram.n)
        return Combination(weights, state={"norms": gram.norms()})


class Strangers(Bad):
    """Knows only the clients of the first round."""

    per_client = True

    def combine(self, gram, context):
        known = context.state.get("known", np.ones(gram.n))
        ids = np.arange(gram.n) if context.clients is None else context.clients
        return Combination(known[ids] / gram.n, state={"known": known})


class ByChunk(CoordinateRule):
    """Scales each chunk of columns by itself."""

    name: str = "bad"

    def reduce(self, rows, context):
        return rows.mean(axis=0) / (1.0 + np.linalg.norm(rows))


class ByPlaceInChunk(BadRows):
    """Treats the first column of each chunk otherwise."""

    def decide(self, rows, context):
        return first_column_zero


def first_column_zero(rows, columns):
    mean = rows.mean(axis=0)
    mean[0] = 0.0
    return mean


class SumsNorms(BadRows):
    """Adds up the chunks' norms instead of their squares."""

    def decide(self, rows, context):
        norms = rows.total(norms_of)
        return Combination((1.0 + norms) / (1.0 + norms).sum())


def norms_of(rows, columns):
    return np.linalg.norm(rows.astype(np.float64), axis=1)


class KeepsAChunk(BadRows):
    """Looks at the first column after its chunk was overwritten."""

    def decide(self, rows, context):
        kept = []
        rows.total(partial(keep, kept=kept))
        first = np.abs(kept[0][:, 0].astype(np.float64)) + 1.0
        return Combination(first / first.sum())


def keep(rows, columns, kept):
    kept.append(rows)


class CannotBeSent(BadRows):
    """A reduction that does not pickle."""

    def decide(self, rows, context):
        return lambda chunk, columns: chunk.mean(axis=0)


class ByType(CoordinateRule):
    """Another aggregate in single precision."""

    name: str = "bad"

    def reduce(self, rows, context):
        return rows.mean(axis=0) * (0.9 if rows.dtype == np.float32 else 1.0)


class BadStage(Stage):
    """Overwrites the Gram matrix that the rule sees next."""

    name: str = "bad_stage"

    def mix(self, gram, context):
        np.fill_diagonal(gram.matrix, 0.0)
        return np.eye(gram.n)


class WrongRows(Stage):
    """Drops a row without saying so."""

    name: str = "wrong_rows"

    def mix(self, gram, context):
        return np.eye(gram.n)[1:] if gram.n > 1 else np.eye(1)


BAD = [
    (ByPosition, "not equivariant under permutation"),
    (Mutates, r"inputs: bad changes gram\.matrix"),
    (MutatesRoot, r"inputs: bad changes context\.root"),
    (SortsWrongly, "breakdown: the aggregate has norm"),
    (TrimsOneSide, "breakdown: the aggregate has norm"),
    (FalseBreakdown, "breakdown: the aggregate has norm"),
    (RobustToOneSizeOnly, r"breakdown.*size 1e\+04"),
    (FalseTranslation, "not equivariant under translation"),
    (FalseScaling, "not equivariant under scaling by 0.125"),
    (DividesByZero, "not finite"),
    (Warns, "runs: RuntimeWarning: divide by zero"),
    (Raises, r"runs: ValueError: too few \(kind plain, n = 3"),
    (Forgetful, "same bits"),
    (DrawsForScores, "draws random numbers for its scores"),
    (ScoresByPosition, "scores of bad are not equivariant"),
    (TooManyWeights, "runs|weights"),
    (NegativeNoise, "runs: ValueError|noise"),
    (UnknownAnchor, "runs: KeyError|anchors"),
    (MoreThanASum, "a sum will do"),
    (SilentBound, "neither None nor a reason"),
    (RemembersRows, "not equivariant under permutation"),
    (Strangers, "IndexError.*newcomers"),
    (ByChunk, "depends on where the columns are cut"),
    (ByPlaceInChunk, "depends on where the columns are cut"),
    (SumsNorms, "depends on where the columns are cut"),
    (KeepsAChunk, "runs|depends on where the columns are cut"),
    (CannotBeSent, "runs: .*[Pp]ickl"),
    (ByType, "float32 and float64 differ"),
]


@pytest.mark.parametrize(("rule", "message"), BAD, ids=[rule.__name__ for rule, _ in BAD])
def test_a_bad_rule_is_caught(rule, message):
    with pytest.raises(AssertionError, match=message) as error:
        check_rule(rule())
    assert str(error.value).startswith("bad: ")


def test_a_good_rule_of_the_same_make_passes():
    check_rule(Bad())


def test_a_bad_stage_is_caught():
    with pytest.raises(AssertionError, match=r"gram\.matrix"):
        check_rule(Krum(), stages=[BadStage()])
    with pytest.raises(AssertionError, match="mix: wrong_rows"):
        check_rule(Mean(), stages=[WrongRows()])


def test_shapes_that_no_bound_admits_are_an_error():
    with pytest.raises(AssertionError, match="shapes"):
        check_rule(Krum(), shapes=[(2, 5, 0)])
