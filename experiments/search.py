"""A search in Python: which defence, with which strength, is worth most while a backdoor is being planted.

python experiments/search.py [TRIALS]
"""

from __future__ import annotations

import sys

import fedrobust


def worth(result: fedrobust.Result) -> float:
    """A model should read well, and should not obey the trigger."""
    return float(result.final["test/balanced_accuracy"] - result.final["attack/success_rate"])


def main() -> None:
    """Search, and tell what was found."""
    found = fedrobust.sweep(
        fedrobust.load("experiments/quickstart.yaml", ["federation.rounds=8"]),
        name="search",
        space={
            "aggregation": {
                "choice": {
                    "clipping": {"rule": {"name": "centered_clipping", "tau": {"log": [0.1, 10.0]}}},
                    "krum": {"stages": ["nnm"], "rule": "multi_krum", "f": {"int": [1, 3]}},
                    "median": {"rule": "median"},
                }
            }
        },
        objective=worth,
        trials=int(sys.argv[1]) if len(sys.argv) > 1 else 12,
        fresh=[11, 12],
    )
    for again in found.fresh:
        print(f"trial {again.trial.number}: {again.trial.outcome}, fresh seeds {again.values}: {again.trial.values}")
    print(f"pictures and best.yaml: {found.folder}")


if __name__ == "__main__":
    main()
