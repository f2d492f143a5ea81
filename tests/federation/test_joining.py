"""Which Ray is meant by RAY_ADDRESS, and that nobody waits for one that is not there."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fedrobust.errors import ExperimentError, FederationError
from fedrobust.federation import joining
from fedrobust.federation.joining import check_answer, check_joining, cluster_address, first_sentence


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (None, "local"),
        ("", "local"),
        (" ", "local"),
        ("local", "local"),
        (" auto\n", "auto"),
        ("10.0.0.1:6379", "10.0.0.1:6379"),
        ("head-node.cluster:6379 ", "head-node.cluster:6379"),
        ("[fe80::1]:6379", "[fe80::1]:6379"),
        ("ray://head:10001", "ray://head:10001"),
        ("ray://head:10001/", "ray://head:10001/"),
    ],
)
def test_what_is_an_address(given: str | None, meant: str) -> None:
    assert cluster_address({} if given is None else {"RAY_ADDRESS": given}) == meant


@pytest.mark.parametrize(
    ("given", "told"),
    [
        *((given, "is no address; it may be HOST:PORT") for given in (
            "head", "head:", ":6379", "head:port", "head:99999999", "head:0", "he ad:6379", "head:63\t79", "ray://head",
            "ray://", "ray://:10001", "Local", "me@head:6379", "head:6379/x", "head:6379?x", "redis://head:6379",
            "[fe80::1:6379", "host\x1b[31m:6379", "a:1,b:2",
        )),
        ("http://head:8265", "is where jobs are submitted to"),
        ("https://head:8265/x", "is where jobs are submitted to"),
    ],
)  # fmt: skip
def test_what_is_none(given: str, told: str) -> None:
    with pytest.raises(ExperimentError, match=told) as raised:
        cluster_address({"RAY_ADDRESS": given})
    assert str(raised.value).isprintable()  # one line, and nothing that a terminal obeys


class Http(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def listening(kind: str) -> Iterator[str]:
    """HOST:PORT of something that is no Ray."""
    host = joining.get_node_ip_address()
    with ExitStack() as stack:
        if kind == "an HTTP server":
            server = stack.enter_context(HTTPServer((host, 0), Http))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            yield f"{host}:{server.server_port}"
            return
        held = stack.enter_context(socket.socket())
        held.bind((host, 0))
        place = held.getsockname()
        if kind == "nothing":
            held.close()
        else:
            held.listen(0 if kind == "a black hole" else 50)
        if kind == "a black hole":  # whose queue is full: what is sent there is not answered
            for _ in range(4):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(place)
        yield f"{host}:{place[1]}"


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize(
    ("kind", "told"), [("nothing", "cannot be reached: Connection refused"), ("a black hole", "no answer from")]
)
def test_nothing_is_there(scheme: str, kind: str, told: str) -> None:
    with listening(kind) as place, pytest.raises(FederationError, match=f"^RAY_ADDRESS={scheme}{place}: .*{told}"):
        check_answer(f"{scheme}{place}", patience=0.3)


@pytest.mark.parametrize("host", ["nobody.invalid", "long" * 20, "a..b"])
def test_a_name_that_nobody_has(host: str) -> None:
    with pytest.raises(FederationError, match=f"^RAY_ADDRESS={host}:6379: "):
        check_answer(f"{host}:6379", patience=30)


def test_a_name_that_is_looked_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [over.wait(60)][1:])
    with pytest.raises(FederationError, match=r"head:6379 for 0\.1 s"):
        check_answer("head:6379", patience=0.1)
    over.set()


@pytest.mark.parametrize("kind", ["an HTTP server", "a silent one"])
@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize("patience", [0.3, pytest.param(8.0, marks=pytest.mark.long)])
def test_something_else_is_there(scheme: str, kind: str, patience: float) -> None:
    with listening(kind) as place:
        check_answer(f"{scheme}{place}")
        with pytest.raises(FederationError, match=r"joining .* HOST"):
            check_joining(f"{scheme}{place}", patience)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trial", "told"),
    [
        ("import sys; sys.exit('Version mismatch: Ray 2.52.0 there. Please do this. And that.')", "Ray 2.52.0 there$"),
        ("import sys; sys.stderr.write('W: InvalidAuthToken: wrong'); sys.exit(1)", "does not accept the token, which"),
        ("import sys, time; print('InvalidAuthToken', file=sys.stderr, flush=True); time.sleep(60)", "not accept the"),
        ("import os; os.abort()", "no reason was given"),
        ("import sys; sys.exit('No GCS: Traceback (most recent call): a b.RpcError: no such method')", ": no such"),
    ],
)  # fmt: skip
def test_why_a_cluster_cannot_be_joined(trial: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "TRIAL", trial)
    with pytest.raises(FederationError, match=told) as raised:
        check_joining("head:6379", patience=3)
    assert "\n" not in str(raised.value)


def test_what_lies_in_the_working_folder_is_not_taken_for_ray(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workplace / "ray.py").write_text("")
    monkeypatch.setattr(joining, "TRIAL", "import sys, ray; sys.exit(ray.__file__)")
    with pytest.raises(FederationError) as raised:
        check_joining("head:6379", patience=60)
    assert str(workplace) not in str(raised.value)
    assert "__init__" in str(raised.value)


def test_a_long_text_becomes_a_sentence() -> None:
    assert first_sentence("") == "no reason was given"
    assert first_sentence("warning\nIt is full. Delete something.") == "It is full"


HEAD = """
import sys, ray
ray.init(address="local", include_dashboard=False, num_cpus=1, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.mark.long
def test_a_cluster_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [tmp_path / name for name in ("right", "wrong")]
    for path in tokens:
        path.write_text(path.name * 8)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tokens[0]))
    with subprocess.Popen(
        [sys.executable, "-c", HEAD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as head:
        assert head.stdin is not None
        assert head.stdout is not None
        try:
            address = head.stdout.readline().strip()
            check_answer(address)
            check_joining(address, patience=60)
            monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tokens[1]))
            with pytest.raises(FederationError, match="token"):
                check_joining(address, patience=60)
            monkeypatch.setattr(joining, "TRIAL", joining.TRIAL.replace("try:", "ray.__version__ = '2.52.0'\ntry:"))
            monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tokens[0]))
            with pytest.raises(FederationError, match="Version mismatch"):
                check_joining(address, patience=60)
        finally:
            head.stdin.close()
            head.wait(60)
