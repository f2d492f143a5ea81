"""What MLflow holds of an experiment and its journal: flat names with texts, or with numbers. Pure functions."""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

from fedrobust.texts import visible

LONGEST = 500
"""Characters of a parameter's value that every MLflow server accepts."""
FAILED = "failed"
"""Tag: why a run that is a part of another one has no result."""

LONGEST_NAME = 250
"""Bytes of the name of a parameter, metric or run that every MLflow server accepts."""

_FORBIDDEN = re.compile(r"[^/\w.\- :]")
"""Characters that MLflow does not take in a name."""
_CLIENT_METRICS = {"reputation": "reputation", "anomaly": "anomaly", "weights": "weight"}


def flatten(settings: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as dotted paths and texts of at most `LONGEST` characters; a list of plain values stays one.

    Of paths that MLflow cannot tell apart the later ones get a number.
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


def metrics(record: Mapping[str, Any], width: int = 2) -> dict[str, float]:
    """The MLflow metrics of one journal record; client ids are padded to `width` digits, so that they sort.

    Figures that are not finite are left out: the journal writes null for them.
    """
    found: dict[str, Any] = {**record.get("metrics", {}), **record.get("detection", {})}
    for field, name in _CLIENT_METRICS.items():
        for client, value in (record.get(field) or {}).items():
            found[f"{name}/{int(client):0{width}d}"] = value
    for client, parts in (record.get("anomaly_parts") or {}).items():
        found |= {f"anomaly_{part}/{int(client):0{width}d}": value for part, value in parts.items()}
    if "quarantined" in record:
        found["defense/quarantined"] = len(record["quarantined"])
    for field in ("quarantined", "attacking"):
        # Of everyone who takes part, 0 included: a curve that only had ones would never come down.
        named = {int(client) for client in record.get(field) or ()}
        present = record["participants"] if field in record and "participants" in record else ()
        found |= {f"{field}/{int(client):0{width}d}": int(client) in named for client in present}
    if record.get("kind") == "round":
        found["round/skipped"] = "skipped" in record
        found["round/rejected"] = len(record.get("rejected") or ())
    losses = [loss for loss in (record.get("train_loss") or {}).values() if finite(loss)]
    if losses:
        found["train/loss"] = sum(losses) / len(losses)
    for name, seconds in (record.get("seconds") or {}).items():
        found["round/seconds" if name == "round" else f"round/{name}_seconds"] = seconds
    for name in ("upload_bytes", "server_bytes", "functionals"):
        if name in record:
            found[f"round/{name}"] = record[name]
    return {allowed(name): float(value) for name, value in found.items() if finite(value)}


def allowed(name: str) -> str:
    """The name of a parameter or metric, with `_` for what MLflow does not take in it, as in `nnm + median`.

    A name that is too long is cut, and has a digest in place of the rest.
    """
    plain = _FORBIDDEN.sub("_", name)
    if posixpath.normpath(plain) != plain or plain.startswith((".", "/")):
        plain = plain.replace("/", "_").lstrip(".") or "_"  # it would be another file's path
    if len(plain.encode()) <= LONGEST_NAME:
        return plain
    digest = sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{plain.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"


def shortened(text: str, longest: int = LONGEST) -> str:
    """`text` cut to `longest` characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def finite(value: Any) -> bool:
    """Whether MLflow can show `value`: a number that is neither NaN nor infinite."""
    return value is not None and math.isfinite(value)
