"""Names for the arrays that are passed between rooms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, np.ndarray]
"""Arrays by name, as a checkpoint stores them; a slash in a name separates folder and file."""
Vector = NDArray[np.float32]
"""All trainable parameters of a model, or a change of them: (d,) float32."""
