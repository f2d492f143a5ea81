"""Which Ray is meant, and whether it answers: Ray itself waits minutes for a cluster that is not there."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from urllib.parse import urlsplit

from ray.util import get_node_ip_address

from fedrobust.errors import ExperimentError, FederationError

CONNECT = 5.0
"""Seconds within which the host of a cluster must accept a connection."""
JOIN = 20.0
"""Seconds within which another process must have joined the cluster, before this one tries it."""
FORMS = "HOST:PORT (6379 by default) on a node of the cluster, ray://HOST:10001 from elsewhere, auto, or local"
"""What RAY_ADDRESS may be."""
TOKENS = "RAY_AUTH_TOKEN, the file in RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token, if RAY_AUTH_MODE is token"
TRIAL = """
import sys, ray
try:
    ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
except Exception as error:
    while error.__cause__ is not None:
        error = error.__cause__
    sys.exit(" ".join(str(error).split()))
"""


def cluster_address(environment: Mapping[str, str] = os.environ) -> str:
    """RAY_ADDRESS; `local` if it is unset or empty.

    Raises `ExperimentError` if it cannot be an address.
    """
    given = environment.get("RAY_ADDRESS", "").strip()
    if given in ("", "local", "auto"):
        return given or "local"
    if given.startswith(("http://", "https://")):
        raise ExperimentError(f"RAY_ADDRESS={given} is where jobs are submitted to; a run needs {FORMS}")
    try:
        host, port = _host_and_port(given)
    except ValueError:
        host, port = "", None
    if not host or not port or not given.isprintable() or " " in given:
        raise ExperimentError(f"RAY_ADDRESS={given!r} is no address; it may be {FORMS}")
    return given


def _host_and_port(address: str) -> tuple[str, int | None]:
    """Raises `ValueError` if it is no address."""
    parts = urlsplit(address if address.startswith("ray://") else f"//{address}")
    if parts.scheme not in ("", "ray") or "@" in parts.netloc or parts.query or parts.fragment or parts.path.strip("/"):
        raise ValueError(address)
    return parts.hostname or "", parts.port


def check_answer(address: str, patience: float = CONNECT) -> None:
    """Check that something accepts connections at the address of a cluster (`auto` is not tried).

    patience: seconds to wait.

    Raises `FederationError` otherwise.
    """
    if address in ("local", "auto"):
        return
    host, port = _host_and_port(address)
    if host in ("localhost", "127.0.0.1", "::1") and not address.startswith("ray://"):
        host = get_node_ip_address()  # where Ray looks, too
    connecting: Future[None] = Future()

    def connect() -> None:
        try:
            socket.create_connection((host, port), patience).close()
            connecting.set_result(None)
        except (OSError, UnicodeError) as error:  # the latter for impossible names
            connecting.set_exception(error)

    threading.Thread(target=connect, daemon=True).start()  # looking up a name may take longer
    try:
        connecting.result(patience)
    except TimeoutError:
        raise FederationError(f"RAY_ADDRESS={address}: no answer from {host}:{port} for {patience:g} s") from None
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FederationError(f"RAY_ADDRESS={address}: {host}:{port} cannot be reached: {reason}") from None


def check_joining(address: str, patience: float = JOIN) -> None:
    """Let another process join the cluster at an address: if it hangs or crashes there, that does no harm.

    patience: seconds to wait.

    Raises `FederationError` if it does not succeed in time.
    """
    if address == "local":
        return
    environment = os.environ | {"RAY_NUM_REDIS_GET_RETRIES": "3", "RAY_gcs_server_request_timeout_seconds": "10"}
    environment.pop("RAY_JOB_CONFIG_JSON_ENV_VAR", None)  # the trial must not look like this job
    command = [sys.executable, "-P", "-c", TRIAL, address]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as trial:
        try:
            told = trial.communicate(timeout=patience)[1]
            reason = first_sentence(told.decode(errors="replace"))
        except subprocess.TimeoutExpired:
            trial.kill()
            told = trial.communicate()[1]
            reason = f"there was no joining a cluster of Ray within {patience:g} s; it may be {FORMS}"
        except BaseException:
            trial.kill()
            raise
    if trial.returncode:
        if b"AuthToken" in told or b"Unauthenticated" in told:
            reason = f"the cluster does not accept the token, which comes from {TOKENS}"
        raise FederationError(f"RAY_ADDRESS={address}: {reason}")


def first_sentence(told: str) -> str:
    """The first sentence of Ray's last message, without a traceback."""
    last = (told.strip().splitlines() or ["no reason was given"])[-1]
    return re.sub(r".*Traceback .* [\w.]+(Error|Exception): ", "", last).split(". ")[0].rstrip(".")
