"""Chance: what a model that has learnt nothing reaches."""

from __future__ import annotations

LEARNT = 0.02
"""A model has learnt something if its figure is better than chance by this margin."""
MORE = "more rounds or data"
"""The remedy where nothing has been learnt."""


def at_chance(figure: float, chance: float) -> bool:
    """Return whether a model has learnt nothing; False for NaN.

    figure: a figure of which more is better, e.g. balanced accuracy.
    chance: that of a model which has learnt nothing.
    """
    return figure - chance < LEARNT


def against(figure: float, chance: float) -> str:
    """Return both numbers as a text, e.g. `0.503 against 0.5`."""
    return f"{figure:.3f} against {chance:.3g}"
