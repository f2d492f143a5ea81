"""Where a cluster's jobs server is, and what it lets us in with."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrobust.errors import FedRobustError

LOCAL = Path("mlruns/cluster/state.json")
"""Where `make cluster` says which cluster it has started, below the working folder."""


class ClusterError(FedRobustError):
    """A cluster that cannot be reached or keeps us out, a job that is not there, a command that cannot be sent."""

    exit_code = 2


@dataclass(frozen=True)
class Cluster:
    """A cluster's jobs server, and what it lets us in with."""

    address: str
    token: str = ""
    """Empty: none was found."""
    origin: str = ""
    """Where the token comes from."""


def find_cluster(address: str | None = None) -> Cluster:
    """The cluster at `address`; else at RAY_API_SERVER_ADDRESS, at RAY_ADDRESS, or the one that `make cluster` started.

    Raises `ClusterError` where none is named, or a file with a token cannot be read.
    """
    local = _local()
    named = [address, os.environ.get("RAY_API_SERVER_ADDRESS"), os.environ.get("RAY_ADDRESS")]
    named = [each for each in named if each and each != "local"] or [local.get("address")]
    if named[0] is None:
        raise ClusterError(
            "no cluster is named: give --address http://HOST:8265, or set RAY_API_SERVER_ADDRESS; "
            "a local one is started by: make cluster"
        )
    found = named[0].rstrip("/")
    if not found.startswith(("http://", "https://")):
        raise ClusterError(f"{found} is not the address of a jobs server, which looks like http://HOST:8265")
    if found == local.get("address"):
        return Cluster(found, _token_file(Path(local["token"])), local["token"])
    return Cluster(found, *_token())


def _local() -> dict[str, Any]:
    try:
        return dict(json.loads(LOCAL.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}


def _token() -> tuple[str, str]:
    """The token and where it comes from, in Ray's order: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    if given := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return _token_file(Path(given)), f"{given} (RAY_AUTH_TOKEN_PATH)"
    usual = Path.home() / ".ray" / "auth_token"
    return (_token_file(usual), str(usual)) if usual.exists() else ("", "")


def _token_file(path: Path) -> str:
    try:
        token = path.expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ClusterError(f"the token in {path} cannot be read: {error.strerror}") from None
    if not token:
        raise ClusterError(f"{path} holds no token")
    return token
