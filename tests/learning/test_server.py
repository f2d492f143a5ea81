from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrobust.learning import FedAdam, FedAvg, FedAvgM, FedYogi, ServerOptimizer

WEIGHTS = np.array([1.0, -2.0], dtype=np.float32)
DELTAS = [np.array([0.5, 1.0], dtype=np.float32), np.array([-0.25, 0.0], dtype=np.float32)]


def walk(optimizer: ServerOptimizer) -> list[np.ndarray]:
    weights, state, path = WEIGHTS, {}, []
    for delta in DELTAS:
        weights, state = optimizer.step(weights, delta, state)
        path.append(weights)
    return path


def test_fedavg() -> None:
    assert np.allclose(walk(FedAvg()), [[1.5, -1.0], [1.25, -1.0]])
    assert np.allclose(walk(FedAvg(lr=0.5)), [[1.25, -1.5], [1.125, -1.5]])


def test_fedavgm() -> None:
    # m1 = (0.5, 1); m2 = 0.5 m1 + (-0.25, 0) = (0, 0.5)
    assert np.allclose(walk(FedAvgM(lr=2.0, momentum=0.5)), [[2.0, 0.0], [2.0, 1.0]])


def test_fedadam() -> None:
    # m1 = 0.5Δ1 = (0.25, 0.5); v1 = 0.75·0.01 + 0.25·(0.25, 1) = (0.07, 0.2575)
    # m2 = 0.5m1 + 0.5Δ2 = (0, 0.25); v2 = 0.75v1 + 0.25·(0.0625, 0) = (0.068125, 0.193125)
    first = WEIGHTS + np.array([0.25 / (np.sqrt(0.07) + 0.1), 0.5 / (np.sqrt(0.2575) + 0.1)])
    second = first + np.array([0.0, 0.25 / (np.sqrt(0.193125) + 0.1)])
    assert np.allclose(walk(FedAdam(lr=1.0, beta1=0.5, beta2=0.75, tau=0.1)), [first, second], rtol=1e-6)


def test_fedyogi() -> None:
    # v0 = 0.01 < Δ1², so v1 = 0.01 + 0.25·(0.25, 1) = (0.0725, 0.26)
    # v1 > Δ2² = (0.0625, 0), so v2 = v1 − 0.25·(0.0625, 0) = (0.056875, 0.26)
    first = WEIGHTS + np.array([0.25 / (np.sqrt(0.0725) + 0.1), 0.5 / (np.sqrt(0.26) + 0.1)])
    second = first + np.array([0.0, 0.25 / (np.sqrt(0.26) + 0.1)])
    optimizer = FedYogi(lr=1.0, beta1=0.5, beta2=0.75, tau=0.1)
    assert np.allclose(walk(optimizer), [first, second], rtol=1e-6)
    _, state = optimizer.step(WEIGHTS, DELTAS[0], {})
    _, state = optimizer.step(WEIGHTS, DELTAS[1], state)
    assert np.allclose(state["second"], [0.056875, 0.26])


@pytest.mark.parametrize("optimizer", [FedAvg(), FedAvgM(), FedAdam(), FedYogi()])
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-12, 1e6))
def test_steps_are_pure_finite_and_float32(optimizer: ServerOptimizer, seed: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    weights = generator.standard_normal(7).astype(np.float32)
    deltas = [(scale * generator.standard_normal(7)).astype(np.float32) for _ in range(3)]
    weights.flags.writeable = False
    state: dict[str, np.ndarray] = {}
    for delta in deltas:
        delta.flags.writeable = False
        weights, after = optimizer.step(weights, delta, state)
        again, _ = optimizer.step(weights, delta, {name: value.copy() for name, value in after.items()})
        assert weights.dtype == np.float32
        assert np.isfinite(again).all()
        for value in after.values():
            assert value.dtype == np.float32
            assert not np.shares_memory(value, delta)
            value.flags.writeable = False
        state = after
