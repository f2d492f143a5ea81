"""What colluders and the Gram matrix tell of an honest hospital's update: the tables of docs/secrecy.md.

Hospitals train as in experiments/secure.yaml, all honestly, in one process. The coordinator holds what `shares` and
`replicated` open for it; colluders tell it their updates. It could compute every figure, but for the truth beside it.

    OMP_NUM_THREADS=1 python benchmarks/leakage.py --data idc_breast_48.npz     minutes
    OMP_NUM_THREADS=1 python benchmarks/leakage.py --quick                      generated patches, nothing to conclude
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr

import fedrobust
from fedrobust.aggregation.protocol import FORGETTING
from fedrobust.federation.clients import ClientHost, Layout
from fedrobust.federation.coordinator import Coordinator
from fedrobust.runner import hospitals_of
from fedrobust.secure.grouping import draw_groups
from fedrobust.secure.local import LocalParties
from fedrobust.secure.messages import run_id
from fedrobust.secure.opened import Opened
from fedrobust.secure.ring import FRACTION, encode

FILE = Path(__file__).parent.parent / "experiments" / "secure.yaml"
CLIP = fedrobust.load(FILE).privacy.clip
COLLUDERS, SPANS, DRAWS = (0, 1, 5, 10, 15), (1, 10, 40), 10
OTHERWISE = {
    "4 batches, cross-entropy": ["learning.local.loss=cross_entropy"],
    "1 epoch, logit-adjusted": ["learning.local.steps=null", "learning.local.epochs=1"],
}


class Training(NamedTuple):
    """updates: (rounds, n, d), clipped; weights: (rounds, n) of the aggregates; labels: (n, classes) patch counts."""

    updates: np.ndarray
    weights: np.ndarray
    labels: np.ndarray


def trained(overrides: Sequence[str]) -> Training:
    """The hospitals' updates under the experiment's defence."""
    experiment = fedrobust.load(FILE, ["attacks=[]", "privacy=clear", *overrides])
    hospitals, everybody = hospitals_of(experiment), list(range(experiment.federation.clients))
    own, test = tuple(hospitals.training(client) for client in everybody), hospitals.indices["test"]
    host, coordinator, layout = ClientHost(1, "cpu"), Coordinator(), Layout(own, test, test, len(hospitals.label_names))
    d = host.setup(experiment, layout, hospitals.images, hospitals.labels)
    weights, states, updates, used = host.initial_weights().copy(), {}, [], []
    coordinator.setup(experiment, np.array([len(each) for each in own]), weights, {}, host.layers())
    for round in range(1, experiment.federation.rounds + 1):
        block, _, after = host.train(round, everybody, [], weights, states, everybody, None, [slice(0, d)])
        states |= after.states
        block *= CLIP / np.maximum(np.linalg.norm(block, axis=1), CLIP)[:, None]
        record, weights, _ = coordinator.aggregate(round, [everybody], [], None, block)
        updates.append(block.astype(np.float64))
        used.append([record["weights"][client] for client in everybody])
    return Training(np.array(updates), np.array(used), hospitals.label_counts())


def figures(guess: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(2, m): relative residuals and cosines of guesses (m, d), but for rows that are zero."""
    guess, truth = (rows[truth.any(axis=1)] for rows in (guess, truth))
    norms, beside = np.linalg.norm(truth, axis=1), np.maximum(np.linalg.norm(guess, axis=1), 1e-12)
    return np.stack([np.linalg.norm(guess - truth, axis=1) / norms, (guess * truth).sum(axis=1) / norms / beside])


def summary(parts: Sequence[np.ndarray]) -> str:
    """Cells: the median residual, in brackets the lowest tenth, and the median cosine."""
    residuals, cosines = np.concatenate(parts, axis=1)
    return f"{np.median(residuals):.2f} ({np.quantile(residuals, 0.1):.2f}) | {np.median(cosines):.2f}"


def spans(rounds: int) -> dict[int, list[slice]]:
    """The lengths that fit, each with its spans: one after the other, single rounds five apart."""
    fit = sorted({min(r, rounds) for r in SPANS})
    return {r: [slice(first, first + r) for first in range(0, rounds - r + 1, max(r, 5))] for r in fit}


def projections(found: Training, colluders: np.ndarray, victims: np.ndarray) -> np.ndarray:
    """(rounds, victims, d): each update's projection on all that the coordinator knows, by opened products alone.

    It knows the colluders' updates, their histories "average" (here no update is shortened in them), and the aggregate.
    """
    average, read = np.zeros_like(found.updates[0]), []
    for updates, weights in zip(found.updates, found.weights, strict=True):
        known = np.vstack([updates[colluders], average[colluders], weights @ updates])
        inverse = np.linalg.pinv(known @ known.T, rcond=1e-10, hermitian=True)
        read.append((updates[victims] @ known.T) @ inverse @ known)
        average = FORGETTING * average + (1 - FORGETTING) * updates
    return np.array(read)


def told(trainings: Sequence[Training]) -> None:
    """Table: colluders tell what they trained."""
    print("\n| colluders | rounds | residual | cosine | their mean: residual | cosine |\n|---|---|---|---|---|---|")
    rounds, n = trainings[0].weights.shape
    for count in COLLUDERS:
        read, guessed = ({r: list[np.ndarray]() for r in spans(rounds)} for _ in range(2))
        for number, draw in np.ndindex(len(trainings), DRAWS if count else 1):
            found = trainings[number]
            colluders, victims = np.split(np.random.default_rng([number, draw]).permutation(n), [count])
            projected = projections(found, colluders, victims)
            for r, of in ((r, of) for r, each in spans(rounds).items() for of in each):
                truth = found.updates[of, victims].mean(axis=0)
                read[r].append(figures(projected[of].mean(axis=0), truth))
                guess = found.updates[of, colluders].mean(axis=0).sum(axis=0) / max(count, 1)
                guessed[r].append(figures(np.tile(guess, (len(victims), 1)), truth))
        for r in spans(rounds):
            print(f"| {count} | {r} | {summary(read[r])} | {summary(guessed[r])} |")


