"""What a sketch of the Gram matrix costs a defence: balanced accuracy by attack, defence and number of columns.

The federation of experiments/secure.yaml for 40 rounds, the mean of the last five, in one process: hospitals, adversary
and coordinator are the platform's own, and so are the servers of `shares`, with real secrets. Two runs with the same
options therefore differ, too: the column "again" repeats the exact Gram matrix, and says how much of a difference is
chance. What is finished is kept in a file of JSON lines, so the benchmark can be stopped and started again.

    OMP_NUM_THREADS=1 python benchmarks/sketches.py --data idc_breast_48.npz     about an hour on one core
    OMP_NUM_THREADS=1 python benchmarks/sketches.py --quick                      a minute, nothing to conclude
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import fedrobust
from fedrobust.data.hospitals import Hospitals
from fedrobust.experiment import Experiment
from fedrobust.federation.adversary import Adversary, Outlook
from fedrobust.federation.arrival import Arrival, Received
from fedrobust.federation.clients import ClientHost, Layout
from fedrobust.federation.coordinator import Coordinator
from fedrobust.federation.measures import evaluation_record
from fedrobust.preparation import hospitals_of
from fedrobust.secure import SharesPrivacy
from fedrobust.secure.local import LocalParties
from fedrobust.secure.messages import run_id
from fedrobust.secure.ring import encode
from fedrobust.secure.shared_updates import SharedUpdates

FILE = Path(__file__).parent.parent / "experiments" / "secure.yaml"
Metrics = Mapping[str, float]
TRUSTED, SCORED = "{acts: true, detector: consensus}", "{acts: true, detector: robust_z}"
DEFENCES = {
    "adaptive, reputation acts": ["aggregation={rule: adaptive}", f"trust={TRUSTED}"],
    "nnm + geometric_median": ["aggregation={stages: [nnm], rule: geometric_median}", "trust={detector: robust_z}"],
    "multi_krum": ["aggregation={rule: multi_krum}", "trust={detector: robust_z}"],
    "centered_clipping, robust_z acts": [
        "aggregation={rule: centered_clipping}",
        "trust={acts: true, detector: robust_z}",
    ],
}
ATTACKS = {
    "none": "[]",
    **{
        f"{name}, {fraction:.0%}": f"[{{{options}, fraction: {fraction}}}]"
        for fraction, (name, options) in product(
            (0.2, 0.4),
            {
                "sign flip × 4": "name: sign_flip, scale: 4",
                "label flip": "name: label_flip",
                "alie 1.5": "name: alie, z: 1.5",
                "ipm 0.5, noisy": "name: ipm, epsilon: 0.5, noise: 1.0",
                "min-max": "name: min_max",
                "patch": "name: patch_backdoor, target: 0",
            }.items(),
        )
    },
}
COLUMNS: dict[str, int | None] = {"exact": None, "again": None, "2048": 2048, "512": 512, "128": 128}


@dataclass(frozen=True, eq=False)
class Here(Arrival):
    """A round's shares, with all parties in this process."""

    parties: LocalParties
    privacy: SharesPrivacy
    round: int
    updates: np.ndarray

    def receive(self, ids: Sequence[Sequence[int]], weigh: Any, too_few: Any, histories: Any) -> Received:
        clients = [client for block in ids for client in block]
        rows = zip(clients, self.updates, strict=True)
        words = {client: encode(row, self.privacy.clip) for client, row in rows if np.isfinite(row).all()}
        parties = self.parties
        parties.receive(self.round, {client: parties.sent(own, self.round, client) for client, own in words.items()})
        here = np.array(parties.clients)
        self.refused.update(dict.fromkeys(sorted(set(clients) - set(here.tolist())), "not finite"))
        opened = SharedUpdates(parties, parties.d, self.privacy.clip, weigh(here), self.privacy.support)
        self.refused.update(dict.fromkeys(opened.dropped, "its update wraps around"))
        return Received(opened, np.array(opened.clients), len(opened.dropped))


