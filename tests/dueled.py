"""A duel whose federations are played: what a run gives is a formula."""

from __future__ import annotations

import math

from fedrobust.experiment import Experiment

DUEL = """\
name: played
experiment: base.yaml
attacks:
  nobody: []
  flip: {name: sign_flip, fraction: 0.2}
attacker:
  trials: 4
  sampler: {name: random}
  space:
    - name: ipm
      fraction: 0.2
      epsilon: {log: [0.01, 1.0]}
defences:
  mean + nothing:
    options: {aggregation: {rule: mean}}
  clipping:
    options: {aggregation: {rule: {name: centered_clipping, tau: 0.1}}}
    space: {aggregation.rule.tau: {log: [0.01, 1.0]}}
defender: {trials: 3, sampler: {name: qmc}}
objective: {rounds: 1}
seeds: [1]
fresh: [7, 8]
parallel: 2
turns: 1
"""


def strength(experiment: Experiment, round: int) -> float:
    """An `ipm` hurts the mean by its strength, and clipping most where its strength is the radius."""
    settings = experiment.resolved()
    harm = 0.0
    for attack in settings["attacks"]:
        harm += 0.1 if attack["name"] == "sign_flip" else 0.0
        if attack["name"] == "ipm":
            rule = settings["aggregation"]["rule"]
            near = attack["epsilon"] if rule["name"] == "mean" else 1 - abs(math.log10(attack["epsilon"] / rule["tau"]))
            harm += 0.4 * max(0.0, near)
    return (0.9 - harm - 0.01 * (experiment.seed % 3)) * (1 - 0.5**round)
