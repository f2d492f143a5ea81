"""A run that has ended: its report is written again, it is compared, and its registered model predicts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import run, write_files

import fedrobust
from fedrobust import cli
from fedrobust.audit.signing import AuditError
from fedrobust.audit.verification import verify_all
from fedrobust.errors import ExperimentError
from fedrobust.federation.pool import Pool
from fedrobust.report import write_again
from fedrobust.runner import KEY

IMAGES = np.random.default_rng(0).random((4, 3, 12, 12), dtype=np.float32)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, pool: Pool) -> tuple[Path, fedrobust.Result]:
    """A working folder, and the run of two rounds in it."""
    place = tmp_path_factory.mktemp("place")
    write_files(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return place, run("federation.rounds=2", "tracking.model=true", "tracking.register=tiny", pool=pool)


@pytest.fixture
def result(ended: tuple[Path, fedrobust.Result], monkeypatch: pytest.MonkeyPatch) -> fedrobust.Result:
    monkeypatch.chdir(ended[0])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{ended[0]}/mlruns/mlflow.db")
    return ended[1]


def predicted(result: fedrobust.Result) -> np.ndarray:
    """By the model as the run hands it over."""
    import torch

    network = fedrobust.load("tiny.yaml").learning.model.build(2, 12, 5)
    network.load_state_dict(result.state_dict)
    with torch.no_grad():
        return network.eval()(torch.from_numpy(IMAGES)).numpy()


def test_the_registered_model_predicts_as_the_run_s(result: fedrobust.Result) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model("models:/tiny@latest")
    np.testing.assert_allclose(model.predict(IMAGES), predicted(result), atol=1e-5)
    assert model.metadata.run_id == result.run_id and model.metadata.signature is not None
    assert model.input_example.shape == (2, 3, 12, 12)
    version = mlflow.MlflowClient().get_model_version_by_alias("tiny", "latest")
    assert version.tags == {
        "run": result.name,
        "attack": "patch_backdoor 1/8 + sign_flip 1/8",
        "defence": "clip + nnm + geometric_median",
    }


def test_a_run_that_has_ended_is_registered_when_it_is_resumed(result: fedrobust.Result, pool: Pool) -> None:
    import mlflow

    options = ["federation.rounds=2", "tracking.model=true", "tracking.register=later"]
    again = run(*options, resume=result.run_id, pool=pool)
    assert again.run_id == result.run_id
    (version,) = mlflow.MlflowClient().search_model_versions("name = 'later'")
    assert version.run_id == result.run_id


@pytest.mark.long
def test_mlflow_models_predict_works_on_the_registered_model(result: fedrobust.Result, tmp_path: Path) -> None:
    given, found = tmp_path / "in.json", tmp_path / "out.json"
    given.write_text(json.dumps({"inputs": IMAGES.tolist()}))
    command = ["-m", "mlflow", "models", "predict", "--model-uri", "models:/tiny@latest", "--env-manager", "local"]
    files = ["--input-path", str(given), "--content-type", "json", "--output-path", str(found)]
    done = subprocess.run([sys.executable, *command, *files], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(found.read_text())["predictions"], predicted(result), atol=1e-5)


def test_a_report_written_again_is_sealed_again(
    result: fedrobust.Result, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (result.folder / "report.html").read_bytes()
    (result.folder / "report.html").write_text("spoilt")
    assert verify_all(result.folder).broken.startswith("report.html")
    monkeypatch.setattr(sys, "argv", ["fedrobust", "report", result.run_id[:10]])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    assert capsys.readouterr().out.strip() == str(result.folder / "report.html")
    assert (result.folder / "report.html").read_bytes() == before and not verify_all(result.folder).broken


def test_a_run_that_was_tampered_with_is_not_sealed_again(result: fedrobust.Result, tmp_path: Path) -> None:
    folder = tmp_path / result.run_id
    shutil.copytree(result.folder, folder)
    with pytest.raises(AuditError, match="no such file"):
        write_again(folder, tmp_path / "no.pem")
    (folder / "experiment.yaml").write_text("name: another\n")
    (folder / "report.html").unlink()
    with pytest.raises(AuditError, match=r"experiment\.yaml"):
        write_again(folder, KEY)
    assert not (folder / "report.html").exists()


def test_runs_are_compared_from_the_command_line(
    result: fedrobust.Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, *rest = (result.folder / "journal.jsonl").read_text().splitlines()
    (tmp_path / "mlruns/runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for rule in ("geometric_median", "median"):  # the same rounds told of another rule
        folder = tmp_path / "mlruns/runs" / rule
        folder.mkdir()
        (folder / "journal.jsonl").write_text("\n".join([first.replace("geometric_median", rule), *rest]) + "\n")
    monkeypatch.setattr(sys, "argv", ["fedrobust", "compare", "tiny"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    assert "median" in capsys.readouterr().out and (tmp_path / "mlruns/compare/tiny/compare.html").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [(["tracking.register=a/b"], "must begin with"), (["tracking.register=a", "tracking.model=false"], "is logged")],
)
def test_names_that_mlflow_refuses_are_refused_when_the_file_is_read(
    result: fedrobust.Result, options: list[str], told: str
) -> None:
    with pytest.raises(ExperimentError, match=rf"tracking\.register: .*{told}"):
        fedrobust.load("tiny.yaml", options)
