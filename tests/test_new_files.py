"""A class in a new file of a room is found by its name, and nobody has to be told of the file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedrobust.options import find_options

PACKAGE = Path(__file__).parent.parent / "fedrobust"
NEW = {
    "aggregation/rules": """
from typing import Literal
from fedrobust.aggregation import Combination, Rule

class First(Rule):
    name: Literal["first"] = "first"
    def combine(self, gram, context):
        return Combination(gram.prior)
""",
    "attacks": """
from typing import Literal
from fedrobust.attacks import CraftedAttack

class Silence(CraftedAttack):
    name: Literal["silence"] = "silence"
    def craft(self, view):
        return 0 * view.own
""",
    "data": """
from typing import Literal
from fedrobust.data import Source

class Cloud(Source):
    name: Literal["cloud"] = "cloud"
    def load(self, seed):
        raise NotImplementedError
""",
    "trust": """
from typing import Literal
from fedrobust.trust import Detector, Scores

class Calm(Detector):
    name: Literal["calm"] = "calm"
    def score(self, gram, context):
        return Scores(0 * gram.prior, {})
""",
}
EXPERIMENT = """
data: {source: cloud}
attacks: [{name: silence, count: 1}]
aggregation: {rule: first}
trust: {detector: calm}
"""


def test_a_class_in_a_new_file_is_found(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "fedrobust", ignore=shutil.ignore_patterns("__pycache__"))
    for room, source in NEW.items():
        (tmp_path / "fedrobust" / room / "a_new_one.py").write_text(source)
    (tmp_path / "e.yaml").write_text(EXPERIMENT)
    script = (
        "import sys, fedrobust\n"
        "e = fedrobust.load('e.yaml')\n"
        "print(e.data.source.name, e.attacks[0].name, e.aggregation.rule.name, e.trust.detector.name)\n"
        "assert not {'torch', 'ray', 'mlflow'} & set(sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["cloud", "silence", "first", "calm"], done.stderr


def test_a_module_without_a_named_class_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = tmp_path / "a_room_of_its_own"
    room.mkdir()
    (room / "__init__.py").touch()
    (room / "heavy.py").write_text("raise AssertionError\n")
    (room / "named.py").write_text('from typing import Literal\nclass Found:\n    name: Literal["found"] = "found"\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    find_options(room.name)
    assert f"{room.name}.named" in sys.modules and f"{room.name}.heavy" not in sys.modules
