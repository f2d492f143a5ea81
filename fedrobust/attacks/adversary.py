"""The updates that malicious hospitals send instead of their trained ones.

The adversary comes between training and the protocol: it replaces the rows of malicious hospitals. Its knowledge is
enforced here: `craft` gives an attack only the data that its `knowledge` allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from fedrobust.attacks.attack import Attack, CraftedAttack, Preview, View
from fedrobust.attacks.attackers import Attackers, attack_error
from fedrobust.attacks.identity import Sybil
from fedrobust.attacks.rows import noisy
from fedrobust.seeds import generator


def craft(
    attackers: Attackers,
    participants: Iterable[int],
    updates: Mapping[int, np.ndarray],
    round: int,
    seed: int,
    step: np.ndarray | None = None,
    preview: Callable[[list[int]], Preview] | None = None,
) -> dict[int, np.ndarray]:
    """The updates that active attacks on updates (`Attack.crafts`) send: hospital → (d,) float32, by ascending id.

    All other hospitals send their trained update: honest ones, those with an attack on data, those whose attack is not
    active. The hospitals of one attack collude; different attacks do not.

    attackers: the malicious hospitals.
    participants: the hospitals of the round.
    updates: hospital → its trained update, (d,) float32. Those of honest hospitals are needed, and passed on, only
        where an active attack has the knowledge `all` or `aware`. Rows may be read-only; none is changed or copied.
    round: the number of the round.
    seed: of the run, for the attacks' random draws.
    step: (d,) the last change of the global model; None in the first round.
    preview: makes the preview of the defence for a group of attackers; needed, and called, only for attacks with the
        knowledge `aware`.

    Raises `ExperimentError` where such a preview is missing, or where an attack returns rows of another shape or type.
    """
    participants = sorted(participants)
    active = attackers.active(participants, round)
    crafted: dict[int, np.ndarray] = {}
    for index, attack in enumerate(attackers.attacks):
        group = [client for client in active if attackers.drawn[client] == index]
        if not group or not attack.crafts:
            continue
        rows = np.array([updates[group[0]]])
        draws = generator(seed, "craft", round, index)
        if isinstance(attack, CraftedAttack):
            if attack.knowledge == "aware" and preview is None:
                raise attack_error(index, "", f"{attack.name} knows the defence; no preview of it is given")
            view = _view(attack, group, participants, updates, round, draws, step, preview)
            rows = attack.craft(view)
            expected = (len(group), len(view.own[0]))
            if rows.shape != expected or rows.dtype != np.float32:
                found = f"{rows.dtype} {rows.shape}"
                raise attack_error(index, "", f"{attack.name} must craft float32 {expected}", found)
        if isinstance(attack.identity, Sybil):
            copies = np.broadcast_to(rows[0], (len(group), rows.shape[1]))
            rows = noisy(copies, attack.identity.noise, draws)
        crafted.update(zip(group, rows, strict=True))
    return dict(sorted(crafted.items()))


def _view(
    attack: Attack,
    group: list[int],
    participants: Sequence[int],
    updates: Mapping[int, np.ndarray],
    round: int,
    draws: np.random.Generator,
    step: np.ndarray | None,
    preview: Callable[[list[int]], Preview] | None,
) -> View:
    """What the `group` may see."""
    others = None
    if attack.knowledge in ("all", "aware"):
        # A row that is not finite is no update, and every attacker that sees it can see that.
        others = [c for c in participants if c not in group and bool(np.isfinite(updates[c]).all())]
    return View(
        own=tuple(_read_only(updates[client]) for client in group),
        others=None if others is None else tuple(_read_only(updates[client]) for client in others),
        n=len(participants),
        round=round,
        generator=draws,
        clients=others,
        step=None if step is None else _read_only(step),
        preview=preview(group) if attack.knowledge == "aware" and preview is not None else None,
    )


def _read_only(row: np.ndarray) -> np.ndarray:
    view = row.view()
    view.flags.writeable = False
    return view
