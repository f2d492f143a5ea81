"""The worst case of every defence, each searched for: the tables of docs/results.md and the picture of the README.

python docs/make/worst_case.py                       from the figures that are stored
python docs/make/worst_case.py "IDC, 20 %" FOLDER    first read the sweeps of experiments/worst_case_each.yaml in FOLDER

FOLDER is where these sweeps were run: it has `mlruns/sweeps/each_*`, with `each_nobody` among them. Defences that are
stored and not in FOLDER stay.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import yaml

from fedrobust import Experiment, load
from fedrobust.intervals import Estimate, mean_interval
from fedrobust.options import Options

DOCS = Path(__file__).parents[1]
STORED = DOCS / "worst_cases.yaml"
PAGE = DOCS / "results.md"
PICTURE = DOCS / "pictures" / "worst_cases.png"
BEGIN, END = "<!-- worst cases: begin -->", "<!-- worst cases: end -->"
ABOUT = """\
# The worst attack that a search of experiments/worst_case_each.yaml found against each defence, and balanced accuracy
# on seeds that the search had not seen; `nobody`: the plain mean, without an attack. docs/make/worst_case.py writes it.
"""
METRIC = "test/balanced_accuracy"
CHANCE = 0.5
SIZE = ("name", "fraction", "count", "clients")
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1")


def changed(options: Options) -> dict[str, Any]:
    """The options that are not the default, as an experiment file would have them."""
    found: dict[str, Any] = {}
    for name, field in type(options).model_fields.items():
        value = getattr(options, name)
        if name == "name" or value != field.get_default(call_default_factory=True):
            found[name] = changed(value) if isinstance(value, Options) else value
    return found


def text(attack: Mapping[str, Any]) -> str:
    """An attack in a table, without the share of hospitals that it has."""
    told = [
        str(value["name"]) + "".join(f" {key} {each}" for key, each in value.items() if key != "name")
        if isinstance(value, Mapping)
        else f"{key} {value:.3g}"
        if isinstance(value, float)
        else f"{key} {value}"
        for key, value in attack.items()
        if key not in SIZE
    ]
    return f"`{attack['name']}`" + (f" ({', '.join(told)})" if told else "")


def by_trial(file: Path) -> dict[int, dict[int, float]]:
    """The results of a sweep on its fresh seeds: trial → seed → balanced accuracy."""
    found: dict[int, dict[int, float]] = {}
    with file.open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            if line["seed"] != "all":
                found.setdefault(int(line["number"]), {})[int(line["seed"])] = round(float(line[METRIC]), 4)
    return found


def of_trial(folder: Path, sweep: Path, trial: int) -> Experiment:
    """The experiment of a trial, as its run has recorded it."""
    runs = [json.loads(line) for line in (sweep / "runs.jsonl").read_text(encoding="utf-8").splitlines()]
    found = re.compile(rf"trial {trial} \| .*\bseed 1 \|")  # the name of an attack may stand between them
    run = next(run["run_id"] for run in runs if found.match(run["label"]))
    return load(folder / "mlruns" / "runs" / run / "experiment.yaml")


def read(folder: Path) -> dict[str, Any]:
    """What the sweeps of one setting found."""
    nobody, defences = {}, {}
    for sweep in sorted((folder / "mlruns" / "sweeps").glob("each_*")):
        name = sweep.name.removeprefix("each_")
        if not (sweep / "fresh.csv").is_file():
            print(f"{name}: not finished")
            continue
        trials = by_trial(sweep / "fresh.csv")
        if name == "nobody":
            means = [each for each in trials if of_trial(folder, sweep, each).aggregation.rule.name == "mean"]
            nobody = trials[means[0]]
            continue
        # of the trials that were measured again, the one that was worst there
        worst = min(trials, key=lambda trial: sum(trials[trial].values()))
        with (sweep / "trials.csv").open(encoding="utf-8", newline="") as lines:
            searched = {int(line["number"]): line[METRIC] for line in csv.DictReader(lines)}
        defences[name] = {
            "trials": len(searched),
            "seed 1": round(float(searched[worst]), 4),
            "attack": changed(of_trial(folder, sweep, worst).attacks[0]),
            "fresh": trials[worst],
        }
    return {"nobody": nobody, "defences": defences}


def merged(stored: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """What is stored of a setting, with what was found anew in place of it. Both must have had the same mean."""
    if stored["nobody"] != found["nobody"]:
        raise SystemExit("each_nobody has other figures than the stored ones: these sweeps can't stand in one table")
    return {"nobody": found["nobody"], "defences": {**stored["defences"], **found["defences"]}}


def robustness(accuracy: Mapping[int, float], nobody: Mapping[int, float]) -> Estimate:
    """Of a defence: 1 is an attack-free mean, 0 is chance. Paired by seed, with the 95 % t interval of the mean."""
    return mean_interval([(accuracy[seed] - CHANCE) / (nobody[seed] - CHANCE) for seed in accuracy])


def table(setting: str, found: Mapping[str, Any]) -> list[str]:
    """The lines of one setting's table, the most robust defence first."""
    nobody = found["nobody"]
    mean = sum(nobody.values()) / len(nobody)
    lines = [
        f"**{setting}** (nobody attacking: {mean:.3f})",
        "",
        "| defence | trials | the worst attack that was found | seed 1 | fresh seeds | robustness |",
        "|---|---|---|---|---|---|",
    ]
    for name, each in ranked(found):
        fresh, robust = each["fresh"].values(), robustness(each["fresh"], nobody)
        accuracy = f"{sum(fresh) / len(fresh):.3f} ({min(fresh):.3f} to {max(fresh):.3f})"
        interval = f"**{robust.value:.2f}** [{robust.low:.2f}, {robust.high:.2f}]"
        cells = (f"`{name}`", each["trials"], text(each["attack"]), f"{each['seed 1']:.3f}", accuracy, interval)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def ranked(found: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The defences of a setting, the most robust first."""
    return sorted(found["defences"].items(), key=lambda item: -robustness(item[1]["fresh"], found["nobody"]).value)


def tables(stored: Mapping[str, Any]) -> str:
    """All tables, as the page has them."""
    return "\n\n".join("\n".join(table(setting, found)) for setting, found in stored.items())


def draw(stored: Mapping[str, Any], file: Path) -> None:
    """Draw the robustness of every defence under its own worst attack, in all settings."""
    names = [name for name, _ in ranked(next(iter(stored.values())))]
    names += [name for found in stored.values() for name, _ in ranked(found) if name not in names]
    figure, axis = plt.subplots(figsize=(9, 1.5 + (0.2 + 0.16 * len(stored)) * len(names)), layout="constrained")
    for index, (setting, found) in enumerate(stored.items()):
        shift = 0.8 / len(stored) * (index - (len(stored) - 1) / 2)
        for name, each in found["defences"].items():
            value, low, high = robustness(each["fresh"], found["nobody"])
            axis.errorbar(
                value,
                names.index(name) + shift,
                xerr=[[value - low], [high - value]],
                fmt="o",
                color=COLOURS[index],
                capsize=3,
                label=setting if name == next(iter(found["defences"])) else None,
            )
    axis.axvline(1, color="#555", linewidth=0.8)
    axis.axvline(0, color="#555", linewidth=0.8, linestyle="--")
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="x", color="#ddd")
    for place in range(len(names) - 1):
        axis.axhline(place + 0.5, color="#ddd", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_xlabel("robustness under the worst attack that a search found (0: chance, 1: nobody attacks)")
    axis.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(stored), title="data, malicious")
    figure.savefig(file, dpi=100)


def main() -> None:
    """Read if asked to, then write the tables and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", nargs="?")
    parser.add_argument("folder", nargs="?", type=Path)
    given = parser.parse_args()
    stored = yaml.safe_load(STORED.read_text(encoding="utf-8")) if STORED.is_file() else {}
    if given.folder:
        found = read(given.folder)
        stored[given.setting] = merged(stored.get(given.setting, found), found)
        STORED.write_text(ABOUT + yaml.safe_dump(stored, sort_keys=False, width=120), encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{tables(stored)}\n\n{END}{after}", encoding="utf-8")
    draw(stored, PICTURE)


if __name__ == "__main__":
    main()
