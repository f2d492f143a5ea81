"""docs/make/intervals.py: a table of a matrix with intervals."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

SCRIPT = Path(__file__).parents[1] / "docs" / "make" / "intervals.py"
HEAD = "setting,attack,defence,seed,state,gain,robustness"


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["intervals.py", *words])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return capsys.readouterr().out


def test_a_table_for_each_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gains = [0.3, -0.1, 0.55, 0.2]
    lines = [f"few,patch,mean,{seed},done,{gain},1.0" for seed, gain in enumerate(gains)]
    lines += ["few,nobody,mean,0,done,,1.0", "few,oracle,mean,0,done,0.9,1.0"]
    lines += ["few,patch,median,0,done,0.5,1.0", "few,patch,median,1,failed,,", "few,patch,median,2,missing,,"]
    lines += ["many,patch,mean,0,done,0.25,1.0"]
    file = tmp_path / "cells.csv"
    file.write_text("\n".join([HEAD, *lines]) + "\n")
    low, high = stats.t.interval(0.95, 3, np.mean(gains), stats.sem(gains))
    shown = printed(monkeypatch, capsys, str(file), "gain")
    interval = f"{np.mean(gains):.2f} [{low:.2f}, {high:.2f}]".replace("-", "−")
    assert f"| `patch` | {interval} | 0.50 (1 without) |" in shown
    assert "| `patch` | 0.25 |" in shown.partition("**many**, gain, seeds 0")[2]
    assert "nobody" not in shown and "oracle" not in shown
    assert "| nobody | 1.00 |" in printed(monkeypatch, capsys, str(file), "robustness", "--defences", "mean")


def test_no_such_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cells.csv"
    file.write_text(f"{HEAD}\nfew,patch,mean,0,done,0.1,1.0\n")
    with pytest.raises(SystemExit):
        printed(monkeypatch, capsys, str(file), "gains")
    assert "no column gains" in capsys.readouterr().err
