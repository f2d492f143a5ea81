"""The table and the curve of a duel."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation
from nasty import NAMES

import fedrobust.duels.results as results
from fedrobust.duels.results import Turn, curve_figure, page, turns_written, write_results
from fedrobust.texts import visible
from fedrobust.tuning.objectives import Direction, Objective

ORDER = (("fixed", 0), ("attacker", 1), ("defender", 1), ("attacker", 2), ("defender", 2))


def fought(values: dict[str, list[float]], direction: Direction = "maximize") -> list[Turn]:
    """Turns of some defences; one of three values has no defender."""
    turns = []
    for side, number in ORDER:
        for defence, worth in values.items():
            own = [each for each in ORDER if len(worth) == 5 or each[0] != "defender"]
            if (side, number) not in own:
                continue
            value, better = worth[own.index((side, number))], 0.1 if direction == "maximize" else -0.1
            by_attack = {"flip": value + better} | {"alie" if side == "fixed" else "searched 1": value}
            by_seed = {name: {11: each - 0.01, 12: each + 0.01} for name, each in by_attack.items()}
            chosen = {} if side == "fixed" else {"aggregation.f": number}
            turns.append(Turn(defence, side, number, by_attack, by_seed, chosen, direction))
    return turns


THREE = fought(
    {
        "mean": [0.50, 0.42, 0.42],
        "nnm + geometric_median": [0.78, 0.66, 0.72, 0.63, 0.761],
        "adaptive": [0.795, 0.775, 0.78, 0.765, 0.765],
    }
)


def test_the_table_has_a_line_for_each_defence_and_a_column_for_each_turn() -> None:
    lines = page("one", Objective(metric="test/auroc"), THREE).splitlines()
    assert lines[4:9] == [
        "| defence | fixed attacks | attacker 1 | defender 1 | attacker 2 | defender 2 |",
        "|---|---|---|---|---|---|",
        "| mean | 0.500 (alie) | 0.420 (searched 1) | – | 0.420 (searched 1) | – |",
        "| nnm + geometric_median | 0.780 (alie) | 0.660 (searched 1) | 0.720 (searched 1) | 0.630 (searched 1) "
        "| 0.761 (searched 1) |",
        "| adaptive | 0.795 (alie) | 0.775 (searched 1) | 0.780 (searched 1) | 0.765 (searched 1) "
        "| 0.765 (searched 1) |",
    ]
    assert '- adaptive, defender 2: `{"aggregation.f": 2}`' in lines


def test_the_worst_is_the_largest_where_the_defence_wants_it_small() -> None:
    for turn in fought({"mean": [3.0, 4.0, 5.0]}, "minimize"):
        assert turn.value == max(turn.by_attack.values())


@pytest.mark.parametrize("name", NAMES)
def test_names_and_reasons_are_texts_in_table_and_page(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "png", lambda _: b"")
    chosen = {"aggregation.rule": name}
    turns = [
        Turn(name, "fixed", 0, {name: 0.5}, {name: {1: -0.5}}, chosen),
        Turn(name, "attacker", 1, {}, {}, chosen, failed=f"{name} | x"),
    ]
    write_results(tmp_path, name, Objective(metric="loss"), turns)
    with (tmp_path / "turns.csv").open(encoding="utf-8", newline="") as file:
        head, first, second = csv.reader(file)
    assert len(first) == len(second) == len(head) and not first[0].startswith(("=", "+", "-", "@"))
    assert first[head.index("loss")] == "0.5" and json.loads(first[head.index("by_seed")]) == {"1": -0.5}
    lines = (tmp_path / "duel.md").read_text(encoding="utf-8").splitlines()
    assert visible("\n".join(lines), keep="\n") == "\n".join(lines)
    (row,) = [line for line in lines if line.startswith("|") and "0.500" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 4  # three cells, whatever is in them
    assert len([line for line in lines if line.startswith("- ")]) == 3
    assert turns_written(tmp_path) == 2


def test_the_files(tmp_path: Path) -> None:
    write_results(tmp_path, "one", Objective(metric="test/auroc"), THREE)
    with (tmp_path / "turns.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(THREE)
    for turn, row in zip(THREE, [row for row in rows if row["worst"] == "True"], strict=True):
        assert (row["defence"], row["turn"], row["attack"]) == (turn.defence, turn.label, turn.worst)
        assert float(row["test/auroc"]) == turn.value
        assert {int(seed): value for seed, value in json.loads(row["by_seed"]).items()} == turn.by_seed[turn.worst]
        assert json.loads(row["chosen"]) == turn.chosen
    assert (tmp_path / "duel.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "turns",
    [
        THREE,
        fought({f"a defence with a name that is {i} long": [2.0, 3.0, 2.5, 4.0, 3.0 + i / 99] for i in range(8)}),
        fought({"one": [0.5, 0.5, 0.5]}),
    ],
    ids=["three", "many alike", "flat"],
)
def test_the_names_at_the_lines_ends_can_be_read(turns: list[Turn]) -> None:
    figure = curve_figure(Objective(metric="test/auroc"), turns)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if isinstance(text, Annotation)]
    assert len(boxes) == len({turn.defence for turn in turns})
    for box in boxes:
        assert box.x1 < figure.bbox.x1 - 5
        assert figure.bbox.y0 < box.y0 < box.y1 < figure.bbox.y1
        assert sum(box.overlaps(other) for other in boxes) == 1, "itself"


def test_the_line_ends_where_its_name_stands() -> None:
    figure = curve_figure(Objective(metric="test/auroc"), fought({"low": [1.0, 1.0, 1.0], "high": [9.0, 9.0, 9.0]}))
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    for text, value in zip(axes.texts, (1.0, 9.0), strict=True):
        box = text.get_window_extent()
        assert abs(axes.transData.transform((0, value))[1] - (box.y0 + box.y1) / 2) < 6
