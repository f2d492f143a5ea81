"""Files of options that were made to harm, or by mistake: limits, aliases, merged keys, comments in overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refused import refused
from ruamel.yaml import YAML

import fedrobust
from fedrobust.draft import Draft
from fedrobust.duels import load_duel
from fedrobust.errors import ExperimentError, Origin
from fedrobust.experiment_file import read_options
from fedrobust.matrices import load_matrix
from fedrobust.tuning import load_sweep
from fedrobust.yaml_tree import DEEPEST, LARGEST, MOST, read_tree, read_value, unshared

HERE = Origin(text="x")
LOADERS = [fedrobust.load, load_matrix, load_sweep, load_duel, read_options, read_tree]


def bomb(levels: int = 8, each: int = 10) -> str:
    lines = ["a0: &a0 [" + ", ".join(["x"] * each) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * each) + "]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def merged_bomb(levels: int = 30) -> str:
    """Each mapping has the two before it, once merged and once as a value."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: *a{n - 1}, y{n}: *a{n - 1}}}" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("load", LOADERS, ids=lambda load: load.__qualname__)
@pytest.mark.parametrize(
    ("text", "word"),
    [
        (bomb(), f"{MOST:,}"),
        (merged_bomb(), f"{MOST:,}"),
        ("name: " + bomb(9).replace("\n", "\n  ").replace("a0:", "\n  a0:", 1).rstrip(), f"{MOST:,}"),
        ("name: &a [*a]\n", "alias"),
        ("name: &a {x: {y: *a}}\n", "alias"),
        ("name: " + "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1) + "\n", "deep"),
        ("name: " + "[" * 20_000 + "]" * 20_000 + "\n", "deep"),
        ("name: " + "{a: [" * 5_000 + "]}" * 5_000 + "\n", "deep"),
        ("name:\n  " + "- " * 5_000 + "\n", "YAML"),
        ("#" + " " * LARGEST + "\n", f"{LARGEST:,}"),
    ],
    ids=[
        "aliases",
        "merges",
        "below",
        "cycle",
        "cycle below",
        "deep",
        "very deep",
        "deep mappings",
        "deep items",
        "long",
    ],
)
def test_no_file_is_larger_than_it_looks(load: Any, text: str, word: str, workplace: Path) -> None:
    path = workplace / "e.yaml"
    path.write_text(text)
    with refused(file=path, says=word) as caught:
        load(path)
    assert len(str(caught.value)) < 300


def test_an_override_is_not_larger_than_it_looks(workplace: Path) -> None:
    Path("e.yaml").write_text("seed: 1\n")
    nested = "[&a0 [x, x, x, x, x, x, x, x, x, x]"
    nested += "".join(f", &a{n} [" + ", ".join([f"*a{n - 1}"] * 10) + "]" for n in range(1, 8)) + "]"
    for value in (nested, "&a [*a]", "[" * 20_000, "x" * (LARGEST + 1)):
        with refused(file=None, path="") as caught:
            fedrobust.load("e.yaml", [f"name={value}"])
        assert len(str(caught.value)) < 300, str(caught.value)[:300]


@pytest.mark.parametrize("what", ["/dev/zero", ".", "utf-16", "latin-1", "bom"])
def test_what_is_no_text_is_refused_and_a_byte_order_mark_is_not(what: str, workplace: Path) -> None:
    path = Path(what)
    if what in ("utf-16", "latin-1"):
        path.write_bytes("name: é\n".encode(what))
    elif what == "bom":
        path.write_text("\ufeffname: é\n", encoding="utf-8")
        assert fedrobust.load(path).name == "é"
        return
    with refused(file=path, says="longer" if what == "/dev/zero" else "text"):
        fedrobust.load(path)


SHARED = [
    "attacks: [&a {name: sign_flip, count: 1, scale: 4}, *a]\n",
    "attacks:\n  - &a {name: sign_flip, count: 1, scale: 4}\n  - {<<: *a}\n",
    "attacks:\n  - &a {name: sign_flip, count: 1, scale: 4}\n  - {<<: [*a]}\n",
]


@pytest.mark.parametrize("text", SHARED)
@pytest.mark.parametrize("changed", [0, 1])
def test_an_override_changes_one_entry_and_no_other_that_shares_its_node(
    text: str, changed: int, workplace: Path
) -> None:
    Path("e.yaml").write_text(text)
    scales: Any = [
        attack["scale"] for attack in fedrobust.load("e.yaml", [f"attacks.{changed}.scale=9"]).resolved()["attacks"]
    ]
    assert scales[changed] == 9 and scales[1 - changed] == 4


@pytest.mark.parametrize("place", ["schedule", "schedule.rounds"])
def test_what_lies_below_a_merged_key_is_shared_no_more(place: str, workplace: Path) -> None:
    Path("e.yaml").write_text(
        "attacks:\n  - &a {name: sign_flip, count: 1, schedule: {name: sleeper, rounds: 2}}\n  - {<<: *a, count: 2}\n"
    )
    value = 7 if place.endswith("rounds") else "{name: sleeper, rounds: 7}"
    attacks = fedrobust.load("e.yaml", [f"attacks.1.{place}={value}"]).resolved()["attacks"]
    assert [attack["schedule"]["rounds"] for attack in attacks] == [2, 7]


def test_values_of_overrides_and_changes_are_not_shared_either(workplace: Path) -> None:
    Path("e.yaml").write_text("seed: 1\n")
    both = "attacks=[&a {name: sign_flip, count: 1, scale: 4}, *a]"
    attacks = fedrobust.load("e.yaml", [both, "attacks.1.scale=9"]).resolved()["attacks"]
    assert [attack["scale"] for attack in attacks] == [4, 9]
    value: dict[str, Any] = {"name": "sign_flip", "count": 1, "scale": 4}
    draft = Draft.read("e.yaml").changed({"attacks.0": value, "attacks.1": value, "attacks.1.scale": 9}, "a test")
    value["scale"] = 20
    assert [attack["scale"] for attack in draft.tree["attacks"]] == [4, 9]


@pytest.mark.parametrize("text", SHARED)
def test_errors_in_shared_nodes_name_a_line(text: str, workplace: Path) -> None:
    Path("e.yaml").write_text("seed: 1\n" + text.replace("scale", "scal"))
    with pytest.raises(ExperimentError) as caught:
        fedrobust.load("e.yaml")
    problems = caught.value.problems
    assert [each.path for each in problems] == ["attacks.0.scal", "attacks.1.scal"]
    assert all(each.file == Path("e.yaml") and each.line is not None for each in problems)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("a#b", "a#b"),
        ("'a #b'", "a #b"),
        ('"#1"', "#1"),
        ("[1, '#', \"a # b\"]", [1, "#", "a # b"]),
        ("{a: 'x #y'}", {"a": "x #y"}),
        ("", None),
    ],
)
def test_a_sign_that_begins_no_comment_is_part_of_the_value(value: str, read: Any) -> None:
    assert read_value(value, HERE) == read


