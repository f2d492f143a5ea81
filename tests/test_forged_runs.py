"""Whole runs that somebody with access to their folders, and without the coordinator's key, has worked on."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import ended_again, exchange, run
from vouched import append, restate

import fedrobust
from fedrobust.audit.signing import read_public
from fedrobust.audit.verification import verify_all
from fedrobust.errors import ExperimentError
from fedrobust.federation.pool import Pool
from fedrobust.naming import Part
from fedrobust.records import Record
from fedrobust.runner import KEY

pytestmark = pytest.mark.usefixtures("in_place")


@pytest.fixture(scope="module")
def reference(place: Path, pool: Pool) -> fedrobust.Result:
    """A run that nobody touched, with its model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return run("federation.rounds=2", "tracking.model=true", pool=pool)


def test_only_their_owner_can_read_the_files_of_a_run(reference: fedrobust.Result, place: Path) -> None:
    mine = place / "mlruns"
    assert stat.S_IMODE(reference.folder.stat().st_mode) == stat.S_IMODE((mine / "artifacts").stat().st_mode) == 0o700
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in mine.rglob("*")}
    assert {"mlflow.db", "checkpoint.npz", "journal.jsonl", "MLmodel"} <= {path.name for path in found}
    assert not {path: mode for path, mode in found.items() if mode & 0o077}


def test_a_run_that_is_part_of_many_is_sealed_too(reference: fedrobust.Result, pool: Pool) -> None:
    cell = run("federation.rounds=2", pool=pool, part=Part(reference.run_id, {}))
    found = verify_all(cell.folder, read_public(KEY.with_suffix(".pub")), cell.run_id)
    core = ("audit.jsonl", "audit.pub", "checkpoint.npz", "experiment.yaml", "journal.jsonl")
    assert (found.broken, found.files, found.missing) == ("", core, ())
    run("federation.rounds=2", resume=cell.run_id, pool=pool)  # writes its report
    assert not verify_all(cell.folder).broken and "report.html" in verify_all(cell.folder).files


def runs() -> set[Path]:
    """The folders of the runs that there are."""
    return set(Path("mlruns/runs").glob("*"))


def stop_after(number: int) -> Callable[[dict[str, Any]], None]:
    def stop(record: Record) -> None:
        if record.kind == "round" and record.round == number:
            raise KeyboardInterrupt

    return stop


def test_images_that_were_exchanged_in_the_cache_are_other_data(pool: Pool) -> None:
    options, before = ["federation.rounds=2", "data.stain_normalisation=reinhard"], runs()
    with pytest.raises(KeyboardInterrupt):
        run(*options, hooks=[stop_after(1)], pool=pool)
    (stopped,) = runs() - before
    (cache,) = Path("mlruns/cache").glob("[!.]*")
    honest = exchange(cache, lambda kept: 255 - kept)
    with pytest.raises(ExperimentError, match=r"npz changed.* mlruns.cache"):
        run(*options, resume=stopped.name, pool=pool)
    exchange(cache, lambda kept: honest)
    ended_again(options, before, pool)


def test_a_run_whose_log_was_taken_away_is_not_resumed(pool: Pool) -> None:
    before = runs()
    with pytest.raises(KeyboardInterrupt):
        run("federation.rounds=2", hooks=[stop_after(1)], pool=pool)
    (stopped,) = runs() - before
    (stopped / "audit.jsonl").unlink()
    restate(stopped, audit_offset=0, audit_head="")
    with pytest.raises(ExperimentError, match="audit log"):
        run("federation.rounds=2", resume=stopped.name, pool=pool)
    assert not (stopped / "audit.jsonl").exists()


def test_nothing_that_was_put_into_a_run_s_folder_is_sealed_by_resuming_it(
    reference: fedrobust.Result, pool: Pool
) -> None:
    before = runs()
    with pytest.raises(KeyboardInterrupt):
        run("federation.rounds=2", hooks=[stop_after(1)], pool=pool)
    (stopped,) = runs() - before
    for name in (
        "partition.png",
        "trace.json",
        "hospitals.csv",
        "figures/old.png",
        "figures/evil.py",
        "model/code/evil.py",
        "sitecustomize.py",
    ):
        (stopped / name).parent.mkdir(parents=True, exist_ok=True)
        (stopped / name).write_bytes(b"forged")
    append(stopped / "experiment.yaml", b"# worse than you think\n")
    ended_again(["federation.rounds=2"], before, pool)
    assert b"worse" not in (stopped / "experiment.yaml").read_bytes()
    assert (stopped / "partition.png").read_bytes() == (reference.folder / "partition.png").read_bytes()
    for name in ("figures/evil.py", "sitecustomize.py"):
        assert verify_all(stopped).broken == f"{name}: was not there when the run ended"
        (stopped / name).unlink()
    assert not verify_all(stopped).broken and not (stopped / "model" / "code").exists()
