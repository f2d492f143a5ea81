"""What MLflow stores of an experiment and its journal: flat names with texts, or with numbers. Pure functions."""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeGuard

from fedrobust.records import EvaluationRecord, Record, RoundRecord
from fedrobust.texts import visible

LONGEST = 500
"""Maximum length of a parameter's value, in characters, that every MLflow server accepts."""
FAILED = "failed"
"""Tag of a run with the status FAILED: the error that ended it."""
STOPPED = "stopped"
"""Tag of a run with the status KILLED: why it was ended although nothing was wrong with it, e.g. that its trial was
pruned."""

LONGEST_NAME = 250
"""Maximum length of a parameter's, metric's or run's name, in bytes, that every MLflow server accepts."""

_FORBIDDEN = re.compile(r"[^/\w.\- :]")
"""Characters that MLflow does not accept in a name."""


@dataclass(frozen=True)
class StepFigures:
    """Figures that do not come from a run's record, e.g. those of a sweep after a trial."""

    step: int
    figures: Mapping[str, float]


def flatten(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return nested settings as dotted path → text of at most `LONGEST` characters; a list of plain values stays one
    text.

    If MLflow cannot distinguish several paths, numbers are added to the later ones.
    """
    flat: dict[str, str] = {}
    for path, value in _leaves(settings, ""):
        number, name = 2, allowed(path)
        while name in flat:
            number, name = number + 1, allowed(f"{path} {number}")
        text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
        flat[name] = shortened(visible(text, keep="\n\t"))
    return flat


def _leaves(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            value = dict(enumerate(value))
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}.")
        else:
            yield path, value


def metrics(
    record: Record | StepFigures, width: int = 2, hospitals: bool = True, attackers: Collection[int] | None = None
) -> dict[str, float]:
    """Return the MLflow metrics of one record; client ids are padded to `width` digits, so that they sort.

    hospitals: include the figures of single hospitals.
    attackers: the malicious hospitals, if means over them and over the others replace figures of single hospitals.

    Figures that are not finite, which are None in records, are left out.
    """
    found: dict[str, float | None] = {}
    if isinstance(record, StepFigures):
        found |= record.figures
    elif isinstance(record, EvaluationRecord):
        found |= record.metrics
    elif isinstance(record, RoundRecord):
        found |= _of_round(record)
        if hospitals and attackers is None:
            found |= _of_hospitals(record, width)
        elif attackers is not None:
            found |= _of_groups(record, attackers)
    return {allowed(name): float(value) for name, value in found.items() if finite(value)}


def _of_round(record: RoundRecord) -> dict[str, float | None]:
    found: dict[str, float | None] = dict(record.detection)
    found["defense/quarantined"] = len(record.quarantined)
    found["round/skipped"] = record.skipped is not None
    found["round/rejected"] = len(record.rejected)
    if record.referee is not None:
        found["defense/overruled"] = record.referee.chosen != "defence" and not record.referee.refused
        found["defense/refused"] = record.referee.refused
        found |= {f"referee/{name}": loss for name, loss in record.referee.losses.items()}
    if record.jury is not None:
        found["defense/overruled"] = record.jury.chosen != "defence"
        found |= {f"jury/{name}": gain for name, gain in record.jury.gains.items()}
    if record.repair is not None:
        found["defense/repair_steps"] = record.repair
    losses = [loss for loss in record.train_loss.values() if loss is not None]
    if losses:
        found["train/loss"] = sum(losses) / len(losses)
    for name, seconds in record.seconds.items():
        found["round/seconds" if name == "round" else f"round/{name}_seconds"] = seconds
    for name in ("upload_bytes", "server_bytes", "functionals", "products"):
        found[f"round/{name}"] = getattr(record, name)
    return found


def _of_hospitals(record: RoundRecord, width: int) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    by_client = {"reputation": record.reputation, "anomaly": record.anomaly, "weight": record.weights or {}}
    for name, figures in by_client.items():
        found |= {f"{name}/{client:0{width}d}": value for client, value in figures.items()}
    for client, parts in record.anomaly_parts.items():
        found |= {f"anomaly_{part}/{client:0{width}d}": value for part, value in parts.items()}
    for name, named in (("quarantined", record.quarantined), ("attacking", record.attacking)):
        # For all participants, 0 included: a curve of ones only could not show when it ends.
        found |= {f"{name}/{client:0{width}d}": client in named for client in record.participants}
    return found


def _of_groups(record: RoundRecord, attackers: Collection[int]) -> dict[str, float | None]:
    """Return means over the attackers and over the honest hospitals, and how many of each are in quarantine."""
    bad, found = set(attackers), dict[str, float | None]()
    by_client = {"reputation": record.reputation, "anomaly": record.anomaly, "weight": record.weights or {}}
    for group, malicious in (("attackers", True), ("honest", False)):
        for name, figures in by_client.items():
            own = [value for client, value in figures.items() if (client in bad) == malicious and finite(value)]
            if own:
                found[f"{name}/{group}"] = sum(own) / len(own)
        found[f"quarantined/{group}"] = sum((client in bad) == malicious for client in record.quarantined)
    return found


def allowed(name: str) -> str:
    """Return the name of a parameter or metric, with `_` for characters that MLflow does not accept, as in `nnm +
    median`.

    If the name is too long, a digest replaces the rest.
    """
    plain = _FORBIDDEN.sub("_", name)
    if posixpath.normpath(plain) != plain or plain.startswith((".", "/")):
        plain = plain.replace("/", "_").lstrip(".") or "_"  # it would be the path of a different file
    if len(plain.encode()) <= LONGEST_NAME:
        return plain
    digest = sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{plain.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"


def shortened(text: str, longest: int = LONGEST) -> str:
    """`text` cut to `longest` characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def finite(value: float | None) -> TypeGuard[float]:
    """Return whether MLflow can show `value`: a number that is neither NaN nor infinite."""
    return value is not None and math.isfinite(value)
