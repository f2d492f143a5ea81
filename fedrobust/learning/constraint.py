"""Constraints of a local training besides its loss: attackers on the model limit and scale their updates with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Distance = Literal["norm", "squared_norm", "cosine"]
"""How far a model is from the global one: the Euclidean norm of the update u, its square, or 1 − cos of the angle
between the global weights and those that will be sent."""


@dataclass(frozen=True)
class Constraint:
    """Constraints of one local training, all of them off by default.

    w are the local weights, w_g the global ones, u = w − w_g is the update.
    """

    mask: NDArray[np.bool_] | None = None
    """(d,) the coordinates that may move; None: all of them."""
    radius: float | None = None
    """After every step w is projected onto the ball ‖w − w_g‖ ≤ radius; None: no ball."""
    alpha: float = 1.0
    """The loss is alpha · L_class + (1 − alpha) · L_anomaly, where L_anomaly is `distance`."""
    distance: Distance = "norm"
    scale: float = 1.0
    """The update that is sent is scale · u."""
    norm_bound: float | None = None
    """An update that is longer is shortened to this norm before it is sent; None: no limit."""

    def finish(self, update: NDArray[np.float32]) -> None:
        """Turn the `update` (d,) float32, in place, into the update that is sent.

        Mask and radius then hold exactly; during the steps they hold up to rounding.
        """
        if self.mask is not None:
            update[~self.mask] = 0
        if self.radius is not None:
            _shorten(update, self.radius)
        if self.scale != 1:
            with np.errstate(over="ignore"):
                update *= np.float32(self.scale)
        if self.norm_bound is not None:
            _shorten(update, self.norm_bound)


def _shorten(update: NDArray[np.float32], norm: float) -> None:
    """Scale the update, in place, to `norm` if it is longer; an update that is not finite stays as it is."""
    length = float(np.linalg.norm(update.astype(np.float64)))
    while norm < length < np.inf:  # once, or once more where rounding left it too long
        update *= np.float32(np.nextafter(np.float32(norm / length), np.float32(0)))
        length = float(np.linalg.norm(update.astype(np.float64)))
