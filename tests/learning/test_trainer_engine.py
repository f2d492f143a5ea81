"""The trainer engine offers what Lightning's Trainer does: precisions and callbacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning
import torch
from pydantic import ValidationError
from refused import refused

from fedrobust.learning import Cnn, LocalTraining
from fedrobust.learning.training import LocalTrainer
from fedrobust.learning.vector import parameters_to_vector


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_every_precision_gives_a_float32_update_near_the_full_one(precision: str) -> None:
    found = {}
    for kind in ("32-true", precision):
        options = LocalTraining.model_validate({"engine": "trainer", "steps": 4, "precision": kind})
        trainer = LocalTrainer(Cnn(channels=(8, 16)).build(3, 16, 0), options)
        weights = parameters_to_vector(trainer.network).copy()
        draw = torch.Generator().manual_seed(0)
        data = [(torch.randn(8, 3, 16, 16, generator=draw), torch.arange(8) % 3) for _ in range(4)]
        found[kind] = trainer.train(weights, data, 4, np.array([8, 12, 12]), seed=1).update
        again = trainer.train(weights, data, 4, np.array([8, 12, 12]), seed=1).update
        assert again.tobytes() == found[kind].tobytes()
    assert found[precision].dtype == np.float32
    difference = np.linalg.norm(found[precision] - found["32-true"]) / np.linalg.norm(found["32-true"])
    assert 0 < difference < 0.3


CALLBACK = """
import pytorch_lightning

class Counter(pytorch_lightning.Callback):
    seen = 0
    def __init__(self, step=1):
        self.step = step
    def on_train_batch_end(self, *_):
        Counter.seen += self.step
"""


def test_callbacks_reach_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "callbacks_of_mine.py").write_text(CALLBACK)
    monkeypatch.syspath_prepend(str(tmp_path))
    counter = {"name": "callbacks_of_mine:Counter", "options": {"step": 10}}
    lambdas = {"name": "pytorch_lightning.callbacks:LambdaCallback"}
    options = LocalTraining.model_validate({"engine": "trainer", "steps": 3, "callbacks": [counter, lambdas]})
    trainer = LocalTrainer(Cnn(channels=(4,)).build(2, 8, 0), options)
    data = [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))] * 3
    trainer.train(parameters_to_vector(trainer.network).copy(), data, 3, np.array([1, 1]), seed=0)
    import callbacks_of_mine  # type: ignore[import-not-found]

    assert callbacks_of_mine.Counter.seen == 30


@pytest.mark.parametrize("callbacks", [(), ({"name": "pytorch_lightning.callbacks:LambdaCallback"},)])
def test_a_trainer_serves_many_hospitals_unless_there_are_callbacks(
    callbacks: tuple[dict[str, str], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, make = [], pytorch_lightning.Trainer.__init__
    monkeypatch.setattr(pytorch_lightning.Trainer, "__init__", lambda *a, **b: made.append(make(*a, **b)))
    options = LocalTraining.model_validate({"engine": "trainer", "steps": 2, "callbacks": callbacks})
    trainer = LocalTrainer(Cnn(channels=(4,)).build(2, 8, 0), options)
    weights = parameters_to_vector(trainer.network).copy()
    for _ in range(3):
        trainer.train(weights, [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))] * 2, 2, np.array([1, 1]), seed=0)
    assert len(made) == (3 if callbacks else 1)


def test_a_hospital_that_breaks_off_leaves_nothing_to_the_next() -> None:
    def batches(good: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        draw = torch.Generator().manual_seed(0)
        for step in range(4):
            if step == good:
                raise RuntimeError("unreadable")
            yield torch.randn(2, 3, 8, 8, generator=draw), torch.tensor([0, 1])

    options = LocalTraining(engine="trainer", steps=4)
    trainer = LocalTrainer(Cnn(channels=(4,)).build(2, 8, 0), options)
    weights = parameters_to_vector(trainer.network).copy()
    sound = trainer.train(weights, batches(9), 4, np.array([1, 1]), seed=0).update.copy()
    with pytest.raises(RuntimeError, match="unreadable"):
        trainer.train(weights, batches(2), 4, np.array([1, 1]), seed=0)
    with pytest.raises(ValueError, match="4 batches"):
        trainer.train(weights, batches(9), 6, np.array([1, 1]), seed=0)
    assert trainer.train(weights, batches(9), 4, np.array([1, 1]), seed=0).update.tobytes() == sound.tobytes()


@pytest.mark.parametrize(
    ("callback", "path", "word"),
    [
        ({"name": "pytorch_lightning.callbacks:NoSuchCallback"}, "name", "import"),
        ({"name": "os.path:join"}, "name", "Lightning"),
        ({"name": "pytorch_lightning.callbacks:LambdaCallback", "options": {"nothing": 1}}, "options", "nothing"),
        ({"name": "LambdaCallback"}, "name", "pattern"),
    ],
)
def test_wrong_callbacks_are_refused(callback: dict[str, object], path: str, word: str) -> None:
    with refused(ValidationError, path=f"callbacks.0.{path}", says=word):
        LocalTraining.model_validate({"engine": "trainer", "callbacks": [callback]})


def test_the_lean_engine_has_no_callbacks() -> None:
    with refused(ValidationError, path="callbacks", says="lean"):
        LocalTraining.model_validate({"callbacks": [{"name": "pytorch_lightning.callbacks:LambdaCallback"}]})
