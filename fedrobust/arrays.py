"""Names for arrays that go from room to room."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, np.ndarray]
"""Arrays by name, as a checkpoint holds them; a slash in a name stands for a folder."""
Vector = NDArray[np.float32]
"""All trainable parameters of a model, or a change of them, (d,) float32."""
