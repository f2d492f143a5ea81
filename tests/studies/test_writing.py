"""What a study leaves is written in any case."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from fedrobust.errors import DataError, ExperimentError, FedRobustError, TrackingError
from fedrobust.studies.writing import drawn, written_in_any_case


def test_what_there_is_is_written_and_hides_no_error(caplog: pytest.LogCaptureFixture) -> None:
    written: list[bool] = []
    with written_in_any_case(written.append):
        pass
    for error in (KeyboardInterrupt(), TrackingError("gone"), ZeroDivisionError()):
        with pytest.raises(type(error)), written_in_any_case(written.append):
            raise error
    assert written == [True, False, False, False]

    def full(complete: bool) -> None:
        raise OSError("the disk is full")

    for go_on, told in (("go on", r"^OSError: the disk is full \(test_writing.py, line \d+\); go on$"), ("", r"\)$")):
        with pytest.raises(FedRobustError, match=told), written_in_any_case(written.append, go_on):
            full(False)
    with pytest.raises(TrackingError, match=r"^gone; go on$"), written_in_any_case(full, "go on"):
        raise TrackingError("gone")
    assert "what there is could not be written: the disk is full" in caplog.text
    told = r"all runs are made, .* the disk is full; go on$"
    with pytest.raises(FedRobustError, match=told), written_in_any_case(full, "go on"):
        pass
    for refused in (ExperimentError("no metric"), DataError("no file")):
        with pytest.raises(type(refused), match=f"^{refused}$"), written_in_any_case(written.append, "go on"):
            raise refused


def test_a_picture_that_cannot_be_drawn_costs_itself_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"of an earlier sitting")
    with caplog.at_level(logging.WARNING), drawn(picture):
        raise ValueError("no such glyph")
    assert not picture.exists()
    assert "a.png could not be drawn: no such glyph" in caplog.text
    with pytest.raises(OSError, match="full"), drawn(picture):
        raise OSError("full")
