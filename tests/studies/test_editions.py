"""Studies of one name with other options: earlier results are put aside, come back, or stop the study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from refused import refused

from fedrobust.experiment import Experiment
from fedrobust.studies.editions import open_edition
from fedrobust.studies.finished import FinishedRun, FinishedRuns
from fedrobust.studies.planned import PlannedRun

FOLDER = Path("mlruns/matrix/mine")


def planned(rounds: int, *labels: str) -> list[PlannedRun]:
    """Runs of these names; each name has a seed of its own."""
    return [
        PlannedRun(
            experiment=Experiment(seed=ord(label[0]), federation={"rounds": rounds}),  # type: ignore[arg-type]
            label=label,
            tags={},
        )
        for label in labels
    ]


def begun(runs: Sequence[PlannedRun], aside: bool = True, failed: str = "", **options: object) -> FinishedRuns:
    """Open the study with these runs, and make those that are missing, as an execution does; the store is closed."""
    found = open_edition(FOLDER, "cells.jsonl", Path("matrix.json"), options, runs, aside)
    (FOLDER / "matrix.json").write_text(json.dumps(options))
    for run in runs:
        if found.get(run.digest) is None:
            found.add(FinishedRun(run.digest, run.label, seconds=1.0, failed=failed))
    found.close()
    return found


@pytest.fixture(autouse=True)
def _there(workplace: Path) -> None:
    """In an empty folder."""


def test_the_same_study_goes_on_in_its_folder() -> None:
    begun(planned(3, "a", "b"))
    (FOLDER / "table.md").touch()
    for runs in (planned(3, "a", "b"), planned(3, "b", "c"), planned(3, "d")):
        assert len(begun(runs).by_digest) >= 2, "more or fewer attacks, defences and seeds"
    assert (FOLDER / "table.md").exists()
    assert len(list(FOLDER.parent.iterdir())) == 1


def test_other_options_put_the_earlier_results_aside_and_bring_them_back(caplog: pytest.LogCaptureFixture) -> None:
    first = begun(planned(3, "a", "b"), changes={"federation.rounds": 3}, settings={})
    (FOLDER / "table.md").write_text("the headline of three rounds")
    (FOLDER / "parent.txt").write_text("p\n")
    second = begun(planned(5, "a", "b"), changes={"federation.rounds": 5}, settings={}, worst=2)
    assert (
        "before (changes.federation.rounds: 3 → 5): the earlier results are now in mlruns/matrix/mine.1" in caplog.text
    )
    assert sorted(each.name for each in FOLDER.iterdir()) == ["cells.jsonl", "matrix.json"], "no old headline"
    assert (FOLDER.with_name("mine.1") / "table.md").exists()
    assert not first.by_digest.keys() & second.by_digest.keys()
    third = begun(planned(7, "a", "b"), changes={}, settings={})
    assert "before (changes.federation.rounds: 5 → –): the" in caplog.text
    assert FOLDER.with_name("mine.2").exists()
    again = begun(planned(3, "a", "b"), changes={"federation.rounds": 3})
    assert again.by_digest == first.by_digest, "nothing is run again"
    assert (FOLDER / "parent.txt").read_text() == "p\n", "below the same run of MLflow"
    assert {each.name for each in FOLDER.parent.iterdir()} == {"mine", "mine.2", "mine.3"}
    assert begun(planned(7, "a", "b")).by_digest == third.by_digest


def test_runs_with_the_same_options_are_taken_over() -> None:
    begun([*planned(3, "a"), *planned(3, "b")])
    changed = [*planned(3, "a"), *planned(5, "b")]
    found = open_edition(FOLDER, "cells.jsonl", Path("matrix.json"), {}, changed, True)
    assert set(found.by_digest) == {changed[0].digest}
    found.close()


def test_a_failed_run_with_other_options_is_no_other_study() -> None:
    begun(planned(3, "a", "b"), failed="it broke")
    begun(planned(5, "a", "b"))
    assert len(list(FOLDER.parent.iterdir())) == 1


def test_what_cannot_be_put_aside_is_refused_before_anything_is_written() -> None:
    begun(planned(3, "a"), aside=False)
    before = (FOLDER / "cells.jsonl").read_bytes()
    with refused(file=FOLDER, says="has results with other options"):
        begun(planned(5, "a"), aside=False)
    assert (FOLDER / "cells.jsonl").read_bytes() == before
    begun(planned(3, "a"), aside=False)


def test_a_damaged_or_busy_earlier_edition_does_not_come_back() -> None:
    begun(planned(3, "a"))
    begun(planned(5, "a"))
    (FOLDER.with_name("mine.1") / "cells.jsonl").write_text("damaged\n")
    assert not begun(planned(3, "a")).by_digest.keys() & {run.digest for run in planned(5, "a")}
    assert FOLDER.with_name("mine.2").exists()


def test_names_that_only_one_of_them_has_are_not_what_changed(caplog: pytest.LogCaptureFixture) -> None:
    begun(planned(3, "a"), attacks={"flip": {"scale": 4}, "labels": "label_flip"})
    begun(planned(5, "a"), attacks={"flip": {"scale": 4}})
    assert "before (those of its experiment file): the" in caplog.text
    begun(planned(7, "a"), attacks={"flip": {"scale": 5}, "more": "ipm"})
    assert "before (attacks.flip.scale: 4 → 5): the" in caplog.text
