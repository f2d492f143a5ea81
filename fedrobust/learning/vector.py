"""A model as one flat vector: trainable parameters in `named_parameters` order, float32."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedrobust.arrays import Vector
from fedrobust.learning.models import Model


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of `module` that make up the vector, in its order."""
    return [parameter for _, parameter in module.named_parameters() if parameter.requires_grad]


def size(module: nn.Module) -> int:
    """d, the length of the module's vector."""
    return sum(parameter.numel() for parameter in trainable(module))


def flatten(tensors: Iterable[Tensor]) -> Vector:
    """The `tensors`, of any device and memory format, as one new contiguous (d,) float32 array."""
    return torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors]).cpu().numpy()


def parameters_to_vector(module: nn.Module) -> Vector:
    """The trainable parameters of `module`, (d,) float32; a copy."""
    return flatten(trainable(module))


def split(vector: NDArray[Any], like: Sequence[Tensor]) -> list[Tensor]:
    """A (d,) vector cut into new CPU tensors.

    vector: (d,), which may be read-only.
    like: tensors with the shapes of the result.

    Raises `ValueError` where the vector has another length than `like` has elements.
    """
    expected = sum(tensor.numel() for tensor in like)
    if vector.shape != (expected,):
        raise ValueError(f"the vector has shape {vector.shape}, the parameters need ({expected},)")
    pieces = torch.split(torch.tensor(vector), [tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def load_vector(module: nn.Module, vector: Vector) -> None:
    """Overwrite the trainable parameters of `module` in place; `vector` (d,) may be read-only and is not kept."""
    parameters = trainable(module)
    with torch.no_grad():
        for parameter, piece in zip(parameters, split(vector, parameters), strict=True):
            parameter.copy_(piece)


def with_weights(model: Model, classes: int, size: int, seed: int, vector: Vector) -> nn.Module:
    """A new network on the CPU, as `Model.build` makes it, with the trainable parameters `vector` (d,)."""
    network = model.build(classes, size, seed)
    load_vector(network, vector)
    return network


def optimizer_to_vector(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> Vector | None:
    """The state of `optimizer` as one float32 vector; None when there are no names.

    names: of its state of one parameter, see `LocalOptimizer.state_names`.

    The vector has each named tensor of all parameters in turn, and `step` as one element. A parameter that never had a
    gradient counts as zeros.
    """
    if not names:
        return None
    states = [(parameter, optimizer.state.get(parameter, {})) for parameter in _parameters(optimizer)]
    parts: list[Tensor] = []
    for name in names:
        if name == "step":
            parts.append(torch.tensor(max(float(state.get("step", 0)) for _, state in states)))
        else:
            parts += [state.get(name, torch.zeros_like(parameter)) for parameter, state in states]
    return flatten(part.cpu() for part in parts)


def load_optimizer(optimizer: torch.optim.Optimizer, names: Sequence[str], vector: Vector | None) -> None:
    """Set the state of `optimizer` to that of `vector`, or clear it where `vector` is None.

    names: of its state of one parameter, see `LocalOptimizer.state_names`.
    vector: see `optimizer_to_vector`.

    Raises `ValueError` where the vector does not fit.
    """
    optimizer.state.clear()
    if vector is None or not names:
        return
    parameters = _parameters(optimizer)
    count = [torch.zeros(())]
    pieces = iter(split(vector, [part for name in names for part in (count if name == "step" else parameters)]))
    for name in names:
        if name == "step":
            steps = next(pieces)
            for parameter in parameters:
                optimizer.state[parameter][name] = steps.to(parameter.device, copy=True)
        else:
            for parameter in parameters:
                optimizer.state[parameter][name] = torch.empty_like(parameter).copy_(next(pieces))


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
