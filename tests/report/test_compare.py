"""Runs with the same task are ranked, others stand apart, and each difference comes with what it means."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nasty import NAMES
from refused import refused
from reported import compared, quarantining, recorded, write

from fedrobust.records import EvaluationRecord, RecordedRun
from fedrobust.report import Comparison, Setting, compare, write_comparison
from fedrobust.report.comparison_files import folder_name
from fedrobust.report.comparison_tables import side_by_side
from fedrobust.report.distinctions import short_options, sides, telling
from fedrobust.report.run_figures import Spread, averaged, shown

SIGN_FLIP = [{"name": "sign_flip", "count": 2}]
IPM = {"name": "ipm", "count": 1, "epsilon": 0.5}


def runs(*journals: list[Any]) -> list[RecordedRun]:
    return [recorded(journal) for journal in journals]


def two_groups() -> list[RecordedRun]:
    """krum with 0.2, 0.4 and 0.6, median with 0.8 and 0.9."""
    krum = [compared("krum", seed, accuracy) for seed, accuracy in ((3, 0.6), (1, 0.2), (2, 0.4))]
    return runs(*krum, compared("median", 1, 0.8), compared("median", 2, 0.9))


def only(found: Comparison) -> Setting:
    """The one setting of a comparison."""
    (setting,) = found.settings
    return setting


def test_candidates_have_mean_and_deviation_over_their_seeds_the_best_first() -> None:
    found = only(compare(two_groups()))
    assert found.columns == ("aggregation.rule",)
    assert [each.label for each in found.candidates] == ["nnm + median", "nnm + krum"]
    assert found.candidates[1].seeds == (1, 2, 3)
    accuracy = [each.figures["test/balanced_accuracy"] for each in found.candidates]
    assert accuracy == [pytest.approx(Spread(0.85, 0.1 / math.sqrt(2), 2)), pytest.approx(Spread(0.4, 0.2, 3))]
    assert found.candidates[0].figures["upload_bytes"].mean == 5_000_000
    assert "attack/success_rate" not in found.candidates[0].figures  # null everywhere
    assert any("same seeds" in note for note in found.notes)
    assert found.averaged == (3, 4, 5) and found.candidates[0].tested == "20"


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"attacks": [IPM]}, "ipm · count 1 · knowledge all"),
        ({"attacks": [IPM | {"epsilon": 2.0}, IPM]}, "ipm + ipm · count 1 · knowledge all"),
        ({"federation": {"rounds": 50}}, "rounds 50"),
        ({"federation": {"clients": 6}}, "clients 6"),
        ({"data": {"partition": {"name": "dirichlet", "alpha": 0.1}}}, "alpha 0.1"),
        ({"learning": {"local": {"epochs": 3}}}, "epochs 3"),
        ({"privacy": {"name": "shares"}}, "privacy shares"),
    ],
)
def test_runs_with_another_task_stand_apart_and_are_not_ranked(changes: dict[str, Any], title: str) -> None:
    task = {"attacks": SIGN_FLIP}
    same = [compared("krum", 1, 0.4, **task), compared("median", 1, 0.5, **task)]
    found = compare(runs(*same, compared("krum", 1, 0.9, **task | changes)))
    assert [len(setting.candidates) for setting in found.settings] == [2, 1]
    assert found.settings[1].title == title
    assert found.settings[0].candidates[1].label == found.settings[1].candidates[0].label == "nnm + krum"
    assert not found.settings[1].sentences() and not found.settings[1].differences
    assert "nothing in this setting" in found.settings[1].notes[0]
    heads, rows = side_by_side(found)["balanced accuracy"]
    assert heads == ["", found.settings[0].title, title]
    assert rows == [["nnm + krum", "0.400", "0.900"], ["nnm + median", "0.500", "–"]]


@pytest.mark.parametrize(
    "changes",
    [
        {"trust": {"acts": True}},
        {"learning": {"local": {"optimizer": {"name": "sgd", "lr": 0.2}}}},
        {"learning": {"model": "timm:resnet18"}},
        {"aggregation": {"stages": [], "rule": {"name": "mean"}}},
    ],
)
def test_what_a_person_chooses_for_a_task_is_a_candidate(changes: dict[str, Any]) -> None:
    journals = [compared("krum", 1, attacks=SIGN_FLIP), compared("krum", 1, attacks=SIGN_FLIP, **changes)]
    assert len(only(compare(runs(*journals))).candidates) == 2


def test_an_option_in_no_list_belongs_to_the_setting() -> None:
    setting, candidate = sides(
        {"new.option": "1", "aggregation.rule": "mean", "learning.local.steps": "4", "learning.x": "2"}
    )
    assert set(setting) == {"new.option", "learning.local.steps"}
    assert set(candidate) == {"aggregation.rule", "learning.x"}


def digests(*kept: str) -> Comparison:
    """Two rules on two seeds, with these digests of the data."""
    journals = [compared(rule, seed) for rule in ("krum", "median") for seed in (1, 2)]
    for records, digest in zip(journals, kept, strict=True):
        records[0]["digest"] = digest
    return compare(runs(*journals))


def test_data_may_differ_by_seed_but_not_within_one() -> None:
    assert len(digests("a", "b", "a", "b").settings) == 1
    found = digests("a", "a", "c", "c")
    assert [setting.title for setting in found.settings] == ["data digest a", "data digest c"]
    assert all(len(setting.candidates) == 1 for setting in found.settings)


def test_runs_whose_averages_are_of_other_rounds_stand_apart() -> None:
    rare = [
        each
        for each in compared("median", 1)
        if (each["kind"], each["round"] % 2 if "round" in each else 0) != ("evaluation", 0)
    ]
    found = compare(runs(compared("krum", 1), rare))
    assert [setting.title for setting in found.settings] == ["averaged rounds 3 to 5", "averaged rounds 3, 5"]


@pytest.mark.parametrize(
    ("evaluated", "averages"),
    [
        (range(1, 21), [16, 17, 18, 19, 20]),
        (range(16, 21), [16, 17, 18, 19, 20]),  # a cell of a matrix, with evaluation.last
        (range(1, 6), [3, 4, 5]),
        ([5, 10, 15, 20], [15, 20]),
        ([1, 2], [2]),
        ([7], [7]),
        ([], []),
    ],
)
def test_figures_are_means_of_the_last_evaluations(evaluated: Sequence[int], averages: list[int]) -> None:
    records = [EvaluationRecord(round=each, metrics={}) for each in evaluated]
    assert [record.round for record in averaged(records)] == averages


def test_labels_threads_and_tracking_tell_nothing_apart() -> None:
    changes: dict[str, Any] = {"name": "another", "tracking": {"experiment": "b"}, "workers": {"count": 2}}
    found = only(compare(runs(compared(seed=1), compared(seed=2, **changes, evaluation={"every": 1}))))
    assert len(found.candidates) == 1 and found.columns == ()
    assert found.candidates[0].label == "nnm + krum" and found.title == ""


def test_of_the_same_seed_the_last_run_counts() -> None:
    found = compare(runs(compared(seed=1, accuracy=0.1), compared(seed=2), compared(seed=1, accuracy=0.9)))
    assert only(found).candidates[0].figures["test/balanced_accuracy"].mean == pytest.approx(0.7)
    assert found.notes == ("1 run repeats another's seed: the last one counts",)


def test_runs_that_have_not_ended_are_told_and_left_out() -> None:
    found = compare([*two_groups(), *runs(compared("krum", 4)[:4])])
    assert sum(len(each.runs) for _, each in found.candidates) == 5
    assert found.notes[0] == "run krum4 has not ended (round 2 of ?) and is left out"


def skipping(records: list[Any], *numbers: int) -> list[Any]:
    """The same run with these rounds skipped."""
    for record in records:
        if record["kind"] == "round" and record["round"] in numbers:
            record["skipped"] = "below the quorum"
    return records


def test_skipped_rounds_are_a_column_where_there_are_any() -> None:
    assert "rounds_skipped" not in compare(two_groups()).figures
    found = compare(runs(compared("krum", 1), compared("krum", 2), skipping(compared("mean", 1), 2, 4)))
    spreads = {each.label: (each.figures["rounds_skipped"], len(each.runs)) for _, each in found.candidates}
    told = {label: shown("rounds_skipped", *spread) for label, spread in spreads.items()}
    assert told == {"nnm + krum": "0.0 ± 0.0", "nnm + mean": "2"}


def test_a_run_whose_model_is_the_initial_one_is_told_and_left_out() -> None:
    found = compare([*two_groups(), *runs(skipping(compared("krum", 4), 1, 2, 3, 4, 5))])
    assert sum(len(each.runs) for _, each in found.candidates) == 5
    told = "run krum4 never changed its model and is left out; rounds skipped: 5 of 5: in 5 rounds: below the quorum"
    assert found.notes[0] == told


@pytest.mark.parametrize(
    ("journals", "found", "note"),
    [
        ([], "no runs", ""),
        ([compared()], "only one run", ""),
        ([compared(), compared()], "only one run", "1 run"),
        ([compared()[:3], compared(seed=2)[:1]], "no run with a result", "run krum7"),
    ],
)
def test_nothing_to_compare_is_one_line(journals: list[list[Any]], found: str, note: str) -> None:
    with refused(found=found) as caught:
        compare(runs(*journals))
    assert note in caught.value.problems[0].hint


def test_options_read_as_overrides_do_and_have_their_defaults() -> None:
    options = short_options({"seed": 3, "attacks": [IPM], "aggregation": {"stages": ["clip", "nnm"], "rule": "mean"}})
    assert options["aggregation.stages"] == "[clip, nnm]" and options["aggregation.rule"] == "mean"
    assert options["attacks"] == "[ipm]" and options["attacks.0.epsilon"] == "0.5"
    assert options["federation.rounds"] == "20" and options["data.partition"] == "dirichlet"
    assert not {"seed", "name", "workers.count", "tracking.model"} & options.keys()


def test_options_of_another_version_are_told_as_they_are() -> None:
    assert short_options({"seed": 3, "no": {"longer": 1}, "rule": {"name": "krum", "m": None}}) == {
        "no.longer": "1",
        "rule": "krum",
        "rule.m": "null",
    }


def test_options_that_follow_from_a_name_are_no_columns_unless_they_differ_below_it() -> None:
    mean = {"rule": "mean", "f": "1", "attacks": "[]"}
    krum = {"rule": "krum", "rule.m": "2", "f": "1", "attacks": "[ipm]", "attacks.0.epsilon": "0.5"}
    columns, differing = telling([mean, krum])
    assert columns == ("rule", "attacks")
    assert set(differing) == {"rule", "rule.m", "attacks", "attacks.0.epsilon"}
    assert telling([mean, krum, krum | {"rule.m": "3"}])[0] == ("rule", "attacks", "rule.m")
    assert telling([krum, krum | {"attacks.0.epsilon": "1.0"}])[0] == ("attacks.0.epsilon",)


def test_an_option_that_two_alternatives_share_is_a_column() -> None:
    two = [{"attacks": "[alie]", "attacks.0.count": "1"}, {"attacks": "[ipm]", "attacks.0.count": "3"}]
    assert telling(two)[0] == ("attacks", "attacks.0.count")


def test_curves_are_those_of_the_rounds_in_which_all_seeds_were_evaluated() -> None:
    first, second = compared(seed=1, accuracy=0.5), compared(seed=2, accuracy=0.7)
    second = [record for record in second if (record["kind"], record.get("round")) != ("evaluation", 2)]
    candidate = only(compare(runs(first, second))).candidates[0]
    curve = candidate.curve("test/balanced_accuracy")
    assert curve.rounds == [1, 3, 4, 5]
    np.testing.assert_allclose(curve.values, [[0.1, 0.5, 0.5, 0.5], [0.1, 0.7, 0.7, 0.7]])
    assert candidate.curve("attack/success_rate").rounds == []


def test_trust_is_the_mean_of_attackers_and_of_the_others_where_the_attackers_differ_by_seed() -> None:
    first, second = compared(seed=1), compared(seed=2)
    second[0]["attackers"] = {"0": "sign_flip"}
    for records, attackers in ((first, (1, 4)), (second, (0,))):
        for record in records:
            if record["kind"] == "round":
                record["reputation"] = {str(client): 0.25 if client in attackers else 0.75 for client in range(6)}
    trust = only(compare(runs(first, second))).candidates[0].trust()
    np.testing.assert_allclose(trust, [[0.25] * 5, [0.75] * 5])
    for records in (first, second):
        records[0]["attackers"] = {}
    assert np.isnan(only(compare(runs(first, second))).candidates[0].trust()[0]).all()


@pytest.mark.parametrize(
    ("figure", "spread", "text"),
    [
        ("test/auroc", Spread(0.9124, 0.0042, 3), "0.912 ± 0.004"),
        ("test/auroc", Spread(0.9, math.nan, 1), "0.900 (n = 1)"),
        ("test/auroc", Spread(math.nan, math.nan, 0), "–"),
        ("upload_bytes", Spread(12_345_678, 0.0, 3), "12.3 MB"),
        ("upload_bytes", Spread(2_000, 500, 3), "2.0 ± 0.5 kB"),
        ("upload_bytes", Spread(0.0, 0.0, 3), "0 B"),
    ],
)
def test_figures_are_shown_with_their_spread(figure: str, spread: Spread, text: str) -> None:
    assert shown(figure, spread, 3) == text


def test_spreads_leave_out_what_is_not_there() -> None:
    assert Spread.of([0.5, None, math.nan, 0.7]) == pytest.approx(Spread(0.6, 0.1 * math.sqrt(2), 2))
    assert Spread.of([]).n == 0


def test_the_page_holds_table_pictures_and_settings_and_needs_nothing_else(tmp_path: Path) -> None:
    journals = [compared(rule, seed, 0.5, name="<i>x</i>") for rule in ("krum", "median") for seed in (1, 2)]
    journals.append([*quarantining()])
    for place, records in enumerate(journals):
        (tmp_path / "runs" / f"{place}").mkdir(parents=True)
        write(tmp_path / "runs" / f"{place}", records)
    found, page = write_comparison(["<i>x</i>", "4"], tmp_path / "runs", tmp_path / "out")
    text = page.read_text()
    assert page.parent.parent == tmp_path / "out" and page.name == "compare.html" and len(found.candidates) == 3
    assert "&lt;i&gt;x&lt;/i&gt;" in text and "<i>" not in text and "<script" not in text and "http" not in text
    assert re.findall(r'<figure id="(\w+)">', text) == ["curves", "trust", "reputation"]
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', text))
    assert "<td>0.500 ± 0.000</td>" in text and "<td>aggregation.rule</td>" in text
    assert "No curve of attack success: no attack in these runs has a target" in text
    assert "<summary>All 3 options that differ between the candidates</summary>" in text
    text = write_comparison(["<i>x</i>"], tmp_path / "runs", tmp_path / "out")[1].read_text()
    assert "<summary>The one option that differs between the candidates</summary>" in text
    assert sorted(path.stem for path in page.parent.glob("figures/*.png")) == ["curves", "reputation", "trust"]


@pytest.mark.parametrize(
    ("names", "folder"),
    [
        (["quickstart"], "quickstart"),
        (["0123abcd" * 4, "4567"], "0123abcd,4567"),
        (["0a" * 16, "1b" * 16], "0a0a0a0a,1b1b1b1b"),
        (["nnm + median", "良性"], "nnm + median,良性"),
    ],
)
def test_folders_are_named_after_what_is_compared(names: list[str], folder: str) -> None:
    assert folder_name(names) == folder


def test_names_that_are_no_folders_are_told_apart() -> None:
    compared = [[*NAMES], *([name] for name in NAMES), ["a/b"], ["a", "b"], ["a,b"], ["a-b"], ["x" * 121], ["x" * 122]]
    compared += [["breast_cancer_of_the_left_side_" + end] for end in "12"]  # as long as a run's id, and none
    made = {folder_name(names) for names in compared}
    assert len(made) == len(compared)
    for folder in made:
        assert not set(folder) & set('/\\:*?"<>|$&\n') and folder.strip(". ") == folder and len(folder.encode()) <= 120
