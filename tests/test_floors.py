"""The floors of the house: a room imports only from floors below it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fedrobust"

FLOORS: list[set[str]] = [
    {"job", "progress"},
    {
        "arrays",
        "errors",
        "intervals",
        "machine",
        "portions",
        "private",
        "scaling",
        "seeds",
        "texts",
        "timeline",
        "users_code",
    },
    {"extras", "locks", "screen", "validation"},
    {"options", "yaml_tree"},
    {"draft"},
    {"metrics", "option_texts"},
    {"data", "learning", "updates", "databases", "failures", "records"},
    {"aggregation"},
    {"attacks", "secure", "trust"},
    {"experiment"},
    {"cautions"},
    {"experiment_file", "naming"},
    {"audit"},
    {"federation", "tracking"},
    {"figures"},
    {"report", "preparation", "result", "ending"},
    {"runner"},
    {"studies", "sessions"},
    {"matrices", "tuning", "cluster"},
    {"duels", "benchmark"},
    {"terminal"},
    {"api"},
    {"cli"},
    {"__main__"},
]
ALLOWED_IN = {
    "ray": {"federation", "cluster"},
    "mlflow": {"tracking"},
    "optuna": {"tuning"},
    "plotly": {"tuning"},
    "jinja2": {"report"},
    "pytorch_lightning": {"learning"},
    "typer": {"cli"},
    "rich": {"terminal"},
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Every module that a file imports, at the top or inside a function."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names if node.module == "fedrobust"]
    return found


def test_every_room_has_a_floor() -> None:
    rooms = {room(path) for path in MODULES} - {"__init__"}
    assert rooms == set().union(*FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_from_below(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        return
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    for name in imports(path):
        top = name.split(".")[0]
        if top == "fedrobust" and "." in name:
            other = name.split(".")[1]
            assert other == own or floor[other] < floor[own], f"{own} imports {name}, which is not below it"
        assert own in ALLOWED_IN.get(top, {own}), f"{own} imports {top}"


def test_help_imports_neither_torch_nor_ray() -> None:
    script = (
        "import sys; sys.argv = ['fedrobust', '--help']\n"
        "from fedrobust.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'pytorch_lightning'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout


@pytest.mark.parametrize("line", ["fedrobust ", "fedrobust ru", "fedrobust run --re"])
def test_the_first_tab_imports_nothing_heavy(line: str) -> None:
    script = (
        "import sys; sys.argv = ['fedrobust']\n"
        "from fedrobust.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'numpy', 'scipy', 'pandas', 'optuna'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    asked = {"_FEDROBUST_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    words, environment = [sys.executable, "-c", script], os.environ | asked
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert line.split(" ")[-1] in done.stdout


def test_reading_an_experiment_imports_neither_torch_nor_ray_nor_mlflow() -> None:
    script = (
        "import sys, fedrobust\n"
        "fedrobust.load(sys.argv[1])\n"
        "heavy = {'torch', 'ray', 'mlflow', 'pytorch_lightning'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    quickstart = PACKAGE.parent / "experiments" / "quickstart.yaml"
    done = subprocess.run([sys.executable, "-c", script, str(quickstart)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_file_grows_past_its_room() -> None:
    """Statements are counted, not lines: dense lines gain nothing."""
    trees = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
    sizes = {name: sum(isinstance(each, ast.stmt) for each in ast.walk(tree)) for name, tree in trees.items()}
    long = {name: size for name, size in sizes.items() if size > 320}
    assert not long, f"a room is missing: {long}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Also not while types are checked: what two modules need of each other belongs below both."""
    modules = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in MODULES}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    needs: dict[str, set[str]] = {}
    for name, path in modules.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= (whole & modules.keys()) or {node.module}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names} & modules.keys()
        needs[name] = found - {name}
    # Whoever needs nobody that is left can go; in the end only circles are left.
    left = dict(needs)
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not sorted(left)
