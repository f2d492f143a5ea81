"""What a public forge runs and shows: the workflow, the templates, the hooks, and what CI runs here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

REPOSITORY = Path(__file__).parent.parent
FORGE = REPOSITORY / ".github"


def loaded(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def targets_called(text: str) -> list[str]:
    return re.findall(r"^\s*(?:- run: )?make ([\w-]+)", text, re.MULTILINE)


MAKE_TARGETS = set(re.findall(r"^([\w-]+):(?!=)", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("file", [".ci/run", ".github/workflows/ci.yml", "CONTRIBUTING.md", "docs/release.md"])
def test_make_targets_exist(file: str) -> None:
    text = (REPOSITORY / file).read_text(encoding="utf-8")
    called = {*targets_called(text), *re.findall(r"`make ([\w-]+)", text)}
    assert called
    assert called <= MAKE_TARGETS


def test_the_workflow_calls_what_ci_calls() -> None:
    ours = targets_called((REPOSITORY / ".ci" / "run").read_text(encoding="utf-8"))
    assert {"lint", "docs", "test", "test-notebooks"} <= set(ours)
    assert targets_called((FORGE / "workflows" / "ci.yml").read_text(encoding="utf-8")) == ours


def test_the_workflow_may_only_read() -> None:
    workflow = loaded(FORGE / "workflows" / "ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert all(job["env"]["CI"] != "true" for job in workflow["jobs"].values())  # see conftest.idc_file
    supported = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert supported == ">=3.11,<3.14"
    assert workflow["jobs"]["checks"]["strategy"]["matrix"]["python"] == ["3.11", "3.13"]


@pytest.mark.parametrize("file", sorted((FORGE / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.name)
def test_forms_for_issues(file: Path) -> None:
    form = loaded(file)
    assert {"name", "description", "body"} <= set(form)
    kinds = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
    assert all(item["type"] in kinds and item["attributes"] for item in form["body"])
    ids = [item["id"] for item in form["body"] if "id" in item]
    assert len(ids) == len(set(ids))


def test_hooks_are_of_the_projects_own_environment() -> None:
    hooks = loaded(REPOSITORY / ".pre-commit-config.yaml")
    assert [repo["repo"] for repo in hooks["repos"]] == ["local"]
    entries = {hook["id"]: hook["entry"].split() for hook in hooks["repos"][0]["hooks"]}
    assert {"ruff", "ruff-format", "mypy", "shellcheck", "schema"} <= set(entries)
    pinned = set(
        re.findall(r"^([\w-]+)==", (REPOSITORY / "constraints.txt").read_text().replace("_", "-"), re.MULTILINE)
    )
    for first, *rest in entries.values():
        if first == "make":
            assert set(rest) <= MAKE_TARGETS
        else:
            program = first.removeprefix(".venv/bin/")
            assert first.startswith(".venv/bin/")
            assert {program, f"{program}-py"} & pinned


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md", "README.md"])
def test_links_of_the_pages_beside_the_readme(name: str) -> None:
    """The site checks its own links; these pages are read on the forge, too."""
    for link in re.findall(r"\]\(([^)#\s]+)", (REPOSITORY / name).read_text(encoding="utf-8")):
        assert link.startswith("https://") or (REPOSITORY / link).exists(), link
