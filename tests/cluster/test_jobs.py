"""Jobs as users see them: checked before they are sent, called by name, with progress, without shell text."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import typer
from jobs_server import Server
from submitted import called

import fedrobust.cluster.links as links_room
from fedrobust.cli.application import stoppable
from fedrobust.cluster import find_cluster, find_job, jobs, runs_page, tracking_server
from fedrobust.cluster.local_state import STATE, State, kept
from fedrobust.cluster.output import progress, shown
from fedrobust.errors import Interrupted, Problem
from fedrobust.job import MARK, as_typed, tell

MATRIX = """
name: mine
experiment: small.yaml
settings: {here: {fraction: 0.2}}
attacks: {flip: {name: sign_flip, scale: 9}}
defences: {mean: {aggregation: {rule: mean}}}
"""
SWEEP = """
name: tune
experiment: small.yaml
space: {learning.local.optimizer.lr: {log: [0.01, 1.0]}}
objectives: [{metric: test/balanced_accuracy, direction: maximize}]
"""
DUEL = """
name: fight
experiment: small.yaml
attacks: {flip: {name: sign_flip, scale: 9, fraction: 0.2}}
attacker: {trials: 2, space: [{name: ipm, fraction: 0.2, epsilon: {log: [0.1, 1.0]}}]}
defences: {mean: {options: {aggregation: {rule: mean}}}}
objective: {metric: test/balanced_accuracy, direction: maximize}
"""


@pytest.fixture
def studies(folder: Path) -> Path:
    """The working folder, with a matrix, a sweep and a duel."""
    for name, text in (("matrix", MATRIX), ("sweep", SWEEP), ("duel", DUEL)):
        (folder / "experiments" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "experiments/small.yaml", "aggregation.rule=krumm"], "did you mean 'krum'?"),
        (["run", "experiments/small.yaml", "--resumee", "x"], "No such option: --resumee"),
        (["matrix", "experiments/matrix.yaml", "only.defences=[median]"], "no 'median' in this matrix"),
        (["matrix", "experiments/matrix.yaml", "--teams", "0"], "Invalid value for '--teams'"),
        (["matrix", "experiments/matrix.yaml", "--quickly"], "No such option: --quickly"),
        (["sweep", "experiments/sweep.yaml", "trials=many"], "override 'trials=many'"),
        (["duel", "experiments/duel.yaml", "turns=-1"], "override 'turns=-1'"),
    ],
)
def test_a_mistake_is_found_before_anything_is_sent(
    words: list[str], says: str, server: Server, studies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called("submit", "--", *words) == 2
    assert says in capsys.readouterr().err
    assert not server.submitted and not server.packages
    assert not (studies / "mlruns" / "matrix").exists()


@pytest.mark.parametrize("file", ["matrix", "sweep", "duel"])
def test_what_can_only_be_known_there_is_not_checked_here(
    file: str, server: Server, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--out", "nowhere/here", f"./experiments/{file}.yaml"]
    assert called("submit", "--no-follow", "--", file, *words) == 0
    assert called("submit", "--no-follow", "--", "run", "experiments/small.yaml", "--json", "nowhere/out.json") == 0
    assert server.submitted[0]["metadata"] == {"command": f"{file} --out nowhere/here ./experiments/{file}.yaml"}
    assert server.submitted[0]["runtime_env"]["env_vars"]["FEDROBUST_TYPED"] == "./"
    assert called("submit", "--no-follow", "--no-check", "--", file, f"experiments/{file}.yaml", "no=1") == 0


def test_a_name_means_the_newest_job(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (
        "matrix-mine-aaaaaa",
        "matrix-mine-bbbbbb",
        "matrix-mine-2-cccccc",
        "sweep-mine-dddddd",
        "run-a-eeeeee",
    ):
        server.add(name)
    server.jobs["matrix-mine-bbbbbb"]["status"] = "SUCCEEDED"
    at = find_cluster()
    for name, job in {
        "matrix-mine": "matrix-mine-bbbbbb",
        "matrix-mine-aaaaaa": "matrix-mine-aaaaaa",
        "mine": "sweep-mine-dddddd",
        "experiments/a.yaml": "run-a-eeeeee",
        "matrix": "matrix-mine-2-cccccc",
    }.items():
        assert find_job(at, name).id == job, name
    assert find_job(at, "matrix-mine", running=True).id == "matrix-mine-aaaaaa"
    assert called("logs", "matrix-mine") == 0
    out, err = capsys.readouterr()
    assert out == server.log
    assert err.startswith("job matrix-mine-bbbbbb, begun ") and err.count("\n") == 1
    assert called("stop", "matrix-mine") == 0
    assert capsys.readouterr().out == "job matrix-mine-aaaaaa: STOPPED\n"
    assert called("logs", "") == 2


ENTRY = "Running entrypoint for job a: export A=1\nexec python a\n"
OUTPUT = f'{ENTRY}on node n\n{MARK}{{"at": 1}}\nRunning the first\n{MARK}{{"at": 2}}\nend'


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_output_is_shown_without_shell_text_and_progress(size: int) -> None:
    pieces = [OUTPUT[at : at + size] for at in range(0, len(OUTPUT), size)]
    assert "".join(shown(pieces, ENTRY)) == "on node n\nRunning the first\nend"
    assert "".join(shown(["fed", "robust"], ENTRY)) == "fedrobust", "what only begins like a mark"
    assert next(shown(iter(["Run\n", OUTPUT]), ENTRY)) == "Run\n", "nothing waits that cannot be hidden text"


def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *lines: dict[str, object]) -> str:
    """The output of a job that tells these."""
    monkeypatch.setenv("FEDROBUST_JOB", "1")
    for line in lines:
        tell(**line)
    return capsys.readouterr().out


def test_progress_and_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[dict[str, object]] = [{"folder": "/w/mlruns/matrix/mine"}]
    lines += [{"done": done, "of": 60, "what": "cells", "at": 100.0 * done} for done in range(32)]
    output = "a line\n" + told(monkeypatch, capsys, *lines) + f"{MARK}no json\n{MARK}[1]\n{MARK}" + '{"done": "x"}\n'
    found = progress(output)
    assert found.folder == "/w/mlruns/matrix/mine"
    assert (found.done, found.of, found.left) == (31, 60, 2900.0)
    assert found.shown(3100.0) == "31/60 cells, 49 min left"
    assert found.shown(3100.0 + 1500) == "31/60 cells, 24 min left"
    assert found.shown(1e9) == "31/60 cells, soon done"
    assert progress("").shown(0.0) == ""
    first = told(monkeypatch, capsys, {"done": 3, "of": 60, "what": "cells"})
    assert progress(first).shown(0.0) == "3/60 cells", "no speed is known yet"
    monkeypatch.delenv("FEDROBUST_JOB")
    tell(done=1)
    assert not capsys.readouterr().out, "only jobs tell"


def test_jobs_shows_the_progress_of_those_that_run(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("matrix-mine-aaaaaa", "other"):
        server.add(name)
        server.logs[name] = told(monkeypatch, capsys, {"done": 31, "of": 60, "what": "cells"})
    server.jobs["matrix-mine-aaaaaa"]["entrypoint"] = "export FEDROBUST_SHIPPED=$PWD\nexec python"
    assert [job.progress is not None for job in jobs(find_cluster())] == [True, False]
    assert called("jobs") == 0
    assert "31/60 cells" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "60")
    assert called("jobs") == 0
    assert "matrix-mine-aaaaaa" in capsys.readouterr().out, "an id is to be copied"


def test_files_of_a_job_are_shown_as_they_were_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = "runtime_resources/working_dir_files/_ray_pkg_0123abcd"
    (real := tmp_path / "r" / package).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "r")
    sent = f"{tmp_path}/link/{package}"
    line = f"error: {sent}/experiments/m.yaml:3: seed"
    assert as_typed(line) == line
    monkeypatch.setenv("FEDROBUST_SHIPPED", sent)
    assert as_typed(line) == "error: experiments/m.yaml:3: seed"
    monkeypatch.setenv("FEDROBUST_TYPED", "../mine/")
    assert as_typed(line) == "error: ../mine/experiments/m.yaml:3: seed"
    assert as_typed(f"go to {real}, or {sent}.") == f"go to ../mine, or {sent}.".replace(sent, "../mine")
    elsewhere = "/tmp/ray/w2/session_2026-01-01_00-00-00_000000_1/runtime_resources/working_dir_files/_ray_pkg_ff00"
    assert as_typed(f'File "{elsewhere}/mine.py"') == 'File "../mine/mine.py"', "of another node"
    assert str(Problem("wrong").at(real / "experiments" / "m.yaml")) == "../mine/experiments/m.yaml: wrong"
    assert as_typed(f"{sent}.old/x") == f"{sent}.old/x"


@contextmanager
def mlflow(*names: str) -> Iterator[str]:
    """The address of a server that has these experiments, as MLflow would."""
    experiments = [{"experiment_id": str(7 + number), "name": name} for number, name in enumerate(names)]

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fitting = [
                each for each in experiments if self.path.endswith(f"get-by-name?experiment_name={each['name']}")
            ]
            found: object = (
                {"experiments": experiments} if "/search" in self.path else {"experiment": (fitting or [0])[0]}
            )
            self.send_response(200 if "/search" in self.path or fitting else 404)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_the_link_leads_to_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with mlflow("Default", "mine") as uri:
        assert runs_page(uri, "mine") == runs_page(f"{uri}/") == f"{uri}/#/experiments/8/runs"
        everything = f"{uri}/#/experiments?workflowType=machine_learning"
        assert runs_page(uri, "new") == f"{everything} (experiment 'new')"
    monkeypatch.setattr(links_room, "PATIENCE", 0.2)
    assert runs_page(uri, "mine") == f"{everything} (experiment 'mine')", "nobody answers"
    assert runs_page("http://me:secret@h:1/") == "http://h:1/#/experiments?workflowType=machine_learning"


def test_submit_links_to_the_mlflow_of_the_local_cluster(
    server: Server, studies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with mlflow("Default", "fedrobust") as uri:
        state = State(
            address=server.address, temporary="/tmp/fedrobust-x", gcs="", mlflow=uri, workplace="/w", store="sqlite://"
        )
        path = kept(Path("mlruns/cluster"))
        path.mkdir(parents=True, mode=0o700)
        (path / STATE).touch(mode=0o600)
        (path / STATE).write_text(state.model_dump_json())
        cluster = find_cluster.__globals__["Cluster"](server.address)
        assert tracking_server(cluster, {}) == uri
        assert tracking_server(cluster, {"MLFLOW_TRACKING_URI": "http://h:1"}) == "http://h:1"
        assert tracking_server(cluster, {"MLFLOW_TRACKING_URI": "sqlite:///x"}) == ""
        (path / STATE).write_text(state.model_copy(update={"address": "http://127.0.0.1:1"}).model_dump_json())
        assert tracking_server(cluster, {}) == ""
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert called("submit", "--no-follow", "--", "run", "experiments/small.yaml") == 0
        assert f"MLflow: {uri}/#/experiments/8/runs\n" in capsys.readouterr().out


@pytest.mark.parametrize(("stop", "added"), [(KeyboardInterrupt(), ""), (Interrupted("abc"), " with --resume abc")])
def test_a_job_that_is_stopped_is_to_be_submitted_again(
    stop: KeyboardInterrupt, added: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDROBUST_JOB", "1")
    monkeypatch.setattr("sys.argv", ["fedrobust", "matrix", "/r/_ray_pkg_1/mine.yaml"])
    with pytest.raises(typer.Exit), stoppable(goes_on=True):
        raise stop
    assert capsys.readouterr().err == f"stopped; to go on, submit the same command again{added}\n"
