"""A comparison as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedrobust.report.compare import Candidate, Comparison, Setting
from fedrobust.report.comparison_tables import (
    averaged_in_words,
    differing_options,
    figures_table,
    runs_table,
    side_by_side,
    verdict_table,
)
from fedrobust.report.elements import plural, render

PICTURED = 9
"""Maximum number of candidates in pictures; if there are more, the best ones are shown."""
CHAPTERS = {
    "How well the global models read, and how well the attacks work": {
        "curves": "Held-out patients, after each evaluated round: up to three seeds have a thin line each and their "
        "mean, more have a band of one standard deviation. The numbers are the last means. Attack success: of the "
        "patches that are read correctly without the trigger, the share that the trigger turns into the attacker's "
        "label.",
    },
    "Whom the coordinators trusted": {
        "trust": "Reputation by round, of the attackers above and of the honest hospitals below: means over hospitals "
        "and seeds. A defence that tells them apart has a dark strip above a light one.",
        "reputation": "Reputation of each hospital by round in one run of each candidate, that of the lowest seed. The "
        "true attackers stand at the top, in vermilion, with a line below each round in which they attack; a bar "
        "marks a round after which the hospital was in quarantine.",
    },
}
"""The chapters of each setting: the pictures in each, with their captions."""
NAMED = 5
"""With more candidates than this, the table of their options has their numbers as heads."""
OVERVIEW = "settings"
"""The picture of all settings side by side."""


def comparison_html(
    name: str, comparison: Comparison, pictures: Mapping[str, bytes], missing: Mapping[str, str]
) -> str:
    """Return the comparison as one page without scripts or references to anything outside it.

    name: the title.
    pictures: name → PNG file; see `picture_name`.
    missing: name of a picture, or of a panel of one → why it is not there or empty.
    """
    candidates = comparison.candidates
    runs = sum(len(candidate.runs) for _, candidate in candidates)
    facts = [plural(runs, "run"), plural(len(candidates), "candidate"), _seeds([each for _, each in candidates])]
    if len(comparison.settings) > 1:
        facts.insert(1, plural(len(comparison.settings), "setting"))
    return render(
        "report/templates/comparison.html.j2",
        title=name,
        facts=facts,
        notes=comparison.notes,
        beside=side_by_side(comparison),
        unlike=differing_options({each.title: each.options for each in comparison.settings}),
        overview=pictures.get(OVERVIEW),
        settings=[_setting(comparison, each, place, missing) for place, each in enumerate(comparison.settings, 1)],
        pictures=pictures,
        runs=runs_table(comparison),
        shared=comparison.shared,
    )


def picture_name(name: str, place: int) -> str:
    """Return the name of a picture of the setting at `place`, e.g. `curves` for the first one, `2-curves`."""
    return name if place == 1 else f"{place}-{name}"


def _setting(comparison: Comparison, setting: Setting, place: int, missing: Mapping[str, str]) -> dict[str, Any]:
    """Return what the template shows of a setting."""
    few = len(setting.candidates) <= NAMED
    captions = {
        heading: {picture_name(name, place): caption for name, caption in texts.items()}
        for heading, texts in CHAPTERS.items()
    }
    absent = {
        heading: [why for name, why in missing.items() if name.partition(":")[0] in texts]
        for heading, texts in captions.items()
    }
    return {
        "title": setting.title,
        "facts": setting.facts,
        "averaged": averaged_in_words(setting),
        "ranked": len(setting.candidates) > 1,
        "verdict": verdict_table(comparison, setting),
        "sentences": setting.sentences(),
        "notes": setting.notes,
        "figures": figures_table(comparison, setting),
        "options": differing_options(
            {each.label if few else str(number): each.options for number, each in enumerate(setting.candidates, 1)}
        ),
        "captions": captions,
        "absent": absent,
        "cut": PICTURED if len(setting.candidates) > PICTURED else 0,
    }


def _seeds(candidates: Sequence[Candidate]) -> str:
    seeds = sorted({seed for candidate in candidates for seed in candidate.seeds})
    return f"seed{'s' if len(seeds) > 1 else ''} " + (
        ", ".join(map(str, seeds)) if len(seeds) <= 12 else f"{len(seeds)} in all"
    )
