"""Duels: search for an attack against a defence, tune the defence against the attacks found, and so on."""

from fedrobust.duel.file import Duel
from fedrobust.duel.match import DuelPlan, load_duel

__all__ = ["Duel", "DuelPlan", "load_duel"]
