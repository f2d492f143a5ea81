"""The MLflow UI as a person sees it, against a real server."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fedrobust import tracking
from fedrobust.records import read_run
from fedrobust.report import write_comparison, write_report
from fedrobust.tracking import Tracker, flatten, metrics
from fedrobust.tracking.artifacts import stored_files

pytestmark = pytest.mark.slow

CLIENTS, ROUNDS = 4, 5
EXPERIMENT = {
    "name": "two defences",
    "seed": 3,
    "data": {"partition": {"name": "dirichlet", "alpha": 0.5}},
    "attacks": [{"name": "patch_backdoor"}],
}


def sync(folder: Path) -> int:
    return tracking.sync(folder, read_run(folder))


class Server:
    """An MLflow server on 127.0.0.1 over a sqlite store in `folder`; started and ended by its own process id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            self.port = unused.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it; `wait` until it answers."""
        command = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        store = ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        artifacts = ["--artifacts-destination", str(self.folder / "artifacts")]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command, *store, *artifacts],
                env={key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"} | quiet,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until the server answers, or has ended."""
        for _ in range(600):
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).read()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text())

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the server's process group."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, how)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(30)


@pytest.fixture(scope="module")
def starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that has been started, beside whatever the module does next."""
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.url)
        patch.setattr("fedrobust.tracking.tracker.PAUSES", (0.1, 0.1))
        yield server
    server.stop()


@pytest.fixture(scope="module")
def runs(starting: Server, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two runs, an attack against a weak and against a strong defence, tracked through the server."""
    folder = tmp_path_factory.mktemp("runs")
    images = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), dtype=np.uint8)
    stories = {rule: journal(rule, success) for rule, success in (("mean", 0.9), ("krum", 0.1))}
    for rule, records in stories.items():
        write(folder / rule, records)
        write_report(folder / rule, images)
    starting.wait()
    found = []
    for rule, records in stories.items():
        tracker = Tracker.open("browser", flatten(records[0]["experiment"]), {"defence": rule}, f"{rule} is tried")
        (folder / rule).rename(folder / tracker.run_id)
        for record in read_run(folder / tracker.run_id).records:
            tracker.log(record)
        tracker.upload(folder / tracker.run_id)
        assert tracker.close()
        found.append(tracker.run_id)
    return found


