"""What a user hears before a run: more attackers than the declared f, and rounds that a protocol will refuse."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from refused import refused

import fedrobust
from fedrobust.cautions import cautions, outnumbered, shared_cautions
from fedrobust.errors import ExperimentError
from fedrobust.records import RecordedRun, RoundRecord, RunStart, Skips
from fedrobust.report.page import unweighted
from fedrobust.runner import run

FILE = "federation: {clients: 10, rounds: 6}\naggregation: {rule: trimmed_mean, f: 2}\n"


def read(*overrides: str) -> fedrobust.Experiment:
    Path("tried.yaml").write_text(FILE)
    return fedrobust.load("tried.yaml", list(overrides))


def attack(count: int, more: str = "") -> str:
    return f"attacks=[{{name: sign_flip, count: {count}{more}}}]"


# the Byzantine f

WORST = [
    # (overrides, attackers, rows, f, rounds with more than f)
    ([attack(3)], 3, 10, 2, 6),
    (["federation.clients=4", attack(2), "aggregation.f=1"], 2, 4, 1, 6),
    ([attack(3), "aggregation.f=0.2"], 3, 10, 2, 6),
    ([attack(5), "aggregation.f=largest"], 5, 10, 4, 6),
    ([attack(5), "aggregation.f=auto"], 5, 10, 4, 6),
    ([attack(4), "aggregation={rule: krum, f: largest}"], 4, 10, 3, 6),
    ([attack(3), "aggregation={rule: multi_krum, stages: [{name: bucketing, s: 2}], f: largest}"], 3, 10, 1, 6),
    ([attack(3, ", schedule: {name: on_off, on: 1, off: 1}")], 3, 10, 2, 3),
    ([attack(3, ", schedule: {name: sleeper, rounds: 4}")], 3, 10, 2, 2),
    ([attack(3, ", schedule: {name: single_shot, round: 2}")], 3, 10, 2, 1),
    (["attacks=[{name: label_flip, count: 2}, {name: sign_flip, count: 1}]"], 3, 10, 2, 6),
    (["attacks=[{name: absent, count: 2}, {name: sign_flip, count: 3}]"], 3, 8, 2, 6),
    (["privacy={name: grouped, size: 3}", attack(2), "aggregation={rule: median, f: 1}"], 2, 3, 1, 6),
    (["privacy={name: grouped, size: 3}", attack(4), "aggregation={rule: median, f: 1}"], 4, 3, 1, 6),
]


@pytest.mark.parametrize(("overrides", "attackers", "rows", "f", "rounds"), WORST)
def test_more_attackers_than_f_are_found(
    overrides: list[str], attackers: int, rows: int, f: int, rounds: int, workplace: Path
) -> None:
    experiment = read(*overrides)
    worst = outnumbered(experiment)
    assert worst is not None
    assert (worst.attackers, worst.rows, worst.f, worst.rounds) == (attackers, rows, f, rounds)
    assert worst.malicious == min(attackers, rows)
    (said,) = cautions(experiment)
    assert said.startswith("aggregation.f: ") and f"in {rounds} of 6 rounds" in said and "\n" not in said
    assert "found" not in said  # the sentence has the number


@pytest.mark.parametrize(
    "overrides",
    [
        ["attacks=[]"],
        [attack(2)],
        ["attacks=[{name: absent, count: 3}]", "aggregation.f=1"],
        ["attacks=[{name: absent, count: 1}, {name: sign_flip, count: 2}]"],
        [attack(4), "aggregation.f=largest"],
        [attack(4), "aggregation={rule: mean}"],
        [attack(3, ", schedule: {name: sleeper, rounds: 6}")],
        ["privacy={name: grouped, size: 3}", attack(1), "aggregation={rule: median, f: 1}"],
    ],
)
def test_nothing_is_said_where_f_is_enough(overrides: list[str], workplace: Path) -> None:
    assert cautions(read(*overrides)) == ()


@pytest.mark.parametrize("seed", range(4))
def test_the_hospitals_of_each_round_are_those_that_the_run_draws(seed: int, workplace: Path) -> None:
    experiment = read(attack(5), "federation.participation=0.5", "aggregation.f=1", f"seed={seed}")
    malicious, federation = set(experiment.attackers.drawn), experiment.federation
    counts = [len(malicious & set(federation.drawn(seed, round))) for round in range(1, 7)]
    assert all(len(federation.drawn(seed, round)) == 5 for round in range(1, 7))
    worst = outnumbered(experiment)
    assert (max(counts) > 1) == (worst is not None)
    if worst is not None:
        assert (worst.attackers, worst.rounds) == (max(counts), sum(count > 1 for count in counts))


REMEDIES = [
    ([attack(3)], "use aggregation.f=3"),
    ([attack(5)], "no rule can promise anything"),
    ([attack(4), "aggregation={rule: krum, f: 3}"], "f = 3 is the most that it allows here"),
]


@pytest.mark.parametrize(("overrides", "remedy"), REMEDIES)
def test_the_remedy_of_f_is_one(overrides: list[str], remedy: str, workplace: Path) -> None:
    (said,) = cautions(read(*overrides))
    assert said.partition("; use ")[0] and remedy in said
    if "use aggregation.f=" in remedy:
        assert cautions(read(*overrides, remedy.removeprefix("use "))) == ()


def test_many_runs_hear_each_caution_once(workplace: Path) -> None:
    runs = [read(attack(count)) for count in (1, 3, 4)]
    (said,) = shared_cautions(runs)
    assert said.endswith("(and 1 more of 3 runs)")
    assert shared_cautions(runs[:1]) == []


# rounds that a protocol refuses

FOUR = ["federation={clients: 4, rounds: 6}", "privacy=shares"]
MEDIAN = "aggregation={stages: [clip, nnm], rule: geometric_median, f: 1}"


def test_rounds_that_will_be_skipped_are_foreseen_with_what_to_change(workplace: Path) -> None:
    (said,) = cautions(read(*FOUR, MEDIAN))
    assert said.startswith("privacy: with 4 updates the weights of clip → nnm → geometric_median lie on about 2.9")
    assert "min_support is 3" in said and "use 6 updates in a round" in said
    assert cautions(read(*FOUR, MEDIAN, "federation.clients=6")) == ()


def test_what_certainly_cannot_be_is_refused_when_the_file_is_read(workplace: Path) -> None:
    with refused(path="aggregation", says="always lie on 2 updates"):
        read("privacy=replicated", "aggregation.rule={name: multi_krum, m: 2}", "aggregation.f=1")
    read("privacy={name: replicated, min_support: 2}", "aggregation.rule={name: multi_krum, m: 2}", "aggregation.f=1")


def test_hospitals_that_are_always_absent_do_not_count_for_a_protocol(workplace: Path) -> None:
    absent, quorum = "attacks=[{name: absent, count: 8}]", "federation.quorum=0.1"
    for privacy, path in (("shares", "privacy.min_support"), ("masked", "federation.clients")):
        with refused(path=path, says="2"):
            read(f"privacy={privacy}", absent, quorum, "aggregation={rule: mean}")
    with refused(path="privacy.size", says="6 hospitals"):
        read("privacy={name: grouped, size: 7}", absent.replace("8", "4"), quorum, "aggregation={rule: mean}")


# where it is said


def test_a_run_says_it_before_it_starts(workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    experiment = read(attack(3), "data.source={name: npz, path: nowhere.npz}")
    with caplog.at_level(logging.WARNING), pytest.raises(ExperimentError, match="nowhere"):
        run(experiment)
    assert [record.getMessage() for record in caplog.records] == list(cautions(experiment))


def test_advice_on_a_run_without_a_result_is_what_was_foreseen() -> None:
    skips = Skips.of(["the weights lie on 2.90 updates"] * 2)
    assert "Mend what the reason names" in skips.no_result(["aggregation.f: too many"])
    assert "use 6 updates in a round" in skips.no_result(["privacy: 4 updates; use 6 updates in a round"])


def test_reasons_that_differ_in_their_figures_alone_are_one() -> None:
    weights = "the weights lie on {} updates, 3.0 are needed"
    skips = Skips.of(["late: 2", weights.format("2.90"), None, weights.format("2.57"), weights.format("10.25")])
    assert skips.summary() == "4 of 5: in 3 rounds: the weights lie on 2.57 to 10.25 updates, 3.0 are needed; " + (
        "in 1 round: late: 2"
    )


def recorded(*rounds: RoundRecord, rule: str = "geometric_median") -> RecordedRun:
    start = RunStart.model_validate(
        {
            "run": "r",
            "experiment": {
                "name": "e",
                "seed": 1,
                "data": {"partition": {"name": "iid"}},
                "aggregation": {"rule": {"name": rule}},
            },
            "clients": 2,
            "label_names": ["a", "b"],
            "attackers": {},
            "hospital_labels": [[1, 1], [1, 1]],
            "parameters": 1,
            "digest": "d",
        }
    )
    return RecordedRun.of([start, *rounds])


def a_round(**fields: object) -> RoundRecord:
    return RoundRecord.model_validate({"round": 1, "participants": [0, 1], **fields})


def test_the_report_gives_the_true_reason_why_no_hospital_has_a_weight() -> None:
    assert "every round was skipped" in unweighted(recorded(a_round(skipped="too few")))
    assert "median gives none" in unweighted(recorded(a_round(), rule="median"))
    assert unweighted(recorded(a_round(weights={0: 0.5, 1: 0.5}))) == unweighted(recorded()) == ""
