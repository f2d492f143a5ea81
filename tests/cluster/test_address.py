"""Which cluster is asked, and which token goes there: to the address that was named, and nowhere else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cluster_state import DAMAGES, began, damage, started
from jobs_server import TOKEN, Server
from refused import refused

from fedrobust.cli import main
from fedrobust.cluster import Cluster, ClusterError, find_cluster, jobs, logs, submit
from fedrobust.cluster.local_state import read_state

SECRETS = ("of-the-user", TOKEN, "of-the-cluster", "of-netrc")


class Listener(ThreadingHTTPServer):
    """A server that remembers all that it was sent, and answers with `answer` or a redirect."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.heard: list[str] = []
        self.location: Callable[[str], str] | None = None
        self.status = 302
        self.answer = b"[]"
        super().__init__((host, 0), Handler)
        self.address = f"http://{host}:{self.server_port}"

    def heard_a_secret(self) -> bool:
        return any(secret in each for each in self.heard for secret in SECRETS)


class Handler(BaseHTTPRequestHandler):
    server: Listener

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.heard.append(f"{self.requestline}\n{self.headers}\n{body!r}")
        if self.server.location:
            self.send_response(self.server.status)
            self.send_header("Location", self.server.location(self.path))
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    do_GET = do_POST = do_PUT = do_CONNECT = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[Listener]:
    with Listener(host) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def stranger() -> Iterator[Listener]:
    with listening() as server:
        yield server


@pytest.fixture(autouse=True)
def home(nobody: Path) -> Path:
    """A home with a token for clusters of one's own."""
    (nobody / ".ray").mkdir()
    (nobody / ".ray" / "auth_token").write_text("of-the-user\n")
    return nobody


def called(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedrobust", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def planted(folder: Path, address: str, token: Path) -> None:
    """What somebody puts into a folder that others will copy."""
    state = folder / "mlruns" / "cluster" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"address": address, "token": str(token), "nodes": {}}))
    state.chmod(0o600)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("command", ["jobs", "logs", "stop", "submit"])
def test_a_folder_names_no_cluster_and_no_token(
    command: str, named: bool, stranger: Listener, workplace: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "id").write_text("of-netrc")
    planted(workplace, stranger.address, home / ("id" if named else ".ray/auth_token"))
    (workplace / "small.yaml").write_text("name: small\n")
    words = {"submit": ["--", "run", "small.yaml"], "jobs": []}.get(command, ["run-a"])
    assert called(monkeypatch, command, *words) == 2
    assert not stranger.heard
    if named:  # a stranger's file is not read where its address is the one that is asked for
        with pytest.raises(ClusterError, match=f"the cluster at {stranger.address}"):
            submit(["run", "small.yaml"], find_cluster(stranger.address))
        assert not any("of-netrc" in each for each in stranger.heard)


def test_where_the_cluster_is(monkeypatch: pytest.MonkeyPatch, workplace: Path, home: Path) -> None:
    (home / ".ray" / "auth_token").unlink()
    with pytest.raises(ClusterError, match="named"):
        find_cluster()
    monkeypatch.setenv("RAY_ADDRESS", "http://ray:8265")
    assert find_cluster() == Cluster("http://ray:8265")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://api:8265")
    assert find_cluster().address == "http://api:8265"
    assert find_cluster("https://given/").address == "https://given"


@pytest.mark.parametrize(
    "address",
    [
        "head:6379",
        "ray://head:10001",
        "auto",
        "http://",
        "http://:8265",
        "http://a:b",
        "http://a:99999",
        "http://[::1",
        "http://a b",
        "http://a\nHost: b",
        "http://a\x1b[31m",
        "http://user:password@a:8265",
        "http://a:8265?x=1",
        "http://a:8265#x",
        "http://a\\@b:8265",
        "http://ä:8265",
        "file:///etc/passwd",
    ],
)
def test_what_is_no_address_is_said_in_a_line(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, "jobs", "--address", address) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "http://HOST:8265" in err
    assert "\x1b" not in err and "password@" not in err