@pytest.fixture(scope="module")
def screenshots() -> ModuleType:
    """`docs/make/screenshots.py`, which takes the documentation's pictures of the same pages."""
    path = Path(__file__).parent.parent / "docs" / "make" / "screenshots.py"
    spec = importlib.util.spec_from_file_location("screenshots", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(screenshots: ModuleType) -> Iterator[Any]:
    """A page of the machine's own chromium."""
    if screenshots.chromium() is None and os.environ.get("CI") != "true":
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = screenshots.launch(playwright)
        yield screenshots.new_page(browser, height=1950)
        browser.close()


def journal(rule: str, success: float) -> list[dict[str, Any]]:
    """A small run with one attacker, hospital 2."""
    ids = [str(client) for client in range(CLIENTS)]
    start = {
        "kind": "start",
        "run": rule,
        "experiment": EXPERIMENT | {"aggregation": {"stages": [], "rule": {"name": rule}}},
        "clients": CLIENTS,
        "label_names": ["benign", "malignant"],
        "attackers": {"2": "patch_backdoor"},
        "hospital_labels": [[30, 20]] * CLIENTS,
        "parameters": 10,
        "digest": "d" * 64,
    }
    records: list[dict[str, Any]] = [start]
    for number in range(1, ROUNDS + 1):
        trust = {client: 0.9 - 0.15 * number * (client == "2") for client in ids}
        records.append(
            {
                "kind": "round",
                "round": number,
                "participants": list(range(CLIENTS)),
                "attacking": [2],
                "rejected": {},
                "weights": dict.fromkeys(ids, 1 / CLIENTS),
                "anomaly": {client: 1 - value for client, value in trust.items()},
                "reputation": trust,
                "suspected": [2] if number > 3 else [],
                "train_loss": dict.fromkeys(ids, 1 / number),
                "upload_bytes": 100,
                "detection": {"defense/precision": 1.0, "defense/recall": float(number > 3)},
                "seconds": {"round": 0.5, "train": 0.4, "aggregate": 0.01},
            }
        )
        records.append(
            {
                "kind": "evaluation",
                "round": number,
                "metrics": {
                    "test/balanced_accuracy": 0.5 + 0.07 * number,
                    "test/accuracy": 0.5 + 0.08 * number,
                    "attack/success_rate": success * number / ROUNDS,
                },
                "hospitals": dict.fromkeys(ids, 0.8),
                "confusion": [[40, 10], [5, 45]],
            }
        )
    misread = {"indices": [5, 1], "truth": [0, 1], "predicted": [1, 0], "confidence": [0.9, 0.8]}
    return [*records, {"kind": "end", "round": ROUNDS, "final": {}, "misread": misread}]


def write(folder: Path, records: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    (folder / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.browser
def test_two_runs_are_compared_curve_by_curve(
    screenshots: ModuleType, starting: Server, runs: list[str], page: Any, tmp_path: Path
) -> None:
    wanted = ["test/balanced_accuracy", "attack/success_rate", "reputation/02", "weight/02"]
    screenshots.open_comparison(page, starting.url, runs, "|".join(wanted), charts=len(wanted))
    for name in (*wanted, "mean is tried", "krum is tried"):
        screenshots.expect(page.get_by_text(name).first).to_be_visible(timeout=screenshots.PATIENCE)
    heights = {run: [round(success * number / ROUNDS, 6) for number in range(1, ROUNDS + 1)] for run, success in
               (("mean is tried", 0.9), ("krum is tried", 0.1))}  # fmt: skip
    for _ in range(100):  # the page draws its charts again when it has found the metrics
        curves = [traces(chart) for chart in page.locator(".js-plotly-plot").all()]
        if heights in curves and all(len(lines) == 2 for lines in curves):
            break
        page.wait_for_timeout(200)
    assert heights in curves
    assert all(len(lines) == 2 for lines in curves)
    page.screenshot(path=tmp_path / "compare.png")


def traces(chart: Any) -> dict[str, list[float]]:
    """The curves that a chart of the UI draws: name → values."""
    data = chart.evaluate("chart => chart.data.map(line => [line.name, Array.from(line.y)])")
    return {name: [round(value, 6) for value in values] for name, values in data}


@pytest.mark.browser
def test_the_saved_view_of_an_experiment_lists_runs_with_their_figures(
    screenshots: ModuleType, starting: Server, runs: list[str], page: Any, tmp_path: Path
) -> None:
    screenshots.open_view(page, starting.url, runs[0])
    for name in ("attack/success_rate", "test/balanced_accuracy", "defence"):
        heading = page.get_by_role("columnheader", name=name, exact=True).first
        screenshots.expect(heading).to_be_visible(timeout=screenshots.PATIENCE)
    lines = page.locator(".ag-center-cols-container").get_by_role("row")
    for rule, success in (("mean", "0.9"), ("krum", "0.1")):
        line = lines.filter(has_text=rule).filter(has_text="0.85")
        screenshots.expect(line).to_contain_text(success, timeout=screenshots.PATIENCE)
    page.screenshot(path=tmp_path / "view.png")


@pytest.mark.browser
def test_the_report_opens_in_the_artifact_viewer(
    screenshots: ModuleType, starting: Server, runs: list[str], page: Any, tmp_path: Path
) -> None:
    outside: list[str] = []
    page.on("request", lambda request: outside.append(request.url))
    frame = screenshots.open_report(page, starting.url, runs[1])
    assert frame.locator("h1").inner_text() == "two defences · privacy clear"
    names = ["curves", "reputation", "weights", "anomaly", "confusion", "misread", "partition"]
    for name in names:
        picture = frame.locator(f"#{name} img")
        picture.scroll_into_view_if_needed()
        screenshots.expect(picture).to_be_visible(timeout=screenshots.PATIENCE)
        assert picture.evaluate("image => image.complete && image.naturalWidth > 300"), name
    assert frame.locator("img").count() == len(names)
    assert frame.locator(".caught").inner_text() == "caught"
    allowed = (starting.url, "data:", "blob:", "about:")
    assert [url for url in outside if not url.startswith(allowed)] == []
    page.screenshot(path=tmp_path / "report.png")


@pytest.mark.browser
def test_the_page_of_a_run_shows_its_tags_and_settings(
    screenshots: ModuleType, starting: Server, runs: list[str], page: Any
) -> None:
    screenshots.open_run(page, starting.url, runs[1])
    page.get_by_text("aggregation.rule.name", exact=True).first.wait_for()
    screenshots.expect(page.get_by_text("defence").first).to_be_visible(timeout=screenshots.PATIENCE)


@pytest.mark.long
def test_a_server_that_is_killed_in_the_middle_gets_the_rest_when_it_is_back(
    starting: Server, runs: list[str], tmp_path: Path
) -> None:
    records = journal("median", 0.2)
    tracker = Tracker.open("killed", {}, {})
    folder = tmp_path / tracker.run_id
    write(folder, records)
    typed = read_run(folder).records
    for record in typed[:4]:
        tracker.log(record)
    for _ in range(300):  # until the server has them
        if Counter(key for key, _ in rows(starting, tracker.run_id))["test/accuracy"]:
            break
        time.sleep(0.1)
    starting.stop(signal.SIGKILL)
    for record in typed[4:]:
        tracker.log(record)
    write_report(folder)
    tracker.upload(folder)
    assert not tracker.close()
    starting.start()
    starting.wait()
    assert sync(folder) > 0
    expected = Counter((name, record.round) for record in typed[1:] for name in metrics(record))
    assert Counter(rows(starting, tracker.run_id)) == expected
    from mlflow import MlflowClient

    run = MlflowClient(starting.url).get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert "report.html" in dict(stored_files(MlflowClient(starting.url), tracker.run_id))


def rows(server: Server, run_id: str) -> list[tuple[str, int]]:
    with sqlite3.connect(server.folder / "mlflow.db") as connection:
        return connection.execute("select key, step from metrics where run_uuid = ?", [run_id]).fetchall()


@pytest.mark.browser
def test_the_page_of_a_comparison_fits_a_screen_of_1200_pixels(page: Any, tmp_path: Path) -> None:
    stages = ([], [{"name": "clip"}, {"name": "nnm"}])
    rules = [(own, rule) for own in stages for rule in ("mean", "krum", "geometric_median")]
    for place, (own, rule) in enumerate(pair for pair in rules for _ in range(2)):
        records = journal(rule, 0.1 * place)
        records[0]["experiment"] |= {"aggregation": {"stages": own, "rule": {"name": rule}}, "seed": place % 2}
        write(tmp_path / f"{place}", records)
    _, compared = write_comparison(["two defences"], tmp_path, tmp_path / "out")
    page.set_viewport_size({"width": 1200, "height": 900})
    page.goto(compared.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == 1200
    widths = "Array.from(document.querySelectorAll('.wide'), each => [each.scrollWidth, each.clientWidth])"
    found = page.evaluate(widths)
    assert len(found) == 5 and all(whole <= seen for whole, seen in found)
    assert page.locator(".verdict").first.inner_text().endswith(".")
