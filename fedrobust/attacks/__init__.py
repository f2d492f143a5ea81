"""Malicious hospitals: which ones they are, when they attack, what they see, and how they change data and updates.

One of five hospitals sends the reverse of its update, four times as long:

>>> import numpy as np
>>> attackers = Attackers.draw([SignFlip(scale=4.0, count=1)], clients=5, seed=1)
>>> attackers.names
{1: 'sign_flip'}
>>> updates = {client: np.ones(3, dtype=np.float32) for client in range(5)}
>>> craft(attackers, participants=updates, updates=updates, round=1, seed=1)
{1: array([-4., -4., -4.], dtype=float32)}
"""

from fedrobust.attacks.adversary import craft
from fedrobust.attacks.artefacts import Artefacts
from fedrobust.attacks.attack import Absent, Attack, CraftedAttack, DataAttack, Preview, Search, View
from fedrobust.attacks.attackers import Attackers, draw_attackers
from fedrobust.attacks.backdoors import (
    Backdoor,
    BlendedBackdoor,
    DataBackdoor,
    Dba,
    EdgeCase,
    PatchBackdoor,
    StainBackdoor,
)
from fedrobust.attacks.copies import FreeRider, Mimic
from fedrobust.attacks.crafting import Alie, CollusiveAttack, Gaussian, Ipm, NonFinite, SignFlip
from fedrobust.attacks.distance import MinMax, MinSum
from fedrobust.attacks.fang import FangKrum, FangTrim
from fedrobust.attacks.identity import Identity, OneEach, Sybil, Whitewash
from fedrobust.attacks.local import LocalAttack, LocalView, Pleasing
from fedrobust.attacks.model_poisoning import ConstrainAndScale, ModelPoisoning, ModelReplacement, Neurotoxin
from fedrobust.attacks.orthogonal import Rop
from fedrobust.attacks.poisoning import LabelFlip, TargetedFlip
from fedrobust.attacks.rows import Vectors
from fedrobust.attacks.schedules import Always, OnOff, Schedule, SingleShot, Sleeper
from fedrobust.attacks.searched import OptimalAlie, OptimalIpm, SearchedAttack
from fedrobust.options import find_options

__all__ = [
    "Absent",
    "Alie",
    "Always",
    "Artefacts",
    "Attack",
    "Attackers",
    "Backdoor",
    "BlendedBackdoor",
    "CollusiveAttack",
    "ConstrainAndScale",
    "CraftedAttack",
    "DataAttack",
    "DataBackdoor",
    "Dba",
    "EdgeCase",
    "FangKrum",
    "FangTrim",
    "FreeRider",
    "Gaussian",
    "Identity",
    "Ipm",
    "LabelFlip",
    "LocalAttack",
    "LocalView",
    "Mimic",
    "MinMax",
    "MinSum",
    "ModelPoisoning",
    "ModelReplacement",
    "Neurotoxin",
    "NonFinite",
    "OnOff",
    "OneEach",
    "OptimalAlie",
    "OptimalIpm",
    "PatchBackdoor",
    "Pleasing",
    "Preview",
    "Rop",
    "Schedule",
    "Search",
    "SearchedAttack",
    "SignFlip",
    "SingleShot",
    "Sleeper",
    "StainBackdoor",
    "Sybil",
    "TargetedFlip",
    "Vectors",
    "View",
    "Whitewash",
    "craft",
    "draw_attackers",
]

find_options(__name__)