def test_the_cluster_of_the_folder_is_found_with_its_own_token(
    monkeypatch: pytest.MonkeyPatch, workplace: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Server("of-the-cluster") as server:
        place = started(workplace, server.address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "of-the-user")
        assert (found := find_cluster()).token == "of-the-cluster"
        assert found.description == f"{server.address}, with the token from make cluster"
        assert "of-the-cluster" not in repr(found)
        assert not jobs(found)
        assert find_cluster(server.address).token == "of-the-cluster"
        assert find_cluster("http://there").token == "of-the-user"
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        with pytest.raises(ClusterError, match="named"):
            find_cluster()
        monkeypatch.chdir(workplace)
        (place / "token").unlink()
        with refused(ClusterError, file=place / "token", says="no such file"):
            find_cluster()


@pytest.mark.parametrize("change", ["ended", "another process", "never", "another machine"])
def test_a_cluster_that_has_ended_is_asked_nothing(change: str, stranger: Listener, workplace: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as short:
        short.wait()
    changes: dict[str, Any] = {
        "ended": {"nodes": {"head": {"pid": short.pid, "began": began(os.getpid())}}},
        "another process": {"nodes": {"head": {"pid": os.getpid(), "began": "Mon Jan  1 00:00:00 2001"}}},
        "never": {"nodes": {}},
        "another machine": {"host": "elsewhere"},
    }[change]
    started(workplace, stranger.address, **changes)
    told = "no cluster is named" if change == "another machine" else f"{stranger.address}, has ended; start it again"
    with pytest.raises(ClusterError, match=told):
        find_cluster()
    assert not stranger.heard


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_state_is_one_line(
    how: str, stranger: Listener, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = started(workplace, stranger.address)
    damage(place, how)
    assert called(monkeypatch, "jobs") == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and err.startswith("error: ") and str(place) in err
    assert "\x1b" not in err
    assert not stranger.heard


@pytest.mark.parametrize("how", ["not JSON", "a list", "a directory", "dead link"])
def test_a_state_in_the_folder_is_not_even_read(
    how: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = workplace / "mlruns" / "cluster" / "state.json"
    state.parent.mkdir(parents=True)
    if how == "a directory":
        state.mkdir()
    elif how == "dead link":
        state.symlink_to("/nowhere")
    else:
        state.write_text({"not JSON": "{", "a list": "[]"}[how])
    assert called(monkeypatch, "jobs") == 2
    assert capsys.readouterr().err.startswith("error: no cluster is named")


def test_no_home_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ClusterError, match="home"):
        find_cluster("http://x")


def test_tokens_are_looked_for_in_the_order_of_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path) -> None:
    assert find_cluster("http://x").token == "of-the-user"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with refused(ClusterError, file=tmp_path / "token", says="no such file"):
        find_cluster("http://x")
    for content, told in {
        b" \n": "no token",
        b"a b": "blanks",
        b"secret\r\nX-Header: y": "blanks",
        b"\xff": "UTF-8",
        bytes(2_000_000): "1000000",
    }.items():
        (tmp_path / "token").write_bytes(content)
        with refused(ClusterError, file=tmp_path / "token", says=told) as caught:
            find_cluster("http://x")
        assert "secret" not in str(caught.value)
    (tmp_path / "token").unlink()
    (tmp_path / "token").mkdir()
    with refused(ClusterError, file=tmp_path / "token", says="no file"):
        find_cluster("http://x")
    (tmp_path / "token").rmdir()
    os.mkfifo(tmp_path / "token")
    with refused(ClusterError, file=tmp_path / "token", says="no file"):
        find_cluster("http://x")
    (tmp_path / "token").unlink()
    (tmp_path / "token").write_text("filed")
    assert find_cluster("http://x").token == "filed"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "direct")
    assert find_cluster("http://x").token == "direct"


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://127.0.0.1:1", "http://127.0.0.1:1, with the token from {}"),
        ("http://localhost:1", "http://localhost:1, with the token from {}"),
        ("http://there:1", "http://there:1, with the token from {}, unencrypted"),
        ("https://there", "https://there, with the token from {}"),
    ],
)
def test_what_is_said_of_a_token(address: str, told: str, home: Path) -> None:
    assert find_cluster(address).description == told.format(home / ".ray" / "auth_token")
    assert Cluster(address).description == f"{address}, without a token"


