"""What a difference between two candidates means, in one sentence that a reader without statistics can use."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from reported import compared, recorded, write

from fedrobust.experiment import Experiment
from fedrobust.report import Comparison, Setting, compare, write_comparison
from fedrobust.report.comparison_tables import verdict_table
from fedrobust.report.differences import on_patches
from fedrobust.report.distinctions import plain_mean, short_options, sides

PLAIN = {"aggregation": {"stages": [], "rule": {"name": "mean"}, "f": 1}}
GOOD = {"aggregation": {"stages": [{"name": "clip"}, {"name": "nnm"}], "rule": {"name": "geometric_median"}, "f": 1}}


def journals(*accuracies: tuple[dict[str, Any], dict[int, float]]) -> list[list[Any]]:
    """Runs of candidates: options, and seed → balanced accuracy."""
    return [compared(seed=seed, accuracy=value, **own) for own, values in accuracies for seed, value in values.items()]


def setting(*accuracies: tuple[dict[str, Any], dict[int, float]]) -> Setting:
    (found,) = compare([recorded(each) for each in journals(*accuracies)]).settings
    return found


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values, start=1))


@pytest.mark.parametrize(
    ("ours", "theirs", "sentence"),
    [
        (
            by_seed(0.80, 0.82, 0.81, 0.79),
            by_seed(0.70, 0.71, 0.69, 0.69),
            "clip + nnm + geometric median is better than mean by 0.11 (0.09 to 0.12) in balanced accuracy, in 4 seeds",
        ),
        (
            by_seed(0.60, 0.62, 0.61, 0.59),
            by_seed(0.70, 0.71, 0.69, 0.71),
            "mean is better than clip + nnm + geometric median by 0.10 (0.07 to 0.12) in balanced accuracy, in 4 seeds",
        ),
        (
            by_seed(0.80, 0.70, 0.75),
            by_seed(0.72, 0.73, 0.71),
            "clip + nnm + geometric median and mean cannot be told apart in balanced accuracy: clip + nnm + geometric "
            "median is ahead by 0.030 (−0.11 to 0.17) in 3 seeds; about 27 more would",
        ),
        (
            by_seed(0.80, 0.70, 0.75),
            by_seed(0.801, 0.66, 0.785),
            "clip + nnm + geometric median and mean cannot be told apart in balanced accuracy: clip + nnm + geometric "
            "median is ahead by 0.001 (−0.09 to 0.09) in 3 seeds; not even 1,000 seeds would",
        ),
        (
            by_seed(0.80, 0.70, 0.75),
            by_seed(0.80, 0.70, 0.75),
            "clip + nnm + geometric median and mean have the same balanced accuracy in each of 3 seeds",
        ),
        (
            {1: 0.8, 2: 0.8},
            {3: 0.7, 4: 0.7},
            "clip + nnm + geometric median and mean cannot be told apart in balanced accuracy: they have no seed in "
            "common",
        ),
    ],
)
def test_a_difference_is_a_sentence(ours: dict[int, float], theirs: dict[int, float], sentence: str) -> None:
    assert setting((GOOD, ours), (PLAIN, theirs)).sentences() == [sentence]


def test_one_seed_says_nothing_of_others_and_two_say_little() -> None:
    (one,) = setting((GOOD, by_seed(0.8)), (PLAIN, by_seed(0.7))).sentences()
    assert "in 1 seed; how many more would do cannot be estimated from one; an interval needs 3" in one
    (two,) = setting((GOOD, by_seed(0.80, 0.70)), (PLAIN, by_seed(0.72, 0.69))).sentences()
    assert "in 2 seeds; about " in two and "more would, a rough figure from two" in two


def reading(records: list[Any], wrong: dict[int, int], named: int = 24) -> list[Any]:
    """The same run, whose final model misreads these of 20 patches: patch → true label; `named` are in the record."""
    labels = [sum(truth == label for truth in wrong.values()) for label in (0, 1)]
    records[-2]["confusion"] = [[10 - labels[0], labels[0]], [labels[1], 10 - labels[1]]]
    indices = list(wrong)[:named]
    truth = [wrong[index] for index in indices]
    records[-1]["misread"] = {
        "indices": indices, "truth": truth, "predicted": [1 - each for each in truth], "confidence": [0.9] * len(truth)
    }  # fmt: skip
    return records


def test_with_few_seeds_the_test_patches_are_paired() -> None:
    good = reading(compared(seed=1, accuracy=0.9, **GOOD), {0: 0, 11: 1})
    plain = reading(
        compared(seed=1, accuracy=0.6, **PLAIN), {0: 0, 1: 0, 2: 0, 3: 0, 11: 1, 12: 1, 13: 1, 14: 1, 15: 1}
    )
    found = on_patches(recorded(good), recorded(plain))
    assert not isinstance(found, str)
    assert found.value == pytest.approx(0.35)  # three of ten and four of ten
    (one,) = compare([recorded(good), recorded(plain)]).settings
    assert "on the test patches after the last round: +0.350 (" in one.sentences()[0]
    assert one.sentences()[0].endswith("clip + nnm + geometric median minus mean")
    swapped = on_patches(recorded(plain), recorded(good))
    assert not isinstance(swapped, str) and swapped.low == pytest.approx(-found.high)


def test_it_is_said_why_there_is_no_interval_over_the_test_patches() -> None:
    good = reading(compared(seed=1, accuracy=0.9, **GOOD), {0: 0, 11: 1})
    plain = reading(compared(seed=1, accuracy=0.6, **PLAIN), dict.fromkeys(range(9), 0), named=5)
    told = "the record names only 5 of the misread patches, those of which the model was surest"
    assert on_patches(recorded(good), recorded(plain)) == told
    (one,) = compare([recorded(good), recorded(plain)]).settings
    assert one.sentences()[0].endswith(f"no interval over the test patches: {told}")
    good[0]["digest"] = "cd" * 32
    other = reading(compared(seed=1, accuracy=0.6, **PLAIN), {3: 0})
    assert on_patches(recorded(good), recorded(other)) == "the two runs were not tested on the same patches"


def test_all_are_compared_with_the_plain_mean_and_with_the_best() -> None:
    median = {"aggregation": {"stages": [], "rule": {"name": "median"}, "f": 1}}
    found = setting(
        (GOOD, by_seed(0.8, 0.8, 0.81)), (PLAIN, by_seed(0.6, 0.61, 0.6)), (median, by_seed(0.7, 0.7, 0.71))
    )
    assert found.baseline is not None and found.baseline.label == "mean"
    assert list(found.references()) == ["minus mean", "minus the best"]
    pairs = [sentence.split(" by ")[0] for sentence in found.sentences()]
    best = "clip + nnm + geometric median is better than"
    assert pairs == [f"{best} mean", "median is better than mean", f"{best} median"]
    (whole,) = [each for each in found.differences if {each.ours, each.theirs} == {"median", "mean"}]
    alone = setting((median, by_seed(0.7, 0.7, 0.71)), (PLAIN, by_seed(0.6, 0.61, 0.6))).differences[0]
    assert whole.estimate.low < alone.estimate.low, "three intervals that hold at once are wider than one"


@pytest.mark.parametrize(("name", "plain"), [("referee", False), ("jury", False), ("repair", False), ("", True)])
def test_a_mean_that_something_overrules_is_not_the_plain_mean(name: str, plain: bool) -> None:
    trust = {name: {}} if name else {}
    options = {"data": {"root": {"set_aside": 0.1}}, "aggregation": {"rule": "mean"}, "trust": trust}
    assert plain_mean(sides(short_options(Experiment.model_validate(options).resolved()))[1]) == plain


def test_without_a_plain_mean_or_with_several_all_are_compared_with_the_best() -> None:
    rates = [PLAIN | {"learning": {"local": {"optimizer": {"name": "sgd", "lr": lr}}}} for lr in (0.05, 0.1)]
    task = [own | {"attacks": [{"name": "sign_flip", "count": 2}]} for own in rates]
    found = setting(*((own, by_seed(0.7, 0.6, value)) for own, value in zip(task, (0.65, 0.7), strict=True)))
    assert found.baseline is None and list(found.references()) == ["minus the best"]
    assert [each.label for each in found.candidates] == ["lr 0.1", "lr 0.05"]


def attacked(records: list[Any], success: float) -> list[Any]:
    """The same run with this attack success."""
    for record in records:
        if record["kind"] == "evaluation":
            record["metrics"] = record["metrics"] | {"attack/success_rate": success}
    return records


def test_less_attack_success_is_better() -> None:
    good = [attacked(compared(seed=seed, accuracy=0.7, **GOOD), 0.05 + seed / 100) for seed in (1, 2, 3)]
    plain = [attacked(compared(seed=seed, accuracy=0.7, **PLAIN), 0.8) for seed in (1, 2, 3)]
    found = compare([recorded(each) for each in (*good, *plain)])
    told = "clip + nnm + geometric median lets attacks succeed less often than mean, by 0.73 (0.69 to 0.77), in 3 seeds"
    assert found.settings[0].sentences()[1] == told
    heads, rows = verdict_table(found, found.settings[0])
    assert heads[-2:] == ["attack success", "attack success minus mean"]
    assert sorted(row[-1] for row in rows)[1].startswith("−0.730 (−")


def test_few_test_patches_are_named_with_what_they_are_worth() -> None:
    records = journals((GOOD, by_seed(0.8)), (PLAIN, by_seed(0.7)))
    records[0][0]["test_patients"], records[1][0]["test_patients"] = 4, 4
    (found,) = compare([recorded(each) for each in records]).settings
    assert found.candidates[0].tested == "20 of 4 patients"
    assert any(
        note.startswith("20 test patches: a figure of one run is known to ± 0.2 at best") for note in found.notes
    )


def test_where_nothing_was_learnt_it_is_said() -> None:
    notes = setting((GOOD, by_seed(0.5, 0.51)), (PLAIN, by_seed(0.5, 0.5))).notes
    assert any(note.startswith("No candidate is better than chance, 0.505 against 0.5: nothing was") for note in notes)


@pytest.fixture
def written(tmp_path: Path) -> tuple[Comparison, Path]:
    """A comparison of two settings, and its page."""
    records = journals((GOOD, by_seed(0.8, 0.8, 0.81)), (PLAIN, by_seed(0.6, 0.61, 0.6)))
    records.append(compared(seed=1, accuracy=0.9, **GOOD | {"attacks": []}))
    for place, each in enumerate(records):
        (tmp_path / f"{place}").mkdir()
        write(tmp_path / f"{place}", each)
    return write_comparison([records[0][0]["experiment"]["name"]], tmp_path, tmp_path / "out")


def test_the_tables_for_programs_hold_what_the_page_holds(written: tuple[Comparison, Path]) -> None:
    found, page = written
    data = json.loads((page.parent / "compare.json").read_text())
    text = page.read_text()
    with (page.parent / "candidates.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (page.parent / "differences.csv").open() as file:
        differences = list(csv.DictReader(file))
    assert [row["candidate"] for row in rows] == [each.label for _, each in found.candidates]
    assert float(rows[0]["test/balanced_accuracy"]) == pytest.approx(0.8033, abs=1e-4)
    assert (
        rows[0]["seeds"] == "1 2 3"
        and rows[0]["test patches"] == "20"
        and rows[0]["aggregation.rule"] == "geometric_median"
    )
    assert [each["meaning"] for each in differences] == [each for own in data["settings"] for each in own["sentences"]]
    for own in data["settings"]:
        for told in (*own["sentences"], *own["notes"], own["title"], own["facts"]):
            assert told in text
    assert [len(each["candidates"]) for each in data["settings"]] == [2, 1]
    assert data["settings"][0]["candidates"][0]["runs"][0]["seed"] == 1
