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
from fedrobust.federation.clients import ClientHost, Layout
from fedrobust.federation.coordinator import Coordinator
from fedrobust.federation.root_model import RootModel
from fedrobust.preparation import hospitals_of
from fedrobust.secure.local import LocalParties
from fedrobust.secure.masked_updates import draw_groups
from fedrobust.secure.messages import run_id
from fedrobust.secure.ring import FRACTION, encode
from fedrobust.secure.shared_updates import SharedUpdates
from fedrobust.secure.sharing import SKETCH
from fedrobust.secure.sketch import MASK_BITS, PROJECTIONS, projected, sketched
from fedrobust.trust.label_mix import cone_cosines
from fedrobust.updates.interface import FORGETTING

FILE = Path(__file__).parent.parent / "experiments" / "secure.yaml"
CLIP = fedrobust.load(FILE).privacy.clip
COLLUDERS, SPANS, DRAWS = (0, 1, 5, 10, 15), (1, 10, 40), 10
SKETCHES = (None, SKETCH, 128)
RIDGES = (0.0, 0.01, 0.03, 0.1, 0.3)
OTHERWISE = {
    "4 batches, cross-entropy": ["learning.local.loss=cross_entropy"],
    "1 epoch, logit-adjusted": ["learning.local.steps=null", "learning.local.epochs=1"],
}

ASIDE = "data.root={patches: 100, set_aside: 0.05}"
"""The coordinator's own patches, for its gradients."""

Shown = tuple[np.ndarray, np.ndarray]
"""Of a round: updates and histories (2n, d), and what is opened of their products (2n, 2n)."""


class Training(NamedTuple):
    """updates: (rounds, n, d), clipped; weights: (rounds, n) of the aggregates; labels: (n, classes) patch counts;
    descents: (rounds, labels, d) of the coordinator's own patches, if it has any."""

    updates: np.ndarray
    weights: np.ndarray
    labels: np.ndarray
    descents: np.ndarray


def trained(overrides: Sequence[str]) -> Training:
    """The hospitals' updates under the experiment's defence."""
    experiment = fedrobust.load(FILE, ["attacks=[]", "privacy=clear", *overrides])
    hospitals, everybody = hospitals_of(experiment), list(range(experiment.federation.clients))
    own, test = tuple(hospitals.training(client) for client in everybody), hospitals.indices["test"]
    host, coordinator, layout = ClientHost(1, "cpu"), Coordinator(), Layout(own, test, test, len(hospitals.label_names))
    layers = host.setup(experiment, layout, hospitals.labels, hospitals.images)
    weights, states, updates, used, descents = host.initial_weights().copy(), {}, [], [], []
    d, root, model = len(weights), experiment.data.root, None
    if root.set_aside:
        model = RootModel(experiment.learning, hospitals.root_patches(root, experiment.seed), experiment.seed, 1)
    coordinator.setup(experiment, np.array([len(each) for each in own]), weights, {}, layers)
    for round in range(1, experiment.federation.rounds + 1):
        if model is not None:
            descents.append(model.descents(weights).astype(np.float64))
        block, _, after = host.train(round, everybody, [], weights, states, everybody, None, [slice(0, d)])
        states |= after.states
        block *= CLIP / np.maximum(np.linalg.norm(block, axis=1), CLIP)[:, None]
        record, weights, _ = coordinator.aggregate(round, [everybody], [], None, block)
        updates.append(block.astype(np.float64))
        used.append([record["weights"][client] for client in everybody])
    return Training(np.array(updates), np.array(used), hospitals.label_counts(), np.array(descents))


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


def products_of(words: np.ndarray, sketch: int | None, seed: bytes) -> np.ndarray:
    """What G shows of these rows (m, d): their products, or those of their sketches, in units of C²."""
    if sketch is not None:
        words = sketched(lambda part: words[:, part].copy(), *words.shape, sketch, seed)
    rows = words * (CLIP * 2.0**-FRACTION)
    return np.asarray(rows @ rows.T)


