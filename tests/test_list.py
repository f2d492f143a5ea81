"""`fedrobust list`, and the help of every command: what they show is what is written."""

from __future__ import annotations

import re
from inspect import getdoc
from typing import Annotated, get_type_hints

import pytest
import typer
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from fedrobust.cli import app
from fedrobust.cli.application import LiteralHelp
from fedrobust.errors import ExperimentError
from fedrobust.terminal import console, families, show_options


def listed(word: str | None = None) -> str:
    out = Console(record=True, width=400, highlight=False)
    show_options(out, word)
    return out.export_text()


@pytest.mark.slow
def test_a_family_is_listed_with_options_defaults_and_papers() -> None:
    shown = listed("attacks")
    for name, option in families()["attacks"].items():
        assert f" {name} " in shown
        assert (option.__doc__ or "").strip().splitlines()[0] in shown
    assert "(Tolpegin et al., ESORICS 2020)" in shown
    assert re.search(r"share +number > 0, ≤ 1; default 1\.0\. Share of the source", shown)
    assert shown.count("Share of all hospitals that are malicious") == 1, "what all attacks have is listed once"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "family"),
    [(family, family) for family in families()]
    + [
        ("attack", "attacks"),
        ("rules", "aggregation.rule"),
        ("sources", "data.source"),
        ("detectors", "trust.detector"),
    ]
    + [("identities", "attacks.identity"), ("losses", "learning.local.loss"), ("protocols", "privacy")]
    + [("stain-normalisations", "data.stain_normalisation"), ("metric", "evaluation.metrics")],
)
def test_every_family_has_a_list_of_its_own(word: str, family: str) -> None:
    shown = listed(word)
    assert shown.startswith(family)
    assert all(name in shown for name in families()[family])
    assert [other for other in families() if f"\n{other}\n" in shown] == []


def test_one_name_is_listed_with_all_that_its_docstring_has() -> None:
    shown = listed("krum")
    assert shown.startswith("aggregation.rule") and "Blanchard" in shown and "n ≥ 2f + 3" in shown
    assert "trimmed_mean" not in shown
    assert all(family in listed("shards") for family in families() if "shards" in families()[family])


def test_a_word_that_names_nothing_is_refused() -> None:
    with pytest.raises(ExperimentError) as error:
        listed("atacks")
    (problem,) = error.value.problems
    assert problem.hint == "did you mean 'attacks'?" and "rule" in problem.allowed
    assert error.value.exit_code == 2


COMMANDS = typer.main.get_group(app).commands


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_is_shown_as_it_is_written(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    shown = "".join(CliRunner().invoke(app, [command, "--help"]).output.split())
    (callback,) = [each.callback for each in COMMANDS.values() if each.name == command]
    hints = get_type_hints(callback, include_extras=True).values()
    given = [each for hint in hints for each in getattr(hint, "__metadata__", ()) if not each.hidden]
    for text in [getdoc(callback), *(each.help for each in given)]:
        assert "".join((text or "").split()) in shown, text


def test_brackets_in_help_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    application = typer.Typer(cls=LiteralHelp)

    @application.command()
    def first(words: Annotated[str, typer.Argument(help="Such as [bold]x[/bold] or a=[b,c], and [1].")]) -> None:
        """Does [red]nothing[/red]."""

    application.command("second")(first)
    monkeypatch.setenv("COLUMNS", "300")
    shown = CliRunner().invoke(application, ["first", "--help"]).output
    assert "Such as [bold]x[/bold] or a=[b,c], and [1]." in shown and "Does [red]nothing[/red]." in shown
    assert "Does [red]nothing[/red]." in CliRunner().invoke(application, ["--help"]).output


def test_what_a_command_prints_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    out, table = console(), Table("[b]head[/b]", title="a [red]title[/red]")
    table.add_row("only.defences=[mean,median] :smile:")
    out.print("[bold]x[/bold] :smile:")
    out.print(table)
    shown = capsys.readouterr().out
    for text in ("[bold]x[/bold] :smile:", "a [red]title[/red]", "[b]head[/b]", "only.defences=[mean,median] :smile:"):
        assert text in shown
