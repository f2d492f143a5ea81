"""Backdoors that poison the model, too: the update is trained and scaled so that the backdoor gets in or stays."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, FieldSerializationInfo, field_serializer, model_validator

from fedrobust.attacks.backdoors import Backdoor, DataBackdoor, PatchBackdoor
from fedrobust.attacks.local import LocalAttack, LocalView
from fedrobust.learning.constraint import Constraint, Distance
from fedrobust.options import OneOf, refusal

_SHARED = tuple(field for field in Backdoor.model_fields if field != "name")
"""Options that are given beside a backdoor, not within it: its hospitals, schedule, target, ratio and so on."""


class ModelPoisoning(Backdoor):
    """A backdoor in the data, with an update that is constrained or scaled."""

    backdoor: Annotated[DataBackdoor, OneOf(DataBackdoor)] = PatchBackdoor(count=1)
    """The poisoned images: any backdoor in the data. Its hospitals, schedule, target and ratio are given beside it."""

    @model_validator(mode="before")
    @classmethod
    def _beside(cls, data: Any) -> Any:
        """Refuse options that belong beside `backdoor`; count=1 is a placeholder until `_hand_down`."""
        inner = data.get("backdoor") if isinstance(data, Mapping) else None
        if isinstance(inner, str):
            inner = {"name": inner}
        given = inner
        if isinstance(inner, Backdoor):  # made in Python, where one of the sizes must be named
            given = {key: getattr(inner, key) for key in inner.model_fields_set - {"fraction", "count", "clients"}}
        if not isinstance(given, Mapping):
            return data
        for key in _SHARED:
            if key in given and given[key] != data.get(key, cls.model_fields[key].get_default()):
                raise refusal("is given beside backdoor, and holds for it", f"backdoor.{key}")
        if not isinstance(inner, Mapping):
            return data
        return {**data, "backdoor": {key: value for key, value in inner.items() if key not in _SHARED} | {"count": 1}}

    @model_validator(mode="after")
    def _hand_down(self) -> Self:
        shared = {key: getattr(self, key) for key in _SHARED}
        object.__setattr__(self, "backdoor", self.backdoor.model_copy(update=shared))
        return self

    @field_serializer("backdoor")
    def _without_shared(self, backdoor: DataBackdoor, info: FieldSerializationInfo) -> dict[str, Any]:
        dumped = backdoor.model_dump(mode=info.mode, serialize_as_any=True)
        return {key: value for key, value in dumped.items() if key not in _SHARED}

    def check(self, classes: int, size: int) -> None:
        super().check(classes, size)
        self.backdoor.check(classes, size)

    def trigger(self, images: np.ndarray) -> np.ndarray:
        return self.backdoor.trigger(images)

    def poison(
        self, images: np.ndarray, labels: np.ndarray, generator: np.random.Generator, classes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.backdoor.poison(images, labels, generator, classes)

    @property
    def needs_step(self) -> bool:
        return self.backdoor.needs_step

    def local(self, view: LocalView) -> LocalAttack:
        inner = self.backdoor.local(view)
        return LocalAttack(inner.poison, self.bind(inner.constraint or Constraint(), view))

    @abstractmethod
    def bind(self, constraint: Constraint, view: LocalView) -> Constraint:
        """The constraint of this attack, added to that of its backdoor.

        constraint: of the backdoor; not changed.
        view: what the hospital knows.
        """


class ModelReplacement(ModelPoisoning):
    """Model replacement: the update of a backdoored model is multiplied by s (Bagdasaryan et al., AISTATS 2020).

    The paper's s = n/η replaces the mean of n models by the attacker's model if honest updates are small: late in
    training, once (`schedule: {name: single_shot, round: …}`). n is the number of participants, η the server's
    learning rate. As in the authors' code, the attackers of a round share s.
    """

    name: Literal["model_replacement"] = "model_replacement"
    scale: float | None = Field(default=None, gt=0)
    """The factor s; null: n/η, divided by the number of attackers in the round."""

    def bind(self, constraint: Constraint, view: LocalView) -> Constraint:
        return replace(constraint, scale=_replacing(self.scale, view))


class ConstrainAndScale(ModelPoisoning):
    """Constrain and scale: a backdoor that also hides from the server (Bagdasaryan et al., AISTATS 2020).

    The loss is α·L_class + (1 − α)·L_anomaly. The update is then scaled as in model replacement, up to a norm that the
    server accepts: s·u, or u·norm_bound/‖u‖ (the paper's train-and-scale) where that is shorter.
    """

    name: Literal["constrain_and_scale"] = "constrain_and_scale"
    alpha: float = Field(default=0.7, gt=0, le=1)
    """α: the share of the loss that is classification, of poisoned and of other images."""
    distance: Distance = "norm"
    """L_anomaly: the `norm` ‖w − w_global‖ (the authors' code), its square (`squared_norm`), or `cosine`: 1 − the
    cosine of the global weights and those that would be sent."""
    scale: float | None = Field(default=None, gt=0)
    """The factor s; null: that of model replacement."""
    norm_bound: float | None = Field(default=None, gt=0)
    """The largest norm of an update that is sent; null: no limit."""

    def bind(self, constraint: Constraint, view: LocalView) -> Constraint:
        return replace(
            constraint,
            alpha=self.alpha,
            distance=self.distance,
            scale=_replacing(self.scale, view),
            norm_bound=self.norm_bound,
        )


class Neurotoxin(ModelPoisoning):
    """Neurotoxin: a backdoor only in weights that others hardly change, so that it lasts (Zhang et al., ICML 2022).

    The share k of the coordinates that the last global update moved most, in absolute value, over all layers together,
    stay as they are; gradients are projected onto the other coordinates. In the first round, and after a round without
    a change, all may move.
    """

    name: Literal["neurotoxin"] = "neurotoxin"
    k: float = Field(default=0.05, gt=0, lt=1)
    """k: the share of the coordinates that stay."""

    @property
    def needs_step(self) -> bool:
        return True

    def bind(self, constraint: Constraint, view: LocalView) -> Constraint:
        return constraint if view.step is None else replace(constraint, mask=least_moved(view.step, self.k))


def least_moved(step: np.ndarray, share: float) -> np.ndarray:
    """A mask (d,) bool: all coordinates except the ⌊share · d⌋ that `step` (d,) moved most; of equal ones the first are
    left out.
    """
    moved = np.abs(step)
    out = int(share * len(step)) if moved.any() else 0
    mask = np.ones(len(step), dtype=bool)
    if out:
        least = np.partition(moved, len(moved) - out)[len(moved) - out]
        mask = moved <= least
        mask[np.flatnonzero(moved == least)[: out - int((moved > least).sum())]] = False
    return mask


def _replacing(scale: float | None, view: LocalView) -> float:
    return view.n / (view.server_lr * view.attackers) if scale is None else scale
