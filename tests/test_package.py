"""What is delivered: the shipped experiments and their schemas."""

from __future__ import annotations

import json
from pathlib import Path

import pydantic
import pytest

from fedrobust.duel import Duel
from fedrobust.experiment import Experiment
from fedrobust.matrix import Matrix
from fedrobust.tuning import Sweep

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


@pytest.mark.parametrize("model", [Experiment, Matrix, Sweep, Duel])
def test_the_shipped_schema_is_the_schema(model: type[pydantic.BaseModel]) -> None:
    shipped = json.loads((EXPERIMENTS / "schemas" / f"{model.__name__.lower()}.schema.json").read_text())
    assert shipped == model.model_json_schema(), "run `make schema`"
