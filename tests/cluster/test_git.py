"""A working folder that git knows: what it ignores stays, its repositories are listed, and its settings run nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from folders import DATA, EXPERIMENT, SECRETS, git, shipped, write
from refused import refused

from fedrobust.cluster import ClusterError
from fedrobust.cluster import folder as shipped_from
from fedrobust.cluster.folder import select
from fedrobust.cluster.shipping import prepare

pytestmark = pytest.mark.usefixtures("nobody")


@pytest.mark.parametrize("repository", [True, False])
def test_gitignore_is_honoured_with_and_without_a_repository(workplace: Path, repository: bool) -> None:
    write(workplace, "a.py", "own/b.py", "own/c.json", "notes.md", "own/kept.md", "gone.py")
    write(workplace, ".gitignore", content="*.md\n!/own/kept.md\n")
    write(workplace / "own", ".gitignore", content="c.json\n")
    if repository:
        git(workplace, "init", "--quiet")
        git(workplace, "add", "gone.py")
    (workplace / "gone.py").unlink()
    found = select(workplace)
    assert sorted(found.files) == ["a.py", "own/b.py", "own/kept.md"]
    assert sorted(found.left[shipped_from.IGNORED]) == ["notes.md", "own/c.json"]
    assert found.summary()[1].endswith("what git ignores 2")
    assert not (workplace / ".git").exists() or repository


def test_the_repository_may_begin_above(workplace: Path) -> None:
    write(workplace, "below/a.py", "below/b.json", "beside.py")
    write(workplace, ".gitignore", content="*.json\n")
    git(workplace, "init", "--quiet")
    assert shipped(workplace / "below") == ["a.py"]


def test_repositories_inside_are_listed_by_their_own_git(
    workplace: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    origin = tmp_path_factory.mktemp("origin")
    write(origin, "c.py", "d.json")
    write(origin, ".gitignore", content="d.json\n")
    git(origin, "init", "--quiet")
    git(origin, "add", "--all")
    git(origin, "commit", "--quiet", "-m", "x")
    git(workplace, "init", "--quiet")
    git(workplace, "submodule", "--quiet", "add", str(origin), "module")
    shutil.copytree(origin, workplace / "nested")
    assert shipped(workplace) == ["module/c.py", "nested/c.py"]


@pytest.mark.parametrize(
    ("variable", "value"), [("GIT_DIR", "elsewhere/.git"), ("GIT_INDEX_FILE", "elsewhere/.git/index")]
)
def test_no_other_repository_is_listed(
    workplace: Path, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(workplace, "own/a.py", "elsewhere/b.py")
    for name in ("own", "elsewhere"):
        git(workplace / name, "init", "--quiet")
        git(workplace / name, "add", "--all")
    monkeypatch.setenv(variable, str(workplace / value))
    assert shipped(workplace / "own") == ["a.py"]


def test_settings_of_the_folder_run_no_program(workplace: Path) -> None:
    write(workplace, "a.py")
    git(workplace, "init", "--quiet")
    hook = workplace / ".git" / "monitor"
    hook.write_text(f"#!/bin/sh\ntouch '{workplace}/ran'\n")
    hook.chmod(0o755)
    git(workplace, "config", "core.fsmonitor", str(hook))
    assert shipped(workplace) == ["a.py"]
    assert not (workplace / "ran").exists()


def test_a_repository_that_git_cannot_read_ships_nothing(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(workplace, "small.yaml", content=EXPERIMENT)
    git(workplace, "init", "--quiet")
    (workplace / ".git" / "config").write_text("[broken")
    with refused(ClusterError, file=workplace, says="bad config"):
        prepare(["run", "small.yaml"])
    monkeypatch.setenv("PATH", str(workplace))
    with refused(ClusterError, file=workplace, says="no git"):
        prepare(["run", "small.yaml"])


def test_without_git_and_gitignore_kinds_decide(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(workplace, "sub/a.py", *SECRETS, *DATA)
    (workplace / "out").symlink_to("/etc")
    monkeypatch.setenv("PATH", str(workplace))
    assert shipped(workplace) == ["sub/a.py"]
    write(workplace, "sub/.gitignore")
    with refused(ClusterError, file=workplace, says="no git"):
        select(workplace)
