"""Pictures of the MLflow UI for the docs, taken with a headless Chromium.

    fedrobust ui                                                    # in another terminal
    python docs/make/screenshots.py http://127.0.0.1:5000 RUN RUN

writes view.png (the list of runs in its saved view), compare.png (the runs' curves side by side), run.png (the first
run) and report.png (its report, as the UI shows it) into docs/pictures, and with
`--sweep mlruns/sweeps/first/sweep.html` the page of a sweep as sweep.png. Needs
`playwright` and a chromium on the machine.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

from playwright.sync_api import Browser, FrameLocator, Page, Playwright, expect, sync_playwright

CURVES = "test/balanced_accuracy|test/worst_hospital_accuracy|attack/success_rate|reputation/0[0-2]|weight/0[0-2]"
"""Metrics to compare, as the regular expression that the UI's search field takes."""
PATIENCE = 60_000
"""Milliseconds to wait for the UI; a busy machine is slow."""
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
# Otherwise the UI opens in its view for language models, with a chat panel.
SETTINGS = {
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.panelOpen_v1": "false",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
}


def chromium() -> str | None:
    """The path of a chromium on this machine, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def launch(playwright: Playwright) -> Browser:
    """Start the machine's own chromium."""
    return playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)


def new_page(browser: Browser, width: int = 1500, height: int = 1000) -> Page:
    """A page that shows the UI as someone sees it who trains models."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(PATIENCE)
    for key, value in SETTINGS.items():
        page.add_init_script(f"localStorage.setItem({json.dumps(key)}, {json.dumps(value)})")
    return page


def experiment_of(url: str, run: str) -> str:
    """The id of the MLflow experiment that a run belongs to."""
    with urlopen(f"{url}/api/2.0/mlflow/runs/get?run_id={run}", timeout=30) as reply:
        return str(json.load(reply)["run"]["info"]["experiment_id"])


def open_view(page: Page, url: str, run: str) -> None:
    """Show the list of the run's experiment in the saved view that the experiment begins with."""
    page.goto(f"{url}/#/experiments/{experiment_of(url, run)}/runs")
    page.get_by_role("button", name="Views").click()
    page.get_by_text("Accuracy and attack success").first.click()
    page.get_by_role("columnheader", name="attack/success_rate").first.wait_for()


def open_comparison(page: Page, url: str, runs: list[str], curves: str = CURVES, charts: int = 1) -> None:
    """Show the curves of several runs in the same charts, and wait until at least `charts` of them are drawn."""
    ids = ", ".join(f"'{run}'" for run in runs)
    chosen = quote(f"attributes.run_id IN ({ids})")
    page.goto(f"{url}/#/experiments/{experiment_of(url, runs[0])}/runs?compareRunsMode=CHART&searchFilter={chosen}")
    page.get_by_placeholder("Search metric charts").fill(curves)
    expect(page.locator(".js-plotly-plot .scatterlayer .trace").nth(charts * len(runs) - 1)).to_be_attached(
        timeout=PATIENCE
    )


def open_run(page: Page, url: str, run: str) -> None:
    """Show the page of one run: its state, tags, parameters and last figures."""
    page.goto(f"{url}/#/experiments/{experiment_of(url, run)}/runs/{run}")
    page.get_by_text("About this run").first.wait_for()


def open_report(page: Page, url: str, run: str) -> FrameLocator:
    """Show the run's report in the UI's artifact viewer; returns the frame that it is in."""
    page.goto(f"{url}/#/experiments/{experiment_of(url, run)}/runs/{run}/artifacts/report.html")
    frame = page.frame_locator("iframe")
    frame.locator("h1").wait_for()
    return frame


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of a running `fedrobust ui`")
    parser.add_argument("runs", nargs="+", help="run ids; the first one is shown on its own as well")
    parser.add_argument(
        "--curves", default=CURVES, help="metrics to compare, a regular expression (default: %(default)s)"
    )
    parser.add_argument("--sweep", type=Path, help="the page of a sweep, for a picture of its own")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "pictures")
    given = parser.parse_args()
    url = given.url.rstrip("/")
    given.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = new_page(browser, height=600)
        open_view(page, url, given.runs[0])
        page.wait_for_timeout(1500)
        page.screenshot(path=given.out / "view.png")
        page = new_page(browser, height=1950)
        open_comparison(page, url, given.runs, given.curves)
        page.wait_for_timeout(3000)  # the curves' animation
        page.screenshot(path=given.out / "compare.png")
        page = new_page(browser)
        open_run(page, url, given.runs[0])
        page.wait_for_timeout(1500)
        page.screenshot(path=given.out / "run.png")
        open_report(page, url, given.runs[0])
        page.get_by_text(re.compile("^Path:")).evaluate("line => line.style.visibility = 'hidden'")  # a folder of yours
        page.wait_for_timeout(1500)
        page.screenshot(path=given.out / "report.png")
        if given.sweep:
            page = new_page(browser, width=1200, height=1000)
            page.goto(given.sweep.resolve().as_uri())
            page.locator(".js-plotly-plot .trace").first.wait_for()
            page.screenshot(path=given.out / "sweep.png")


if __name__ == "__main__":
    main()
