from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedrobust.learning import Cnn
from fedrobust.learning.vector import load_optimizer, load_vector, optimizer_to_vector, parameters_to_vector, size


def network() -> nn.Module:
    return Cnn(channels=(4, 6)).build(3, 8, seed=1)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_order_is_that_of_named_parameters_whatever_the_memory_format(memory: torch.memory_format) -> None:
    module = network()
    expected = np.concatenate([parameter.detach().numpy().copy().ravel() for _, parameter in module.named_parameters()])
    vector = parameters_to_vector(module.to(memory_format=memory))
    assert np.array_equal(vector, expected)
    assert vector.dtype == np.float32
    assert vector.flags.c_contiguous
    assert vector.shape == (size(module),)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_load_is_the_inverse_and_shares_no_memory(memory: torch.memory_format) -> None:
    module = network().to(memory_format=memory)
    vector = np.random.default_rng(0).standard_normal(size(module)).astype(np.float32)
    vector.flags.writeable = False  # as the object store gives it
    load_vector(module, vector)
    out = parameters_to_vector(module)
    assert np.array_equal(out, vector)
    out[:] = 0
    with torch.no_grad():
        next(module.parameters()).add_(1)
    assert not np.array_equal(parameters_to_vector(module), out)
    assert vector.any()


def test_frozen_parameters_are_no_part_of_the_vector() -> None:
    module = network()
    first = next(module.parameters())
    first.requires_grad_(False)
    before = first.clone()
    vector = parameters_to_vector(module)
    assert len(vector) == sum(parameter.numel() for parameter in module.parameters()) - first.numel()
    load_vector(module, np.zeros_like(vector))
    assert torch.equal(first, before)


@pytest.mark.parametrize("shape", [(3,), (0,), (1, 10)])
def test_a_vector_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="the parameters need"):
        load_vector(network(), np.zeros(shape, dtype=np.float32))


def test_an_optimisers_state_comes_back_in_the_layout_that_is_documented() -> None:
    parameters = list(network().to(memory_format=torch.channels_last).parameters())
    optimizer = torch.optim.Adam(parameters, fused=True)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    names = ("exp_avg", "exp_avg_sq", "step")
    vector = optimizer_to_vector(optimizer, names)
    assert vector is not None
    d = sum(parameter.numel() for parameter in parameters)
    averages = np.concatenate([optimizer.state[parameter]["exp_avg"].numpy().ravel() for parameter in parameters])
    assert vector.shape == (2 * d + 1,)
    assert np.array_equal(vector[:d], averages)
    assert vector[-1] == 3

    other = torch.optim.Adam(parameters, fused=True)
    load_optimizer(other, names, vector)
    assert np.array_equal(optimizer_to_vector(other, names), vector)
    for parameter in parameters:
        assert other.state[parameter]["exp_avg"].stride() == parameter.stride()
    other.step()  # no two parameters share the count of steps
    assert all(other.state[parameter]["step"] == 4 for parameter in parameters)
    load_optimizer(other, names, None)
    assert not other.state
    with pytest.raises(ValueError, match="the parameters need"):
        load_optimizer(other, names, vector[:-1])
    assert optimizer_to_vector(other, ()) is None


def test_a_parameter_without_a_gradient_counts_as_zeros() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([unused, used], lr=0.1, momentum=0.9)
    used.grad = torch.tensor([1.0, 2.0])
    optimizer.step()
    assert np.array_equal(optimizer_to_vector(optimizer, ("momentum_buffer",)), [0, 0, 0, 1, 2])
