"""The notebooks among the tutorials run as they are, in a folder of their own, and are small."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs" / "tutorials").glob("*.ipynb"))
LARGEST = 100_000
"""Bytes of a notebook with its outputs."""


def test_there_are_two() -> None:
    assert len(NOTEBOOKS) == 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_is_small_and_of_no_machine(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert cell.execution_count is None
            assert all(output.output_type != "error" and output.get("name") != "stderr" for output in cell.outputs)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written, with this package; what Jupyter keeps goes below the folder, too, and no port is opened."""
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient

    for variable, name in (("IPYTHONDIR", "ipython"), ("JUPYTER_RUNTIME_DIR", "runtime"), ("JUPYTER_DATA_DIR", "data")):
        monkeypatch.setenv(variable, str(tmp_path / "jupyter" / name))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(path.parents[2]), os.environ.get("PYTHONPATH", "")]))
    (tmp_path / "jupyter").mkdir()
    work = tmp_path / "work"
    work.mkdir()
    before = sorted(path.parent.iterdir())
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as sockets:  # their names must be short
        kernel = KernelManager(kernel_name="python3", transport="ipc", connection_file=f"{sockets}/kernel.json")
        NotebookClient(notebook, km=kernel, timeout=600, resources={"metadata": {"path": str(work)}}).execute()
    assert sorted(path.parent.iterdir()) == before
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert "gain +" in "".join(output.get("text", "") for output in shown) or (work / "near_most.py").exists()