def opened(found: Training, sketch: int | None) -> list[Shown]:
    """For each round the updates and histories "average" (2n, d), and what is opened of their products (2n, 2n).

    Here no update is shortened in its history.
    """
    average, rounds = np.zeros_like(found.updates[0]), []
    for round, updates in enumerate(found.updates):
        stack = np.vstack([updates, average])
        words = np.rint(stack * (2.0**FRACTION / CLIP)).astype(np.int64)
        rounds.append((stack, products_of(words, sketch, round.to_bytes(32, "little"))))
        average = FORGETTING * average + (1 - FORGETTING) * updates
    return rounds


def projections(
    found: Training, rounds: Sequence[Shown], colluders: np.ndarray, victims: np.ndarray, ridge: float
) -> np.ndarray:
    """(rounds, victims, d): each update as far as it is known, by opened products with all that the coordinator knows.

    It knows the colluders' updates, their histories, and the aggregate. `ridge`: how much it distrusts the products.
    """
    read, n = [], len(found.updates[0])
    for (stack, products), weights in zip(rounds, found.weights, strict=True):
        chosen = np.zeros((2 * len(colluders) + 1, 2 * n))
        chosen[range(2 * len(colluders)), [*colluders, *(n + colluders)]] = 1.0
        chosen[-1, :n] = weights
        known = chosen @ stack
        inner = known @ known.T
        inner += ridge * np.diag(np.diag(inner))
        read.append(products[victims] @ chosen.T @ np.linalg.pinv(inner, rcond=1e-10, hermitian=True) @ known)
    return np.array(read)


def told(trainings: Sequence[Training], sketch: int | None) -> None:
    """Table: colluders tell what they trained; of several ways to use blurred products, the best one."""
    print(f"\nG of {'the updates' if sketch is None else f'sketches of {sketch} columns'}:\n")
    print("| colluders | rounds | residual | cosine | their mean: residual | cosine |\n|---|---|---|---|---|---|")
    rounds, n = trainings[0].weights.shape
    shown = [opened(found, sketch) for found in trainings]
    for count in COLLUDERS:
        ridges = (0.0,) if sketch is None else RIDGES
        read = {(r, ridge): list[np.ndarray]() for r in spans(rounds) for ridge in ridges}
        guessed = {r: list[np.ndarray]() for r in spans(rounds)}
        for number, draw in np.ndindex(len(trainings), DRAWS if count else 1):
            found = trainings[number]
            colluders, victims = np.split(np.random.default_rng([number, draw]).permutation(n), [count])
            for ridge in ridges:
                projected = projections(found, shown[number], colluders, victims, ridge)
                for r, of in ((r, of) for r, each in spans(rounds).items() for of in each):
                    truth = found.updates[of, victims].mean(axis=0)
                    read[r, ridge].append(figures(projected[of].mean(axis=0), truth))
            for r, of in ((r, of) for r, each in spans(rounds).items() for of in each):
                guess = found.updates[of, colluders].mean(axis=0).sum(axis=0) / max(count, 1)
                truth = found.updates[of, victims].mean(axis=0)
                guessed[r].append(figures(np.tile(guess, (len(victims), 1)), truth))
        for r in spans(rounds):
            best = min((parts for (length, _), parts in read.items() if length == r), key=residual)
            print(f"| {count} | {r} | {summary(best)} | {summary(guessed[r]) if count else '– | –'} |", flush=True)


def residual(parts: Sequence[np.ndarray]) -> float:
    """The median of the relative residuals."""
    return float(np.median(np.concatenate(parts, axis=1)[0]))


