"""Duels: an attacker is searched against a defence, the defence tuned against what was found, and so on."""

from fedrobust.duel.file import Duel
from fedrobust.duel.match import DuelPlan, load_duel

__all__ = ["Duel", "DuelPlan", "load_duel"]