def trained(experiment: Experiment, hospitals: Hospitals) -> dict[str, float]:
    """Means over the last five rounds; how many were skipped, how often an honest update was refused."""
    everybody, privacy = list(range(experiment.federation.clients)), experiment.privacy
    own, test = tuple(hospitals.training(client) for client in everybody), hospitals.indices["test"]
    host, coordinator, adversary = ClientHost(1, "cpu"), Coordinator(), Adversary()
    layout = Layout(own, test, test, len(hospitals.label_names))
    layers = host.setup(experiment, layout, hospitals.labels, hospitals.images)
    weights, states, samples = host.initial_weights().copy(), dict[int, np.ndarray](), np.array([len(o) for o in own])
    d = len(weights)
    coordinator.setup(experiment, samples, weights, {}, layers)
    adversary.setup(experiment, samples, layers)
    malicious = experiment.attackers
    crafting = sorted(c for c, index in malicious.drawn.items() if experiment.attacks[index].crafts)
    defence = experiment.defence()
    assert isinstance(privacy, SharesPrivacy)
    parties = LocalParties("shares", run_id("sketches"), d, histories=defence.histories, sketch=privacy.sketch)
    found, skipped, blamed, rounds = list[Metrics](), 0, 0, experiment.federation.rounds
    for round in range(1, rounds + 1):
        columns = [slice(0, d)]
        block, _, after = host.train(round, everybody, [], weights, states, everybody, None, columns)
        states |= after.states
        if crafting:
            block[crafting] = adversary.replace(round, [everybody], crafting, columns, Outlook(), None, block.copy())
        active = malicious.active(everybody, round)
        record, weights, _ = coordinator.aggregate(
            round, [everybody], active, None, Here(parties, privacy, round, block)
        )
        skipped += "skipped" in record
        blamed += len(set(record["rejected"]) - set(malicious.drawn))
        if round > rounds - 5:
            found.append(evaluation_record(round, hospitals, experiment.attacks, host.evaluate(weights, 0, 1)).metrics)
    means = {
        name: float(np.mean([metrics[key] for metrics in found]))
        for name, key in (("accuracy", "test/balanced_accuracy"), ("success", "attack/success_rate"))
        if key in found[0]
    }
    return means | {"skipped": skipped, "blamed": blamed}


def runs(source: str, rounds: int, seeds: Sequence[int], attacks: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The key of each run, and its overrides."""
    for seed, attack, defence, columns in product(seeds, attacks, DEFENCES, COLUMNS):
        sketch = "null" if COLUMNS[columns] is None else COLUMNS[columns]
        privacy = f"privacy={{name: shares, clip: 4.0, sketch: {sketch}}}"
        own = [source, f"federation.rounds={rounds}", f"seed={seed}", f"attacks={ATTACKS[attack]}", privacy]
        yield json.dumps([rounds, seed, attack, defence, columns]), [*own, *DEFENCES[defence]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--data", type=Path, help="the IDC patches, idc_breast_48.npz")
    either.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS), metavar="ATTACK")
    parser.add_argument("--kept", type=Path, default=Path("mlruns/sketches.jsonl"), help="where finished runs are kept")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    source = "data.source={name: histology, size: 24}" if given.quick else f"data.source.path={given.data}"
    rounds, attacks = (6, ["none", "alie 1.5, 20%"]) if given.quick else (40, given.attacks)
    given.kept.parent.mkdir(parents=True, exist_ok=True)
    lines = given.kept.read_text().splitlines() if given.kept.exists() else []
    kept = {json.dumps(line["run"]): line for line in map(json.loads, lines)}
    hospitals: dict[int, Hospitals] = {}
    todo = [run for run in runs(source, rounds, given.seeds, attacks) if run[0] not in kept]
    for number, (key, overrides) in enumerate(todo, 1):
        experiment = fedrobust.load(FILE, overrides)
        if experiment.seed not in hospitals:
            hospitals = {experiment.seed: hospitals_of(experiment)}
        kept[key] = {"run": json.loads(key), **trained(experiment, hospitals[experiment.seed])}
        with given.kept.open("a") as file:
            file.write(json.dumps(kept[key]) + "\n")
        print(f"{number}/{len(todo)} {kept[key]}", flush=True)
    told(list(kept.values()), rounds)


def told(lines: Sequence[Mapping[str, Any]], rounds: int) -> None:
    """Tables: each defence by attack and columns, and what they have in common."""
    lines = [line for line in lines if line["run"][0] == rounds]
    for defence in DEFENCES:
        print(f"\n**{defence}**\n\n| attack | {' | '.join(COLUMNS)} |\n|---{'|---' * len(COLUMNS)}|")
        for attack in ATTACKS:
            cells = [mean_of(lines, attack, defence, columns) for columns in COLUMNS]
            if not all(np.isnan(cells)):
                print(f"| {attack} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
    print("\n| columns | mean difference to exact | largest loss | rounds skipped | honest updates refused |")
    print("|---|---|---|---|---|")
    for columns in COLUMNS:
        pairs = [
            mean_of(lines, attack, defence, columns) - mean_of(lines, attack, defence, "exact")
            for attack, defence in product(ATTACKS, DEFENCES)
        ]
        pairs = [pair for pair in pairs if not np.isnan(pair)]
        own = [line for line in lines if line["run"][4] == columns]
        if pairs and own:
            skipped, blamed = (sum(int(line[name]) for line in own) for name in ("skipped", "blamed"))
            print(f"| {columns} | {np.mean(pairs):+.4f} | {min(pairs):+.3f} | {skipped} | {blamed} |")


def mean_of(lines: Sequence[Mapping[str, Any]], attack: str, defence: str, columns: str) -> float:
    """Balanced accuracy over the seeds."""
    found = [line["accuracy"] for line in lines if line["run"][2:] == [attack, defence, columns]]
    return float(np.mean(found)) if found else float("nan")


if __name__ == "__main__":
    main()
