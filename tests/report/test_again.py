"""A report that is written again."""

from __future__ import annotations

from pathlib import Path

import pytest
from reported import IMAGES, journal, write

from fedrobust.report import write_again, write_report


@pytest.mark.long
def test_a_report_written_again_is_the_same_with_its_montage(tmp_path: Path) -> None:
    before = write_report(write(tmp_path, journal()), IMAGES).read_bytes()
    (tmp_path / "report.html").unlink()
    assert write_again(tmp_path, tmp_path / "no.pem").read_bytes() == before
    assert b'id="misread"' in before and not (tmp_path / "audit.seal").exists()


def test_a_run_that_stopped_has_a_report_of_what_there_is(tmp_path: Path) -> None:
    assert b"curves" in write_again(write(tmp_path, journal()[:3]), tmp_path / "no.pem").read_bytes()
