"""What `pyproject.toml` admits: no version with a known hole, and what the constraints name."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).parent.parent.parent
HOLES = [
    ("cryptography", "44.0.0", "CVE-2024-12797"),
    ("cryptography", "46.0.4", "CVE-2026-26007"),
    ("cryptography", "46.0.6", "CVE-2026-39892"),
    ("h5py", "3.11.0", "CVE-2026-26200"),
    ("mlflow", "3.7.0", "CVE-2026-2033"),
    ("mlflow", "3.17.1", "CVE-2026-53995"),
    ("pillow", "11.2.1", "CVE-2025-48379"),
    ("pillow", "12.1.0", "CVE-2026-25990"),
    ("pillow", "12.2.0", "CVE-2026-59199"),
    ("pillow", "12.3.0", "CVE-2026-96639"),
    ("pyarrow", "23.0.0", "CVE-2026-25087"),
    ("pytorch-lightning", "2.6.2", "GHSA-w37p-236h-pfx3"),
    ("pytorch-lightning", "2.6.3", "GHSA-w37p-236h-pfx3"),
    ("ray", "2.51.1", "CVE-2025-62593"),
    ("ray", "2.55.1", "CVE-2026-57516"),
    ("ray", "2.58.2", "GHSA-gx77-xgc2-4888"),
    ("requests", "2.32.3", "CVE-2024-47081"),
    ("scikit-learn", "1.4.2", "CVE-2024-5206"),
    ("torch", "2.5.1", "CVE-2025-32434"),
    ("torch", "2.9.1", "CVE-2026-24747"),
    ("torch", "2.10.0", "CVE-2026-4538"),
]
"""The last version with a hole that matters here, and its advisory."""


@cache
def text() -> str:
    return (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")


@cache
def required() -> dict[str, Requirement]:
    """What is installed for users and developers, by name."""
    project = tomllib.loads(text())["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name != "bench"}
    every = [Requirement(each) for each in chain(project["dependencies"], *extras.values())]
    return {canonicalize_name(each.name): each for each in every if each.name != "fedrobust"}


@cache
def constraints() -> dict[str, Version]:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(re.sub(r"\[.*", "", name)): Version(version) for name, version in pairs}


@pytest.mark.parametrize(("name", "version", "advisory"), HOLES)
def test_no_version_with_a_known_hole_is_admitted(name: str, version: str, advisory: str) -> None:
    assert not required()[name].specifier.contains(version), advisory
    (line,) = re.findall(rf'^ *"{name}(?:\[.*])?>=.*', text(), re.MULTILINE)
    assert advisory in line, "the bound says what it is for"


def test_the_constraints_are_within_the_bounds() -> None:
    for name, requirement in required().items():
        assert name in constraints()
        assert requirement.specifier.contains(constraints()[name]), f"{requirement} and {constraints()[name]}"


def test_every_dependency_has_a_lower_bound() -> None:
    for requirement in required().values():
        assert any(each.operator in (">=", "==", "~=") for each in requirement.specifier), requirement
