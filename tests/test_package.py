"""What is delivered: the shipped experiments and their schemas."""

from __future__ import annotations

import json
import re
import runpy
import tomllib
from pathlib import Path

import pydantic
import pytest
from packaging.specifiers import SpecifierSet
from ruamel.yaml import YAML

from fedrobust.duels import Duel
from fedrobust.experiment import Experiment
from fedrobust.matrices import Matrix
from fedrobust.tuning import Sweep

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("model", [Experiment, Matrix, Sweep, Duel])
def test_the_shipped_schema_is_the_schema(model: type[pydantic.BaseModel]) -> None:
    shipped = json.loads((EXPERIMENTS / "schemas" / f"{model.__name__.lower()}.schema.json").read_text())
    assert shipped == model.model_json_schema(), "run `make schema`"


def test_version_authors_and_keywords_are_the_same_everywhere() -> None:
    citation = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert str(citation["version"]) == PROJECT["version"]
    assert [each["name"] for each in citation["authors"]] == [each["name"] for each in PROJECT["authors"]]
    assert citation["keywords"] == PROJECT["keywords"]
    assert citation["license"] == PROJECT["license"]
    heading = re.search(r"^## (\S+) \((.*)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heading is not None
    assert heading[1] == PROJECT["version"]
    assert heading[2] == str(citation.get("date-released", "unreleased"))


def test_the_classifiers_name_the_pythons_that_are_admitted() -> None:
    admitted = SpecifierSet(PROJECT["requires-python"])
    named = {each.rpartition(" ")[2] for each in PROJECT["classifiers"] if "Python :: 3." in each}
    assert named == {f"3.{minor}" for minor in range(30) if f"3.{minor}.0" in admitted}
    assert not any("Windows" in each for each in PROJECT["classifiers"])


def test_what_an_index_shows_has_no_links_into_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, str] = {}
    monkeypatch.setattr("setuptools.setup", lambda **arguments: given.update(arguments))
    runpy.run_path(str(ROOT / "setup.py"))
    text = given["long_description"]
    assert not re.findall(r"!\[", text)
    assert not re.findall(r"]\((?!https://)", text)
    assert len(text) > 5000


def test_an_editable_install_is_a_plain_path() -> None:
    """Type checkers and editors follow a path, and no import hook."""
    from importlib.metadata import distribution

    site = [Path(str(each.locate())) for each in distribution("fedrobust").files or () if each.suffix == ".pth"]
    if not site:
        pytest.skip("this is no editable install")
    assert [Path(line).is_dir() for line in site[0].read_text(encoding="utf-8").splitlines()] == [True]
