"""Malicious hospitals: who they are, when they attack, what they see, and what they do to data and updates."""

from fedrobust.attacks.adversary import (
    Always,
    Attack,
    CraftedAttack,
    DataAttack,
    FromRound,
    OnOff,
    Schedule,
    SingleShot,
    View,
    attacking,
    craft,
    draw_attackers,
)
from fedrobust.attacks.crafting import Alie, Gaussian, Ipm, NonFinite, SignFlip
from fedrobust.attacks.poisoning import Backdoor, LabelFlip, PatchBackdoor

__all__ = [
    "Alie",
    "Always",
    "Attack",
    "Backdoor",
    "CraftedAttack",
    "DataAttack",
    "FromRound",
    "Gaussian",
    "Ipm",
    "LabelFlip",
    "NonFinite",
    "OnOff",
    "PatchBackdoor",
    "Schedule",
    "SignFlip",
    "SingleShot",
    "View",
    "attacking",
    "craft",
    "draw_attackers",
]