@pytest.mark.parametrize("value", ["run #3", "#3", "[1, 2] # two", "'a' #b", "{a: 1} #", " # "])
def test_what_yaml_would_drop_as_a_comment_is_refused(value: str) -> None:
    with refused(origins=(HERE,), says="'#'"):
        read_value(value, HERE)


@pytest.mark.parametrize(
    ("path", "word", "problem"),
    [
        *(("tracking.model", word, {"says": "true or false", "hint": ""}) for word in ("yes", "on", "No")),
        ("aggregation.f", "None", {"hint": "for nothing at all, write null"}),
        ("learning.local.steps", "none", {"hint": "for nothing at all, write null"}),
    ],
)  # fmt: skip
def test_words_of_other_languages_are_pointed_the_right_way(
    path: str, word: str, problem: dict[str, Any], workplace: Path
) -> None:
    Path("e.yaml").write_text("seed: 1\n")
    with refused(path=path, found=f"'{word}'", **problem):
        fedrobust.load("e.yaml", [f"{path}={word}"])


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab#:&*<>[]{}\"' ", max_size=4),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inside, max_size=3),
    max_leaves=12,
)


@given(plain)
@settings(max_examples=50, deadline=None)
def test_a_copy_is_equal_and_shares_nothing(value: Any) -> None:
    twice = {"one": value, "two": value}
    copy = unshared(twice, HERE)
    assert copy == twice
    nodes: list[int] = []

    def walk(node: Any) -> None:
        if isinstance(node, (dict, list)):
            nodes.append(id(node))
            for each in node.values() if isinstance(node, dict) else node:
                walk(each)

    walk(copy)
    assert len(nodes) == len(set(nodes))


YAMLS = st.text("ab1:-.,[]{}&*<!|>'\"#%@`?\n \t", max_size=60)


@given(YAMLS, st.lists(YAMLS, max_size=2))
@settings(max_examples=200, deadline=None)
def test_whatever_is_written_is_read_or_refused_in_one_line_each(
    tmp_path_factory: pytest.TempPathFactory, text: str, values: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text)
    try:
        draft = Draft.read(path, [f"name={value}" for value in values])
    except ExperimentError as error:
        assert len(error.problems) == 1 and str(error).isprintable()
    else:
        if not values:
            assert {str(key) for key in draft.tree} == {
                str(key) for key in YAML(typ="safe", pure=True).load(text) or {}
            }
