"""Pictures of a run, as matplotlib figures. Pure functions of plain arrays: no files, no global state.

>>> import numpy as np
>>> counts = np.array([[40, 10], [5, 30]])
>>> png(partition_figure(counts, ["benign", "malignant"], attackers={1: "sign_flip"}))[:4]
b'\\x89PNG'
"""

from fedrobust.figures.comparison import Lines, Panel, bands_figure, panels_figure, strips_figure
from fedrobust.figures.drawing import png
from fedrobust.figures.heat_maps import HEAT_MAPS, Marks, client_figure, parts_figure
from fedrobust.figures.model import confusion_figure, curves_figure, misread_figure
from fedrobust.figures.partition import partition_figure
from fedrobust.figures.timeline import timeline_figure

__all__ = [
    "HEAT_MAPS",
    "Lines",
    "Marks",
    "Panel",
    "bands_figure",
    "client_figure",
    "confusion_figure",
    "curves_figure",
    "misread_figure",
    "panels_figure",
    "partition_figure",
    "parts_figure",
    "png",
    "strips_figure",
    "timeline_figure",
]
