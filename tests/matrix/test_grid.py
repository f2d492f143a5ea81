"""Matrix files: what they compose, and what they refuse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from refused import check, refused

from fedrobust.attacks import draw_attackers
from fedrobust.errors import DataError, ExperimentError, Origin
from fedrobust.matrices import Matrix, MatrixPlan, load_matrix
from fedrobust.studies.editions import other_runs
from fedrobust.studies.finished import FinishedRun

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"

BASE = """
name: base
data: {source: {name: histology, patients: 20}}
federation: {clients: 10, rounds: 12}
"""
MATRIX = """
name: small
experiment: base.yaml
settings:
  few: {fraction: 0.2}
  many: {fraction: 0.4, data.partition.alpha: 1.0}
attacks:
  flip: {name: sign_flip, scale: 4}
  patch: patch_backdoor
  both: [label_flip, {name: patch_backdoor, target: 1}]
defences:
  mean: {aggregation: {rule: mean}}
  guarded: {aggregation: {stages: [nnm], rule: geometric_median}, trust.acts: true}
screening: [1]
fresh: [11, 12]
worst: 1
quick:
  changes: {federation.rounds: 3}
  only: {settings: [few], attacks: [flip]}
  fresh: [11]
"""


@pytest.fixture(autouse=True)
def _files(workplace: Path) -> None:
    Path("base.yaml").write_text(BASE)
    Path("matrix.yaml").write_text(MATRIX)


def test_every_cell_is_there_once() -> None:
    grid = load_matrix("matrix.yaml")
    controls, screening = grid.controls(), grid.screening()
    assert len(controls) == 2 * 3 * (1 + 2)
    assert len(screening) == 2 * 3 * 2
    fresh = grid.fresh({("few", "mean"): ["flip"], ("many", "guarded"): ["flip", "patch"]})
    assert [(cell.setting, cell.seed, cell.attack) for cell in fresh] == [
        ("few", 11, "flip"),
        ("few", 12, "flip"),
        ("many", 11, "flip"),
        ("many", 11, "patch"),
        ("many", 12, "flip"),
        ("many", 12, "patch"),
    ]
    cells = [*controls, *screening, *fresh]
    assert len({cell.digest for cell in cells}) == len(cells)
    assert grid.most == len(controls) + len(screening) + 2 * 2 * 2 * 2  # one worst and one backdoor


def test_cells_of_a_setting_and_seed_are_paired() -> None:
    """They have the same data, start, batches and attackers: the same hospitals as the oracle leaves out."""
    grid = load_matrix("matrix.yaml")
    for setting, malicious in (("few", 2), ("many", 4)):
        cells = [cell for cell in grid.controls() + grid.screening() if (cell.setting, cell.seed) == (setting, 1)]
        assert len({cell.experiment.data for cell in cells}) == len({cell.experiment.learning for cell in cells}) == 1
        drawn = {cell.attack: frozenset(draw_attackers(cell.experiment.attacks, 10, 1)) for cell in cells}
        assert drawn.pop("nobody") == frozenset()
        assert len(set(drawn.values())) == 1
        assert len(drawn["oracle"]) == malicious


def test_several_attacks_share_the_hospitals_and_the_oracle_tries_all_triggers() -> None:
    grid = load_matrix("matrix.yaml")
    found = {(cell.setting, cell.attack): cell for cell in grid.screening() + grid.controls() if cell.seed == 1}
    both = found["many", "both"].experiment.attacks
    assert [(attack.name, attack.count) for attack in both] == [("label_flip", 2), ("patch_backdoor", 2)]
    assert grid.backdoors == ["patch", "both"]
    oracle = found["many", "oracle"]
    assert oracle.triggers == ("patch", "both")
    assert [(each.name, each.fraction, each.count) for each in oracle.experiment.attacks] == [
        ("absent", 0.4, None),
        ("patch_backdoor", None, 0),
        ("patch_backdoor", None, 0),
    ]
    assert oracle.experiment.aggregation.rule.name == "mean"


def others(before: MatrixPlan, now: MatrixPlan) -> list[str]:
    """Finished cells of another edition, if a matrix was run to its end, and is started with other options."""
    made = [FinishedRun(cell.digest, cell.label) for cell in [*before.controls(), *before.screening()]]
    planned = [cell for cell in [*now.controls(), *now.screening()] if cell.attack != "oracle"]
    return [run.label for run in other_runs(made, planned)]


def test_only_changes_no_cell() -> None:
    whole, some = load_matrix("matrix.yaml"), load_matrix("matrix.yaml", ["only.attacks=[flip]"])
    assert others(whole, some) == others(some, whole) == []
    assert (some.triggers, some.backdoors) == (("patch", "both"), [])
    oracles = [{cell.digest for cell in grid.controls() if cell.attack == "oracle"} for grid in (whole, some)]
    assert oracles[0] == oracles[1]


def test_one_more_backdoor_changes_the_oracle_and_no_other_cell() -> None:
    before, now = load_matrix("matrix.yaml"), load_matrix("matrix.yaml", ["attacks.dba={name: dba, target: 0}"])
    assert others(before, now) == []
    assert others(before, load_matrix("matrix.yaml", ["settings.few.fraction=0.3"])) != []
    digests = {cell.digest for cell in before.controls()}
    assert {cell.attack for cell in now.controls() if cell.digest not in digests} == {"oracle"}


def test_options_by_dotted_path_and_overrides() -> None:
    grid = load_matrix("matrix.yaml", ["only.defences=[guarded]", "changes={federation.rounds: 7}"])
    assert list(grid.defences) == ["mean", "guarded"], "the control stays"
    cell = next(cell for cell in grid.screening() if (cell.setting, cell.defence) == ("many", "guarded"))
    assert cell.experiment.federation.rounds == 7
    assert cell.experiment.federation.clients == 10
    assert cell.experiment.data.partition.alpha == 1.0
    assert cell.experiment.trust.acts
    assert cell.experiment.seed == cell.seed
    assert not cell.experiment.tracking.model


def test_the_quick_version_is_smaller_and_has_a_folder_of_its_own() -> None:
    quick, full = load_matrix("matrix.yaml", quick=True), load_matrix("matrix.yaml")
    assert quick.matrix.name == "small-quick"
    assert (list(quick.settings), list(quick.attacks), list(quick.defences)) == (["few"], ["flip"], ["mean", "guarded"])
    assert {cell.experiment.federation.rounds for cell in quick.controls()} == {3}
    assert quick.matrix.fresh == (11,)
    assert {cell.digest for cell in quick.controls()}.isdisjoint(cell.digest for cell in full.controls())


def changed(old: str, new: str) -> None:
    text = Path("matrix.yaml").read_text()
    assert old in text
    Path("matrix.yaml").write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "line", "problem"),
    [
        ("scale: 4", "scael: 4", 8, {"entry": "attacks.flip", "path": "attacks.0.scael", "allows": "scale"}),
        ("scale: 4", "scale: -1", 8, {"entry": "attacks.flip", "path": "attacks.0.scale", "found": "-1"}),
        ("rule: mean", "rule: maen", 12, {"entry": "defences.mean", "path": "aggregation.rule", "found": "'maen'"}),
        (
            "trust.acts: true",
            "trust.act: true",
            13,
            {"entry": "defences.guarded", "path": "trust.act", "allows": "acts"},
        ),
        (
            "data.partition.alpha: 1.0",
            "data.partition.alpha: x",
            6,
            {"entry": "settings.many", "path": "data.partition.alpha", "found": "'x'"},
        ),
        ("fraction: 0.4", "fraction: 0.99", 6, {"entry": "settings.many.fraction", "path": "attacks"}),
        ("\n  fresh: [11]", "\n  fresh: [1]", 20, {"path": "quick.fresh", "says": "1 is among the screening seeds"}),
        ("fraction: 0.4", "fraction: 4", 6, {"path": "settings.many.fraction", "found": "4"}),
        ("fraction: 0.2", "data.root: 10", 5, {"path": "settings.few.fraction", "says": "fraction"}),
        ("scale: 4", "scale: 4, fraction: 0.1", 8, {"path": "attacks.flip", "says": "fraction"}),
        (
            "flip: {name: sign",
            "nobody: {name: sign",
            7,
            {"path": "attacks", "says": "'nobody' has a meaning of its own in a matrix"},
        ),
        ("flip: {name", "2024: {name", 8, {"path": "attacks.2024", "says": "quotes", "found": "2024"}),
        ("flip: {name", "true: {name", 8, {"says": "quotes"}),
        ("fraction: 0.2", "fraction: 0.2, seed: 7", 5, {"path": "settings.few", "says": "seed is given by the matrix"}),
        ("rule: mean}", "rule: mean}, attacks: [ipm]", 12, {"path": "defences.mean", "says": "attacks is given"}),
        ("changes: {federation.rounds: 3", "changes: {seed: 3", 18, {"path": "quick.changes", "says": "seed is given"}),
        ("worst: 1", "wurst: 1", 16, {"path": "wurst", "allows": "worst"}),
        ("fresh: [11, 12]", "fresh: [1, 12]", 15, {"path": "fresh", "says": "1 "}),
        ("attacks: [flip]}", "attacks: [flop]}", 19, {"path": "quick.only.attacks", "hint": "did you mean 'flip'?"}),
        ("name: small", "name: small\ncontrol: none", 3, {"path": "control", "found": "'none'"}),
        (
            "federation.rounds: 3",
            "federation.rounds: 0",
            18,
            {"entry": "quick.changes", "path": "federation.rounds", "found": "0"},
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_place(old: str, new: str, line: int, problem: dict[str, Any]) -> None:
    changed(old, new)
    with pytest.raises(ExperimentError) as caught:
        load_matrix("matrix.yaml", quick="federation" in old)
    check(caught.value.problems[0], file="matrix.yaml", line=line, **problem)


def test_a_setting_with_a_number_as_its_name_can_be_overridden() -> None:
    changed("few: {", "'20': {")
    changed("settings: [few]", "settings: ['20']")
    assert load_matrix("matrix.yaml", ["settings.20.fraction=0.3"]).settings["20"]["fraction"] == 0.3


def test_an_experiment_that_is_not_there_is_told_with_the_line_that_names_it() -> None:
    changed("experiment: base.yaml", "experiment: bass.yaml")
    with refused(origins=(Origin(Path("matrix.yaml"), 3, path="experiment"), Origin(Path("bass.yaml")))):
        load_matrix("matrix.yaml")


def test_what_is_wrong_with_many_cells_is_told_once() -> None:
    changed("scale: 4", "scale: -1")
    changed("rule: geometric_median", "rule: krun")
    with pytest.raises(ExperimentError) as caught:
        load_matrix("matrix.yaml")
    assert len(caught.value.problems) == 2


def test_what_no_entry_alone_is_to_blame_for_names_the_cell() -> None:
    changed("rule: geometric_median}", "rule: geometric_median, f: 6}")
    with pytest.raises(ExperimentError) as caught:
        load_matrix("matrix.yaml")
    assert all(each.note or each.origin.path == "defences.guarded" for each in caught.value.problems)


def test_too_few_hospitals_for_all_attacks_of_a_list() -> None:
    changed("[label_flip, {name: patch_backdoor, target: 1}]", "[label_flip, ipm, alie]")
    with refused(file="matrix.yaml", line=10, entry="attacks.both", note="few", says="3 attacks"):
        load_matrix("matrix.yaml")


def test_data_that_are_not_there_are_refused_before_anything_starts() -> None:
    changed("data.partition.alpha: 1.0", "data.source: {name: npz, path: nowhere.npz}")
    grid = load_matrix("matrix.yaml")
    with refused(DataError, file="nowhere.npz") as caught:
        grid.check_data()
    assert caught.value.problems[0].origins[0] == Origin(Path("matrix.yaml"), 6, path="settings.many")


@pytest.mark.parametrize("name", ["robustness", "robustness_hard"])
@pytest.mark.parametrize("quick", [False, True])
def test_the_shipped_matrices_can_be_run(name: str, quick: bool) -> None:
    grid: MatrixPlan = load_matrix(EXPERIMENTS / f"{name}.yaml", quick=quick)
    assert {"mean", "adaptive_reputation"} <= set(grid.defences)
    assert grid.backdoors
    if name == "robustness" and not quick:
        assert len(grid.defences) == 15
        assert len(grid.matrix.fresh) == 5
        assert {setting["fraction"] for setting in grid.settings.values()} == {0.2}


def test_through_an_encoder_the_attacks_and_defences_are_the_same() -> None:
    cnn, encoder = (load_matrix(EXPERIMENTS / f"{name}.yaml") for name in ("robustness", "robustness_encoder"))
    assert (cnn.attacks, cnn.defences) == (encoder.attacks, encoder.defences)
    assert {setting["fraction"] for setting in encoder.settings.values()} == {0.2, 0.4}
    assert {cell.experiment.learning.model.name for cell in encoder.controls()} == {"encoder"}


def test_the_file_of_the_guide_can_be_run_as_the_guide_says() -> None:
    guide = (EXPERIMENTS.parent / "docs" / "matrix.md").read_text()
    for name, text in re.findall(r"^```yaml (\S+)\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL):
        Path(name).write_text(text)
    Path("quickstart.yaml").write_text((EXPERIMENTS / "quickstart.yaml").read_text())
    grid = load_matrix("mine.yaml")
    assert len(grid.controls()) + len(grid.screening()) == 2 * (4 * 4 + 4 * 3)
    (command,) = re.findall(r"^fedrobust matrix mine\.yaml (.*)$", guide, re.MULTILINE)
    narrowed = load_matrix("mine.yaml", shlex.split(command))
    assert list(narrowed.attacks) == ["sign_flip", "patch"]
    assert narrowed.controls()[0].experiment.federation.rounds == 5
    described = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \| ", guide, re.MULTILINE)
    assert set(Matrix.model_fields) - {"name"} <= {key for keys in described for key in keys}
