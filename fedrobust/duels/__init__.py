"""Duels: search for an attack against a defence, tune the defence against the attacks found, and so on."""

from fedrobust.duels.file import Duel
from fedrobust.duels.match import DuelPlan, load_duel

__all__ = ["Duel", "DuelPlan", "load_duel"]
