"""The files that a command of a job needs: they are sent, or the command is refused before anything is sent."""

from __future__ import annotations

import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from folders import EXPERIMENT, PEM, git, write
from jobs_server import TOKEN, Server
from refused import refused

from fedrobust.cli import main
from fedrobust.cluster import ClusterError
from fedrobust.cluster.shipping import prepare
from fedrobust.errors import Origin

pytestmark = pytest.mark.usefixtures("nobody")


@pytest.mark.parametrize(
    ("ignored", "files"),
    [
        ("small.yaml", ["own/small.yaml"]),
        ("own/", ["own/small.yaml"]),
        ("mine.py", ["own/small.yaml", "own/mine.py"]),
        ("base.yaml", ["own/small.yaml", "base.yaml"]),
        ("deep", ["base.yaml", "own/deep/er.py"]),
        ("tokens.py", ["own/small.yaml", "own/tokens.py"]),
    ],
)
@pytest.mark.parametrize("repository", [True, False])
def test_what_the_command_needs_must_be_shipped(
    workplace: Path, ignored: str, files: list[str], repository: bool
) -> None:
    write(workplace, "own/mine.py", "own/deep/er.py", "own/tokens.py", "er.py")
    write(
        workplace,
        "own/small.yaml",
        content="experiment: ../base.yaml  # and not other.yaml\nrule: {name: 'mine:Mine'}\n",
    )
    write(workplace, "base.yaml", content="attacks: [{name: own.deep.er:Attack}, {name: numpy:ndarray}]\n")
    write(workplace, "own/other.yaml")
    write(workplace, ".gitignore", content="other.yaml\n")
    if repository:
        git(workplace, "init", "--quiet")
    command = ["matrix", "own/small.yaml", "aggregation.rule=tokens:Rule"]
    assert len(prepare(command).selection.files) == 6
    write(workplace, ".gitignore", content=ignored)
    with refused(ClusterError, origins=tuple(Origin(Path(file)) for file in files), says="git ignores"):
        prepare(command)


@pytest.mark.parametrize("name", ["mlflow.py", "random.py", "numpy/__init__.py", "yaml/__init__.py"])
def test_no_module_hides_an_installed_one(workplace: Path, name: str) -> None:
    """It would run wherever that one is imported, though no class of it is named."""
    write(workplace, "own/small.yaml", content="rule: {name: 'mine:Mine'}\n")
    write(workplace, "own/mine.py", "utils.py", "own/mlflow.py", "numpy/inner.py", "fedrobust/__init__.py")
    prepare(["run", "own/small.yaml"])  # beside the file is the last place where a job looks
    write(workplace, name)
    with refused(ClusterError, file=name, says=f"module {name.split('/')[0].removesuffix('.py')}"):
        prepare(["run", "own/small.yaml"])


@pytest.mark.parametrize("name", ["tokens.yaml", ".hidden.yaml", "data/small.yaml", "link.yaml"])
def test_an_experiment_of_a_kind_that_stays_is_refused(workplace: Path, name: str) -> None:
    (workplace / "data").mkdir()
    if name == "link.yaml":
        (workplace / name).symlink_to("/etc/hostname")
    else:
        write(workplace, name, content=EXPERIMENT)
    with refused(ClusterError, file=name, says="not shipped"):
        prepare(["run", name])


def test_a_file_above_the_folder_is_not_reached(workplace: Path) -> None:
    write(workplace, "base.yaml", content=EXPERIMENT)
    write(workplace, "below/small.yaml", content="experiment: ../base.yaml")
    with refused(ClusterError, origins=(Origin(Path("small.yaml")), Origin(Path("../base.yaml"))), says="outside"):
        prepare(["matrix", "small.yaml"], workplace / "below")


def test_a_folder_that_is_a_link_is_what_it_leads_to(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(workplace, "real/own/small.yaml", content=EXPERIMENT)
    (workplace / "linked").symlink_to("real")
    monkeypatch.chdir(workplace / "linked")
    assert prepare(["run", str(workplace / "linked" / "own" / "small.yaml")]).command == ["run", "own/small.yaml"]


def test_the_command_line_says_what_is_sent(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(workplace, "sub/mlruns/keys/coordinator.pem", "sub/id_rsa", ".env", "a.png", "b.png", content=PEM)
    write(workplace, "small.yaml", content=EXPERIMENT)
    write(workplace, "mine.py")

    def called(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["fedrobust", "submit", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    assert called("--dry-run", "--", "run", "small.yaml") == 0
    out = capsys.readouterr().out
    assert "small.yaml" in out and "stays  sub/id_rsa (keys or credentials)" in out
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with Server() as server:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", server.address)
        assert called("--no-follow", "--", "run", "small.yaml") == 0
        err = capsys.readouterr().err.splitlines()
        assert err == [
            "sends 2 files, 65 B; the largest: small.yaml (59 B), mine.py (6 B)",
            "leaves here: keys or credentials 1 (sub/id_rsa); hidden files 1; results or caches 1; "
            "files of other kinds 2 (.png 2)",
            f"goes to {server.address}, with the token from RAY_AUTH_TOKEN",
        ]
        ((_, package),) = server.packages.items()
        assert zipfile.ZipFile(BytesIO(package)).namelist() == ["mine.py", "small.yaml"]
        write(workplace, "notes.txt", content=PEM)
        assert called("--no-follow", "--", "run", "small.yaml") == 2
        assert capsys.readouterr().err.startswith("error: notes.txt:1: ")
        assert len(server.submitted) == 1