@pytest.mark.parametrize(
    ("there", "status"),
    [
        *(("another host", status) for status in (301, 302, 303, 307, 308)),
        *((there, 302) for there in ("another port", "itself", "to https")),
    ],
)
def test_a_redirect_carries_the_token_nowhere(
    there: str, status: int, stranger: Listener, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening("localhost") as server:
        target = {
            "another host": f"http://127.0.0.1:{stranger.server_port}",
            "another port": f"http://localhost:{stranger.server_port}",
            "itself": f"{server.address}/more",
            "to https": f"https://127.0.0.1:{stranger.server_port}",
        }[there]
        server.location, server.status = lambda path: target + path, status
        with pytest.raises(ClusterError, match=f"{server.address}.*{target}"):
            jobs(find_cluster(server.address))
        assert len(server.heard) == 1
        # Ray's own client asks more than the first question.
        monkeypatch.setattr("fedrobust.cluster.ray_jobs._knock", lambda cluster: None)
        (workplace / "small.yaml").write_text("name: small\n")
        with pytest.raises(ClusterError, match=target):
            submit(["run", "small.yaml"], find_cluster(server.address))
    assert len(server.heard) == 2 and server.heard_a_secret()
    assert not stranger.heard


def test_a_log_that_is_redirected_carries_no_token(stranger: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setattr("fedrobust.cluster.ray_jobs.PATIENCE", -1)
    with Server() as server:
        server.add("run-a")
        server.sends_on = f"http://localhost:{stranger.server_port}"
        with pytest.raises(ClusterError):
            list(logs(find_cluster(server.address), "run-a", follow=True))
    assert not stranger.heard_a_secret()


ASKS = """
import os, sys
from fedrobust.cluster import Cluster, ClusterError, jobs

before = dict(os.environ)
try:
    jobs(Cluster(*sys.argv[1:]))
except ClusterError:
    assert {name: value for name, value in os.environ.items() if name.startswith("RAY_A")} == {
        name: value for name, value in before.items() if name.startswith("RAY_A")
    }
    print("refused")
"""


def test_ray_adds_no_token_of_its_own(stranger: Listener, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would where RAY_AUTH_MODE is set; and `requests` would use a password of ~/.netrc instead of the token."""
    (home / ".netrc").write_text("default login me password of-netrc\n")
    (home / ".netrc").chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    command = [sys.executable, "-c", ASKS, stranger.address]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "refused\n"
    assert len(stranger.heard) == 2 and not any("uthorization" in each for each in stranger.heard)
    stranger.heard.clear()
    with pytest.raises(ClusterError):
        jobs(Cluster(stranger.address, "the-right-one"))
    assert all("Authorization: Bearer the-right-one" in each for each in stranger.heard)


def test_no_proxy_is_told_of_a_cluster_on_this_machine(stranger: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, stranger.address)
    with Server() as server:
        server.add("run-a")
        assert [job.id for job in jobs(find_cluster(server.address))] == ["run-a"]
    assert not stranger.heard


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b"3", b"null", b'{"ray_version": 3}', b'[{"a": 1}]', b"\xff"])
def test_a_server_that_is_no_cluster_is_one_line(
    answer: bytes, stranger: Listener, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger.answer = answer
    assert called(monkeypatch, "jobs", "--address", stranger.address) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_nothing_was_started_where_nothing_is_kept(workplace: Path) -> None:
    assert read_state(workplace) is None
