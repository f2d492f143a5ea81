"""`fedrobust doctor EXPERIMENT`: what an experiment has, before an image is opened."""

from __future__ import annotations

from pathlib import Path

import pytest
from refused import refused
from rich.console import Console

from fedrobust.experiment import Experiment
from fedrobust.preparation import check_patches, check_protocol, dealt, hospitals_of
from fedrobust.terminal.patches import show_data

SOURCE = {"name": "histology", "patients": 60, "patches_per_patient": 4, "size": 16}


def shown(given: dict[str, object]) -> str:
    """What is shown of an experiment, in one line."""
    out = Console(record=True, width=120, highlight=False)
    experiment = Experiment.model_validate(given)
    show_data(out, experiment, *dealt(experiment))
    return " ".join(out.export_text().replace("│", "").split())


@pytest.mark.parametrize(
    ("root", "says"),
    [
        ({"set_aside": 0.3, "patches": 20}, ["coordinator 20 of 13 patients: 10 benign, 10 malignant"]),
        (
            {"set_aside": 0.1, "patches": 60},
            ["10 patients or more", "were asked for", "data.root.set_aside"],
        ),
    ],
)
def test_doctor_says_which_patches_the_coordinator_gets(
    workplace: Path, root: dict[str, object], says: list[str]
) -> None:
    said = shown({"data": {"source": SOURCE, "root": root}})
    assert "set aside" in said and [each for each in says if each not in said] == []


@pytest.mark.parametrize(
    ("changes", "says", "not_said"),
    [
        (
            {"attacks": [{"name": "ipm", "fraction": 0.4}]},
            [
                "hospitals with 20 patches of a label can judge a model by it: 10 of 10 or more (benign)",
                "1 of 10 malicious: yes, whichever they are",
                "4 of 10 malicious, as in this experiment: yes, whichever they are",
                "no rule can promise anything once 50% are malicious",
            ],
            ["; in this experiment"],
        ),
        (
            {"data": {"partition": {"name": "shards", "per_client": 1}}, "attacks": [{"name": "ipm", "count": 4}]},
            [
                "1 of 10 malicious: yes, whichever they are",
                "2 of 10 malicious: in 8",  # of 100 cases: 1 − (4 · 3) / (10 · 9) is 87 %
                "4 of 10 malicious, as in this experiment: no",
                "no rule can promise anything once 32% are malicious",
                "; in this experiment 40% are",
            ],
            [],
        ),
        ({"federation": {"clients": 2}}, ["2 of 2 or more", "1 of 2 malicious: no"], ["in this experiment"]),
        ({"data": {"partition": {"name": "iid"}}, "federation": {"clients": 1}}, ["hospitals 1,"], ["malicious"]),
    ],
)
def test_doctor_says_whether_honest_hospitals_have_the_majority_within_each_label(
    workplace: Path, changes: dict[str, dict[str, object]], says: list[str], not_said: list[str]
) -> None:
    given: dict[str, object] = {"source": SOURCE | {"patches_per_patient": 12}, "partition": {"name": "iid"}}
    said = shown({**changes, "data": {**given, **changes.get("data", {})}})
    assert [each for each in says if each not in said] == [], said
    assert [each for each in not_said if each in said] == []


@pytest.mark.parametrize(
    ("partition", "fraction", "says"),
    [
        (
            {"name": "iid"},
            0.3,
            "it needs 7 votes about each label, because 3 of 10 hospitals may be malicious, and has them, "
            "whether the malicious ones vote or not",
        ),
        (
            {"name": "dirichlet", "alpha": 0.3},
            0.1,
            "and has 3 or more; but if the malicious ones do not vote, 2 about benign may be left",
        ),
        ({"name": "shards", "per_client": 1}, 0.1, "because 1 of 10 hospitals may be malicious, and has them"),
        ({"name": "shards", "per_client": 1}, 0.2, "and has 4 about benign: the defence alone will decide"),
    ],
)
def test_doctor_says_whether_a_jury_has_votes_enough(
    workplace: Path, partition: dict[str, object], fraction: float, says: str
) -> None:
    given = {"source": SOURCE | {"patches_per_patient": 12}, "partition": partition}
    assert says in shown({"data": given, "trust": {"jury": {"fraction": fraction}}})
    assert "votes about each label" not in shown({"data": given})


NONE = {"detector": "none"}
CLIP = {"stages": ["clip"]}
ASIDE = {"set_aside": 0.3, "patches": 20}


@pytest.mark.parametrize(
    ("aggregation", "trust", "says"),
    [
        ({}, NONE, "in a round no product of updates; one sum"),
        (CLIP, NONE, "in a round the lengths of 10 updates, no product of two; one sum"),
        (
            CLIP,
            {},
            "in a round all 55 products of 10 updates with each other (because of trust.detector robust_z; stages and "
            "rule need the lengths); one sum",
        ),
        ({}, {**NONE, "referee": {}}, "no product of two (because of trust.referee; stages and rule need nothing)"),
        (
            {"rule": "adaptive"},
            {"detector": "label_mix"},
            "in a round all 210 products of 10 updates, and what is kept of earlier ones, with each other; 4 linear "
            "functionals of each update, 80 in the run at most; one sum",
        ),
    ],
)
def test_doctor_says_what_the_servers_open(
    workplace: Path, aggregation: dict[str, object], trust: dict[str, object], says: str
) -> None:
    federation = {"clients": 10, "rounds": 10}
    given = {"data": {"source": SOURCE, "root": ASIDE}, "aggregation": aggregation, "federation": federation}
    assert says in shown(given | {"trust": trust, "privacy": "shares"})
    assert "opened" not in shown(given | {"trust": trust})


def test_more_than_is_allowed_is_refused_once_the_labels_are_known(workplace: Path) -> None:
    given = {
        "data": {"source": SOURCE, "root": ASIDE},
        "trust": {"detector": "label_mix"},
        "federation": {"rounds": 10},
    }
    limited = given | {"privacy": {"name": "shares", "max_functionals": 39}}
    assert "refused: privacy.max_functionals: 10 rounds open 40 functionals" in shown(limited)
    experiment = Experiment.model_validate(limited)
    with refused(path="privacy.max_functionals", says="40 functionals"):
        check_protocol(experiment, hospitals_of(experiment))
    enough = Experiment.model_validate(given | {"privacy": {"name": "shares", "max_functionals": 40}})
    check_protocol(enough, hospitals_of(enough))


def test_a_referee_with_patches_of_one_patient_is_refused(workplace: Path) -> None:
    """It would be certain of nothing, and refuse nothing."""

    def experiment(patches: int, referee: object) -> Experiment:
        root = {"set_aside": 0.1, "patches": patches}
        return Experiment.model_validate({"data": {"source": SOURCE, "root": root}, "trust": {"referee": referee}})

    alone = experiment(1, {})
    with refused(path="trust.referee", says="two patients", found="1 of 1"):
        check_patches(alone, hospitals_of(alone))
    check_patches(experiment(1, None), hospitals_of(alone))
    check_patches(experiment(10, {}), hospitals_of(experiment(10, {})))
