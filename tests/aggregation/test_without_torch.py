"""Without torch, NumPy does the arithmetic: every rule gives the same up to rounding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from fedrobust.aggregation import NNM, Clip, Pipeline, RowRule, Rule
from fedrobust.aggregation.pipeline import Memory
from fedrobust.options import members

LAYERS = [("body", (2978,)), ("head.weight", (2, 10)), ("head.bias", (2,))]
SCRIPT = """
import sys
from importlib.machinery import PathFinder

class NoTorch(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "torch" else super().find_spec(name, path, target)

sys.meta_path = [NoTorch if finder is PathFinder else finder for finder in sys.meta_path]
sys.path.insert(0, sys.argv[1])
import numpy as np
from aggregation.test_without_torch import aggregates
np.savez(sys.argv[2], **aggregates())
from fedrobust.aggregation import Median
from fedrobust.aggregation.testing import check_rule
check_rule(Median())
assert "torch" not in sys.modules
"""


def aggregates() -> dict[str, np.ndarray]:
    """The second of two rounds of every rule, by itself and after stages."""
    found = {}
    for name, rule in members(Rule, RowRule).items():
        for how, stages in {"alone": [], "staged": [Clip(), NNM()]}.items():
            memory, pipeline = Memory(), Pipeline([*stages, rule()])
            for number in range(2):
                random = np.random.default_rng(number)
                rows = random.standard_normal((26, 3_000)).astype(np.float64 if how == "staged" else np.float32)
                rows[:2] *= -5
                root = {"root": random.standard_normal(3_000)} if "root" in pipeline.anchors else {}
                aggregate = pipeline.aggregate(rows, f=2, memory=memory, layers=LAYERS, **root)
            found[f"{name} {how}"] = aggregate
    return found


def test_every_rule_gives_the_same_without_torch(tmp_path: Path) -> None:
    tests, file = str(Path(__file__).parent.parent), str(tmp_path / "found.npz")
    done = subprocess.run([sys.executable, "-c", SCRIPT, tests, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(file) as without:
        for name, expected in aggregates().items():
            assert without[name].dtype == expected.dtype
            np.testing.assert_allclose(without[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)