def chosen(found: Training, sketch: int | None, colluders: int = 15) -> None:
    """Table: colluders send words that they have chosen, the last kinds several coordinates at once; the unit is C."""
    round, d, draw = len(found.updates) // 2, found.updates.shape[2], np.random.default_rng(0)
    honest, (first, *rest) = found.updates[round, :-colluders], draw.choice(d, (4, colluders), replace=False)
    what = "the updates" if sketch is None else f"sketches of {sketch} columns"
    print(f"\n{colluders} colluders, {len(honest)} honest hospitals, d = {d}, round {round + 1}, G of {what}:\n")
    print("| each colluder sends | numbers read of each update | median size | median error | largest error | named |")
    print("|---|---|---|---|---|---|")
    units = {"a coordinate": np.eye(d)[first], "a random direction": draw.standard_normal((colluders, d))}
    kinds = {name: np.stack([encode(row * 1e6, 1.0) for row in rows]) for name, rows in units.items()}
    several = {"1, 2^23 at two coordinates": [1, 1 << 23], "1, 2^21, 2^42 at three": [1, 1 << 21, 1 << 42]}
    for name, digits in several.items():
        kinds[name] = np.zeros((colluders, d), dtype=np.int64)
        for places, digit in zip(rest, digits, strict=False):
            kinds[name][range(colluders), places] = digit
    for name, sent in kinds.items():
        words = np.stack([*(encode(row, CLIP) for row in honest), *sent])
        parties = LocalParties("shares", run_id("leakage"), d, np.random.default_rng(round).bytes, sketch=sketch)
        parties.receive(1, {client: parties.sent(row, 1, client) for client, row in enumerate(words)})
        seen = SharedUpdates(parties, d, CLIP)
        named = f"{len(seen.dropped)} of {colluders}"
        if seen.dropped:
            print(f"| {name} | none: no product with them is opened | | | | {named} |")
            continue
        products = seen._round.stack[:-colluders, -colluders:]
        if name in units:
            read, truth = products / 4.0**FRACTION, honest / CLIP @ (sent / 2.0**FRACTION).T
            error = np.abs(read - truth).astype(float)
            sizes = f"{np.median(np.abs(truth)):.0e} | {np.median(error):.0e} | {error.max():.0e}"
            print(f"| {name} | {colluders} | {sizes} | {named} |")
            continue
        right, base = [], several[name][1]
        for own in rest[: len(several[name])]:
            low = (products + base // 2) % base - base // 2
            products = (products - low) // base
            right.append(low == words[:-colluders, own])
        share = f"none, to all 28 bits, in {np.mean(right):.0%} of them"
        print(f"| {name} | {len(right) * colluders} | | {share} | | {named} |")


def combined(rows: np.ndarray, servers: int, draw: np.random.Generator) -> np.ndarray:
    """(n, PROJECTIONS) in units of C: what the check of lengths opens of rows (n, d) of words."""
    both = sketched(lambda part: rows[:, part].copy(), *rows.shape, SKETCH, draw.bytes(32), twice=True)
    noise = draw.integers(-(1 << MASK_BITS), 1 << MASK_BITS, size=(servers, len(rows), PROJECTIONS)).sum(axis=0)
    return np.asarray((projected(both, draw.bytes(32)) + noise) * 2.0**-FRACTION)


def shapes(d: int = 4_000, rounds: int = 400) -> None:
    """Table: how often a peaked and a flat update of one length are told apart by the 64 combinations of a round."""
    print("\n| length, of C | two servers | three servers |\n|---|---|---|")
    draw, bins = np.random.default_rng(3), np.linspace(-8, 8, 81)
    for length in (1.0, 0.5, 0.2, 0.05):
        cells = []
        for servers in (2, 3):
            flat, peak = encode(length * draw.standard_normal(d) / np.sqrt(d), 1.0), np.zeros(d, dtype=np.int64)
            peak[7] = round(length * 2**FRACTION)
            seen = [np.vstack([combined(row[None], servers, draw) for _ in range(2 * rounds)]) for row in (flat, peak)]
            one, other = (np.histogram(each[:rounds], bins)[0] + 1.0 for each in seen)
            score = np.log(other / one)
            told = [score[np.clip(np.digitize(each[rounds:], bins) - 1, 0, 79)].sum(axis=1) > 0 for each in seen]
            cells.append(f"{(np.mean(~told[0]) + np.mean(told[1])) / 2:.0%}")
        print(f"| {length:g} | {' | '.join(cells)} |", flush=True)


def with_a_server(d: int = 2_000, rounds: int = 60) -> None:
    """Table: the cosine to which a server and the coordinator know an update that is the same in every round."""
    print("\n| length, of C | 1 round | 10 | 60 |\n|---|---|---|---|")
    draw, eye = np.random.default_rng(2), np.eye(d, dtype=np.int64)
    update = draw.standard_normal(d)
    update /= np.linalg.norm(update)
    for length in (0.9, 0.3, 0.05):
        words, normal, right, cells = encode(length * update, 1.0), np.zeros((d, d)), np.zeros(d), []
        for round in range(1, rounds + 1):
            places, numbers = draw.bytes(32), draw.bytes(32)
            known = projected(sketched(lambda part: eye[:, part].copy(), d, d, SKETCH, places, twice=True), numbers)
            seen = words @ known + draw.integers(-(1 << MASK_BITS), 1 << MASK_BITS, size=PROJECTIONS)
            normal += known @ known.T
            right += known @ (seen * 2.0**-FRACTION)
            if round in (1, 10, 60):
                ridge = (2.0 ** (MASK_BITS - FRACTION)) ** 2 / 3 / (length**2 / d)
                guess = np.linalg.solve(normal + ridge * np.eye(d), right)
                cells.append(f"{guess @ update / np.linalg.norm(guess):.2f}")
        print(f"| {length:g} | {' | '.join(cells)} |", flush=True)


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


def by_gradients(found: Training, r: int) -> np.ndarray:
    """What products with a gradient for each of two labels show: |rank correlation| over the hospitals of r rounds'
    difference of cosines with the share of a label; median cosine of round r's updates with the gradients' cone."""
    share, differences, cones = found.labels[:, 1] / found.labels.sum(axis=1), [], []
    for updates, descents in zip(found.updates[:r], found.descents[:r], strict=True):
        norms, products = np.linalg.norm(updates, axis=1), updates @ descents.T
        cosines = products / np.maximum(norms, 1e-12)[:, None] / np.linalg.norm(descents, axis=1)
        differences.append(cosines[:, 1] - cosines[:, 0])
        cones.append(np.median(cone_cosines(products, descents @ descents.T, norms)))
    return np.array([abs(spearmanr(np.mean(differences, axis=0), share).statistic), cones[-1]])


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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--data", type=Path, help="the IDC patches, idc_breast_48.npz")
    either.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    source = "data.source={name: histology, size: 24}" if options.quick else f"data.source.path={options.data}"
    seeds, long, short = ([1], 2, 2) if options.quick else ([1, 2, 3], 40, 10)

    def run(rounds: int, overrides: Sequence[str] = ()) -> list[Training]:
        return [trained([source, f"federation.rounds={rounds}", f"seed={seed}", *overrides]) for seed in seeds]

    trainings = run(long)
    for sketch in SKETCHES:
        told(trainings, sketch)
    for sketch in SKETCHES:
        chosen(trainings[0], sketch)
    shapes(rounds=20 if options.quick else 400)
    with_a_server(d=300 if options.quick else 2_000)
    grouped(trainings)
    print("\n| training | rounds | norm ~ |share − ½| | main direction ~ share | norm ~ patches | bias ~ share |")
    print("|---|---|---|---|---|---|")
    for name, overrides in {"4 batches, logit-adjusted": [], **OTHERWISE}.items():
        found = run(short, overrides) if overrides else trainings
        for r in (1, short):
            shown = np.mean([correlations(each, r) for each in found], axis=0)
            print(f"| {name} | {r} | {' | '.join(f'{figure:.2f}' for figure in shown)} |")
    print("\n| training | rounds | difference of products ~ share | cosine with the gradients |\n|---|---|---|---|")
    for name, overrides in {"4 batches, logit-adjusted": [], **OTHERWISE}.items():
        found = run(short, [*overrides, ASIDE])
        for r in (1, short):
            shown = np.mean([by_gradients(each, r) for each in found], axis=0)
            print(f"| {name} | {r} | {' | '.join(f'{figure:.2f}' for figure in shown)} |")


if __name__ == "__main__":
    main()
