"""The address of a cluster's jobs server, and the token for it."""

from __future__ import annotations

import ipaddress
import os
import platform
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedrobust.cluster.local_state import TOKEN, home, kept, owned_text, read_state, runs, small_text
from fedrobust.errors import ClusterError, Origin, Problem
from fedrobust.texts import visible

LOCAL = Path("mlruns/cluster")
"""The folder of a local cluster's logs, below the working folder; its address and token are stored elsewhere."""


@dataclass(frozen=True)
class Cluster:
    """A cluster's jobs server, and the token for it."""

    address: str
    token: str = field(default="", repr=False)
    """An empty text if no token was found."""
    origin: str = ""
    """The source of the token."""

    @property
    def loopback(self) -> bool:
        """Whether it is on this machine."""
        return is_loopback(self.address)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    @property
    def description(self) -> str:
        """The address, and which token is sent to it, for messages."""
        if not self.token:
            return f"{self.address}, without a token"
        open_line = self.address.startswith("http://") and not self.loopback
        return f"{self.address}, with the token from {self.origin}" + (", unencrypted" if open_line else "")


def find_cluster(address: str | None = None) -> Cluster:
    """Find the cluster at `address`, RAY_API_SERVER_ADDRESS or RAY_ADDRESS, or else the one that `make cluster`
    started.

    The token of a cluster that `make cluster` started is sent only to that cluster, and no other token is sent to it.

    Raises `ClusterError` if no cluster is named, or if its stored state or a token cannot be read.
    """
    local = read_state(LOCAL)
    here = local is not None and local.host == platform.node()
    named = [address, os.environ.get("RAY_API_SERVER_ADDRESS"), os.environ.get("RAY_ADDRESS")]
    named = [each for each in named if each and each != "local"] or [local.address if local and here else None]
    if named[0] is None:
        raise ClusterError(
            "no cluster is named: give --address http://HOST:8265, or set RAY_API_SERVER_ADDRESS; "
            "docs/cluster.md shows how to start one"
        )
    found = _checked(named[0])
    if local is None or not here or found != local.address:
        return Cluster(found, *_token())
    if "head" not in local.nodes or not runs(local.nodes["head"]):  # somebody else may answer at its port now
        raise ClusterError(f"the cluster of this folder, {found}, has ended; start it again with: make cluster")
    path = kept(LOCAL) / TOKEN
    return Cluster(found, _read(path, owned_text), "make cluster")


def redirected(cluster: Cluster, place: str | None) -> str:
    """Return the message for a redirect to `place`. Redirects are not followed: the server there would get the token,
    or the files."""
    there = visible(urllib.parse.urljoin(cluster.address, place or ""))
    return f"{cluster.address} sends us on to {there}, where we do not go: give the address of the jobs server itself"


def is_loopback(address: str) -> bool:
    """Return whether a URL names this machine."""
    host = urllib.parse.urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _checked(address: str) -> str:
    """Return the address without a trailing `/`. Raises `ClusterError` if it is not that of a jobs server."""
    found = address.rstrip("/")
    try:
        parts = urllib.parse.urlsplit(found)
        proper = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        proper &= re.search(r"[\s\\]", found) is None and visible(found) == found and found.isascii()
    except ValueError:
        proper = False
    if not proper:
        raise ClusterError(f"{visible(found)} is not the address of a jobs server, which looks like http://HOST:8265")
    if parts.username is not None or parts.query or parts.fragment:
        raise ClusterError("an address of a jobs server is http://HOST:8265, without a name, password or question")
    return found


def _token() -> tuple[str, str]:
    """Return the token and its source, in Ray's order: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return _proper(token, Origin(text="RAY_AUTH_TOKEN")), "RAY_AUTH_TOKEN"
    if given := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return _read(Path(given).expanduser()), f"{visible(given)} (RAY_AUTH_TOKEN_PATH)"
    usual = home() / ".ray" / "auth_token"
    return (_read(usual), str(usual)) if os.path.lexists(usual) else ("", "")


def _read(path: Path, read: Callable[[Path], str] = small_text) -> str:
    try:
        return _proper(read(path).strip(), Origin(path))
    except FileNotFoundError:
        raise ClusterError(Problem("the token cannot be read: there is no such file").at(path)) from None


def _proper(token: str, origin: Origin) -> str:
    """Return the token if it is valid in an HTTP header; an error of the HTTP library would show the token."""
    if not token:
        raise ClusterError(Problem("holds no token").at(origin))
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        reason = "holds no token: there are blanks or characters in it that no header takes"
        raise ClusterError(Problem(reason).at(origin))
    return token