def chosen(found: Training, colluders: int = 15) -> None:
    """Table: colluders send words that they have chosen, the last kind three coordinates at once; the unit is C."""
    round, d, draw = len(found.updates) // 2, found.updates.shape[2], np.random.default_rng(0)
    honest, (first, *rest) = found.updates[round, :-colluders], draw.choice(d, (4, colluders), replace=False)
    print(f"\n{colluders} colluders, {len(honest)} honest hospitals, d = {d}, the updates of round {round + 1}:\n")
    print("| each colluder sends | numbers read of each update | median size | largest error |\n|---|---|---|---|")
    units = {"a coordinate": np.eye(d)[first], "a random direction": draw.standard_normal((colluders, d))}
    kinds = {name: np.stack([encode(row * 1e6, 1.0) for row in rows]) for name, rows in units.items()}
    several = kinds["1, 2^21, 2^42 at three coordinates"] = np.zeros((colluders, d), dtype=np.int64)
    several[range(colluders), rest] = [[1], [1 << 21], [1 << 42]]
    for name, sent in kinds.items():
        words = np.stack([*(encode(row, CLIP) for row in honest), *sent])
        parties = LocalParties("shares", run_id("leakage"), d, np.random.default_rng(round).bytes)
        parties.receive(1, {client: parties.sent(row, 1, client) for client, row in enumerate(words)})
        products = Opened(parties, d, CLIP)._round.stack[:-colluders, -colluders:]
        if name in units:
            read, truth = products / 4.0**FRACTION, honest / CLIP @ (sent / 2.0**FRACTION).T
            print(f"| {name} | {colluders} | {np.median(np.abs(truth)):.0e} | {np.abs(read - truth).max():.0e} |")
            continue
        right = []
        for own in rest:
            digits = (products + (1 << 20)) % (1 << 21) - (1 << 20)
            products = (products - digits) >> 21
            right.append(digits == words[:-colluders, own])
        print(f"| {name} | {3 * colluders} | | none, to all 30 bits, in {np.mean(right):.0%} of them |")


def correlations(found: Training, r: int) -> np.ndarray:
    """|rank correlation| over the hospitals of what r rounds of G show with what they hold."""
    updates, patches = found.updates[:r], found.labels.sum(axis=1)
    share, norms = found.labels[:, 1:].sum(axis=1) / patches, np.maximum(np.linalg.norm(updates, axis=2), 1e-12)
    units = updates / norms[:, :, None]
    cosines = (units @ units.swapaxes(1, 2)).mean(axis=0)
    centring = np.eye(len(cosines)) - 1 / len(cosines)
    main = np.linalg.eigh(centring @ cosines @ centring)[1][:, -1]
    bias = (updates[:, :, -1] - updates[:, :, -2]).mean(axis=0)  # of the two classes: an update's last coordinates
    pairs = ((norms.mean(axis=0), np.abs(share - 0.5)), (main, share), (norms.mean(axis=0), patches), (bias, share))
    return np.abs([spearmanr(seen, hidden).statistic for seen, hidden in pairs])


def grouped(trainings: Sequence[Training], size: int = 4) -> None:
    """Table: each hospital's mean update over rounds, by least squares from the means of random groups."""
    print("\n| rounds | residual | cosine |\n|---|---|---|")
    rounds, n = trainings[0].weights.shape
    drawn = [draw_groups(range(n), size, 0, round) for round in range(rounds)]
    seats = np.array([[[(c in group) / len(group) for c in range(n)] for group in groups] for groups in drawn])
    for r, each in spans(rounds).items():
        parts = []
        for found, of in ((found, of) for found in trainings for of in each):
            means = (seats[of] @ found.updates[of]).reshape(-1, found.updates.shape[2])
            solved = np.linalg.lstsq(seats[of].reshape(-1, n), means, rcond=None)[0]
            parts.append(figures(solved, found.updates[of].mean(axis=0)))
        print(f"| {r} | {summary(parts)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--data", type=Path, help="the IDC patches, idc_breast_48.npz")
    either.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    source = "data.source={name: histology, size: 24}" if options.quick else f"data.source.path={options.data}"
    seeds, long, short = ([1], 2, 2) if options.quick else ([1, 2, 3], 40, 10)

    def run(rounds: int, overrides: Sequence[str] = ()) -> list[Training]:
        return [trained([source, f"federation.rounds={rounds}", f"seed={seed}", *overrides]) for seed in seeds]

    told(trainings := run(long))
    chosen(trainings[0])
    grouped(trainings)
    print("\n| training | rounds | norm ~ |share − ½| | main direction ~ share | norm ~ patches | bias ~ share |")
    print("|---|---|---|---|---|---|")
    for name, overrides in {"4 batches, logit-adjusted": [], **OTHERWISE}.items():
        found = run(short, overrides) if overrides else trainings
        for r in (1, short):
            shown = np.mean([correlations(each, r) for each in found], axis=0)
            print(f"| {name} | {r} | {' | '.join(f'{figure:.2f}' for figure in shown)} |")


if __name__ == "__main__":
    main()
