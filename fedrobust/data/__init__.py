"""Patches: where they come from, how they are split, which hospital holds which, and how they are stained.

>>> patches = Histology(patients=50, patches_per_patient=4, size=16).load(seed=1)
>>> patches.images.shape, patches.label_names
((200, 16, 16, 3), ('benign', 'malignant'))
>>> parts = Split(validation=0.0, test=0.2).indices(patches, seed=1)
>>> len(parts["train"]), len(parts["test"])
(160, 40)
"""

from __future__ import annotations

from fedrobust.data.archives import Medmnist, Npz, Pcam
from fedrobust.data.folders import Camelyon17, Folder, Idc
from fedrobust.data.histology import Histology
from fedrobust.data.partition import ByCentre, ByGroup, Dirichlet, Iid, Partition, Quantity, Shards
from fedrobust.data.patches import Outline, Patches
from fedrobust.data.root import Root
from fedrobust.data.sources import Source
from fedrobust.data.split import Split, refuse_leaks
from fedrobust.data.stain import Macenko, NoNormalisation, Reinhard, StainNormalisation, StainShift
from fedrobust.data.table import PatchTable, TableColumns
from fedrobust.options import find_options

__all__ = [
    "ByCentre",
    "ByGroup",
    "Camelyon17",
    "Dirichlet",
    "Folder",
    "Histology",
    "Idc",
    "Iid",
    "Macenko",
    "Medmnist",
    "NoNormalisation",
    "Npz",
    "Outline",
    "Partition",
    "PatchTable",
    "Patches",
    "Pcam",
    "Quantity",
    "Reinhard",
    "Root",
    "Shards",
    "Source",
    "Split",
    "StainNormalisation",
    "StainShift",
    "TableColumns",
    "refuse_leaks",
]

find_options(__name__)
