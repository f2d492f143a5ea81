"""Duels: an attacker is searched against a defence, the defence tuned against what was found, and so on."""

from fedrobust.duel.file import Duel
from fedrobust.duel.match import Match, load_duel

__all__ = ["Duel", "Match", "load_duel"]
