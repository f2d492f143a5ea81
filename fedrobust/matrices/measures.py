"""The figures of one cell, computed from the records of its rounds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fedrobust.metrics import in_tables
from fedrobust.records import EvaluationRecord, RoundRecord, averages

JUDGED = range(11, 21)
"""The rounds over which precision and recall are averaged; by round 20, detection should work reliably."""
FOR_GOOD = 15
"""A hospital in quarantine for the last so many rounds counts as permanently ejected."""

BASELINE = "baseline/"
"""Of the names of figures of the oracle: how often a trigger succeeds."""
_ATTACK = {"attack/success_rate": "attack_success", "attack/raw_rate": "attack_raw"}


def performance(evaluations: Iterable[EvaluationRecord]) -> dict[str, float]:
    """Return means over the evaluated rounds: the metrics on the test patches that tables show (`metrics.in_tables`)
    and, if an attack has a target, attack success.

    evaluations: the records of the evaluated rounds.
    """
    means = averages(evaluations)
    tested = in_tables(name.removeprefix("test/") for name in means if name.startswith("test/"))
    names = {f"test/{key}": key for key in tested} | _ATTACK
    return {name: means[metric] for metric, name in names.items() if metric in means}


def baselines(evaluations: Iterable[EvaluationRecord]) -> dict[str, float]:
    """Return `baseline/<index>`: how often each trigger of the oracle's attacks succeeds although no backdoor was
    planted.

    evaluations: the records of the evaluated rounds of the oracle.
    """
    rates = defaultdict[int, list[float]](list)
    for evaluation in evaluations:
        for index, figures in evaluation.triggers.items():
            if (rate := figures.get("success_rate")) is not None:
                rates[index].append(rate)
    return {f"{BASELINE}{index}": float(np.mean(each)) for index, each in sorted(rates.items())}


def base_rates(figures: Mapping[str, float], triggers: Sequence[str]) -> dict[str, float]:
    """Return how often the triggers of each backdoor succeed on the oracle: of several, the most successful one.

    figures: of the oracle, see `baselines`.
    triggers: the names of the backdoors, one for each of the oracle's attacks after the first. They are not part of its
        experiment, so they may have changed since it was run.
    """
    found: dict[str, float] = {}
    for index, attack in enumerate(triggers, start=1):
        if (rate := figures.get(f"{BASELINE}{index}")) is not None:
            found[attack] = max(rate, found.get(attack, 0.0))
    return found


def detection(rounds: Sequence[RoundRecord], malicious: Iterable[int], label_counts: np.ndarray) -> dict[str, float]:
    """Measure how well the malicious hospitals were found, and how the honest ones were affected.

    rounds: the records of all rounds.
    malicious: ids of the malicious hospitals.
    label_counts: (hospitals, labels) int, training patches of each hospital; ids beyond are new ids of malicious ones.

    Returns:

    - `detection_auroc`: AUROC of each hospital's mean anomaly score, up to round 20, over the rounds with an attack;
      `last_auroc`: AUROC of the scores of the last such round;
    - `precision`, `recall` of the suspicions: means over rounds 11 to 20;
    - `ejected`: share of the malicious hospitals that were ever in quarantine; `rounds_to_eject`: after how many rounds
      of attack, mean over these; `slowest_ejection`: the maximum, infinite if one was never ejected;
    - `rounds_to_forgive`: mean stay of an honest hospital in quarantine; `honest_quarantined`: how many had one;
    - `honest_ejected`: honest hospitals in quarantine for the last fifteen rounds; `rarest_ejected`: 1 if the one with
      the rarest data is among them, else 0;
    - `skipped`: rounds in which nothing was aggregated.

    A figure without a value (no attack, no ejection) is left out.
    """
    quarantined = [set(record.quarantined) for record in rounds]
    attacking = [set(record.attacking) for record in rounds]
    hospitals = range(len(label_counts))
    bad = sorted({*malicious}.union(*attacking))
    honest = [client for client in hospitals if client not in bad]
    stays = [stay for client in honest for stay in _stays([client in inside for inside in quarantined])]
    for_good = set(honest).intersection(*quarantined[-FOR_GOOD:]) if quarantined else set()
    found = {
        "skipped": float(sum(record.skipped is not None for record in rounds)),
        "honest_quarantined": float(len(set(honest) & set().union(*quarantined))),
        "honest_ejected": float(len(for_good)),
        "rarest_ejected": float(rarest(label_counts, honest) in for_good),
    }
    if stays:
        found["rounds_to_forgive"] = float(np.mean(stays))
    return found | _suspicions(rounds) | _scores(rounds, bad) | _ejections(bad, attacking, quarantined)


def rarest(label_counts: np.ndarray, among: Sequence[int]) -> int:
    """Return the hospital with the fewest patches of its rarest label; in a tie, the one with the fewest patches.

    label_counts: (hospitals, labels) int.
    among: ids of the hospitals to choose from.

    A label that no hospital has is ignored.
    """
    held = label_counts[:, label_counts.any(axis=0)]
    return min(among, key=lambda client: (int(held[client].min()), int(held[client].sum()), client))


def _suspicions(rounds: Sequence[RoundRecord]) -> dict[str, float]:
    found = {}
    for name in ("precision", "recall"):
        judged = [record.detection.get(f"defense/{name}") for record in rounds if record.round in JUDGED]
        values = [value for value in judged if value is not None]
        if values:
            found[name] = float(np.mean(values))
    last = [value for record in rounds if (value := record.detection.get("defense/auroc")) is not None]
    return found | ({"last_auroc": last[-1]} if last else {})


def _scores(rounds: Sequence[RoundRecord], bad: Sequence[int]) -> dict[str, float]:
    """Return `detection_auroc`, unless the malicious or the honest hospitals have no scores."""
    given: dict[int, list[float]] = {}
    for record in rounds:
        if record.attacking and record.round < JUDGED.stop:
            for client, score in record.anomaly.items():
                if score is not None:
                    given.setdefault(client, []).append(score)
    scores = np.array([np.mean(own) for own in given.values()])
    malicious = np.isin(list(given), bad)
    if not malicious.any() or malicious.all():
        return {}
    higher = np.sign(np.subtract.outer(scores[malicious], scores[~malicious]))
    return {"detection_auroc": float((1 + higher.mean()) / 2)}


def _ejections(bad: Sequence[int], attacking: Sequence[set[int]], quarantined: Sequence[set[int]]) -> dict[str, float]:
    waits = []
    for client in bad:
        attacks = [index for index, names in enumerate(attacking) if client in names]
        first = next((index for index, names in enumerate(quarantined) if client in names), None)
        if attacks:
            waits.append(math.inf if first is None else float(sum(index <= first for index in attacks)))
    if not waits:
        return {}
    ended = [wait for wait in waits if math.isfinite(wait)]
    found = {"ejected": len(ended) / len(waits), "slowest_ejection": max(waits)}
    return found | ({"rounds_to_eject": float(np.mean(ended))} if ended else {})


def _stays(inside: Sequence[bool]) -> list[int]:
    """Return the lengths of the unbroken stretches of True."""
    edges = np.flatnonzero(np.diff(np.array([False, *inside, False], dtype=np.int8)))
    lengths: list[int] = (edges[1::2] - edges[::2]).tolist()
    return lengths
