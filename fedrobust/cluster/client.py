"""Ray's client for a jobs server, restricted to one server and one token."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import requests
from ray.job_submission import JobSubmissionClient

from fedrobust.cluster.address import Cluster, redirected
from fedrobust.errors import ClusterError

PATIENCE = 120.0
"""Longest time in seconds without an answer of the server; Ray's own client has no limit."""
_QUIET = ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging")


class Client(JobSubmissionClient):
    """Ray's client, which sends the token of `cluster` only to its address.

    By default, Ray adds any token that it finds if RAY_AUTH_MODE is set, and uses the server in the environment instead
    of the one that it is given; and `requests` follows redirects, and replaces the token by what `~/.netrc` has for the
    host.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        for module in _QUIET:
            logging.getLogger(f"ray.{module}").setLevel(logging.WARNING)
        with _named(cluster.address):
            super().__init__(cluster.address, headers=dict(cluster.headers))

    def _do_request(self, method: str, endpoint: str, **given: Any) -> requests.Response:
        self._headers: Mapping[str, str] = dict(self._cluster.headers)
        direct = {"proxies": {"http": "", "https": ""}} if self._cluster.loopback else {}
        answer: requests.Response = super()._do_request(
            method, endpoint, allow_redirects=False, auth=_as_it_is, timeout=PATIENCE, **direct, **given
        )
        if 300 <= answer.status_code < 400:
            raise ClusterError(redirected(self._cluster, answer.headers.get("Location")))
        return answer


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Authentication that adds nothing, so that `requests` does not read `~/.netrc`."""
    return request


@contextmanager
def _named(address: str) -> Iterator[None]:
    """Set RAY_API_SERVER_ADDRESS to this server, because it has priority over the argument of Ray's client."""
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        yield
    finally:
        os.environ.pop("RAY_API_SERVER_ADDRESS")
        if before is not None:
            os.environ["RAY_API_SERVER_ADDRESS"] = before
