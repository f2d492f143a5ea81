"""What does not go together with a protocol is refused when the file is read, with the place and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
from refused import refused

import fedrobust
from fedrobust.aggregation import Aggregation, RowRule, Rule
from fedrobust.options import members
from fedrobust.secure import (
    ClearPrivacy,
    GroupedPrivacy,
    MaskedPrivacy,
    PairwiseMasking,
    Privacy,
    ReplicatedPrivacy,
    SecretSharing,
    SharesPrivacy,
)

FILE = "federation: {clients: 10, rounds: 20}\n"
PROTOCOLS: list[Privacy] = [ClearPrivacy(), SharesPrivacy(), ReplicatedPrivacy(), MaskedPrivacy(), GroupedPrivacy()]


def read(*overrides: str) -> fedrobust.Experiment:
    Path("tried.yaml").write_text(FILE)
    return fedrobust.load("tried.yaml", list(overrides))


REFUSED = [
    # (what is in the file, the path that the refusal names, a word of the reason, what was found)
    ("shares", "aggregation={rule: krum}", "aggregation", "krum", None),
    ("replicated", "aggregation={rule: krum}", "aggregation", "krum", None),
    ("shares", "aggregation={rule: krum, stages: [clip]}", "aggregation", "krum", None),
    ("shares", "aggregation={rule: krum, stages: [bucketing]}", "aggregation", "bucket", None),
    ("shares", "aggregation={rule: median}", "aggregation", "median needs rows", None),
    ("masked", "aggregation={rule: median}", "aggregation", "median needs rows", None),
    ("masked", "aggregation={rule: multi_krum}", "aggregation", "multi_krum needs gram", None),
    ("masked", "aggregation={stages: [clip]}", "aggregation", "clip needs norms", None),
    ("grouped", "aggregation={rule: adaptive}", "aggregation", "adaptive remembers", None),
    ("grouped", "aggregation={rule: afa}", "aggregation", "afa remembers", None),
    ("grouped", "aggregation={rule: median, f: 2}", "aggregation.f", "2 of 2 groups of 4", "2"),
    ("grouped", "aggregation={rule: median, f: 0.2}", "aggregation.f", "2 of 2 groups of 4", "0.2"),
    ("grouped", "trust.detector=consensus", "trust.detector", "consensus", "'consensus'"),
    ("grouped", "trust.acts=true", "trust.acts", "grouped", "True"),
    ("masked", "trust.acts=true", "trust.acts", "masked", "True"),
    ("{name: grouped, size: 11}", "seed=1", "privacy.size", "10", "11"),
    ("{name: grouped, size: 2}", "seed=1", "privacy.size", "3", "2"),
    ("masked", "federation.clients=2", "federation.clients", "3 hospitals", "2"),
    ("masked", "aggregation.weighting=samples", "privacy.largest_count", "samples", None),
    ("{name: masked, largest_count: 99}", "seed=1", "privacy.largest_count", "samples", "99"),
    ("masked", "workers.shards=2", "workers.shards", "masked", "2"),
    ("shares", "federation.clients=2", "privacy.min_support", "2 updates", None),
    ("shares", "federation.participation=0.2", "privacy.min_support", "2 updates", None),
    ("{name: shares, min_support: 11}", "seed=1", "privacy.min_support", "10 updates", "11"),
    ("{name: shares, max_functionals: 19}", "aggregation.rule=fltrust", "privacy.max_functionals", "20 functionals", "19"),  # noqa: E501
    ("{name: replicated, max_functionals: 59, colluders: 2}", "aggregation.rule=centered_clipping", "privacy.max_functionals", "60 functionals", "59"),  # noqa: E501
    ("{name: shares, clip: 0}", "seed=1", "privacy.clip", "0", "0"),
    ("{name: shares, min_support: 0.5}", "seed=1", "privacy.min_support", "1", "0.5"),
    ("{name: shares, randomness: dice}", "seed=1", "privacy.randomness", "system", "'dice'"),
    ("{name: masked, threshold: 0.4}", "seed=1", "privacy.threshold", "0.5", "0.4"),
    ("{name: masked, bits: 16}", "seed=1", "privacy.bits", "32", "16"),
    ("{name: shares, size: 3}", "seed=1", "privacy.size", "unknown", ""),
    ("shards", "seed=1", "privacy", "", "'shards'"),
    ("shares", "workers.parties=[one, two]", "workers.parties", "3 parties", "2"),
    ("replicated", "workers.parties=[a, b, c, d]", "workers.parties", "3 parties", "4"),
    ("masked", "workers.parties=[a]", "workers.parties", "0 parties", "1"),
    ("clear", "workers.parties=[a]", "workers.parties", "0 parties", "1"),
]  # fmt: skip


@pytest.mark.parametrize(("privacy", "other", "path", "word", "found"), REFUSED)
def test_what_cannot_be_is_refused_with_its_place_and_the_reason(
    privacy: str, other: str, path: str, word: str, found: str | None, workplace: Path
) -> None:
    with refused(path=path, says=word, found=found):
        read(f"privacy={privacy}", other)


@pytest.mark.parametrize(
    ("privacy", "other"),
    [
        ("shares", "aggregation={rule: krum, stages: [nnm]}"),
        ("shares", "aggregation={rule: krum, stages: [{name: bucketing, s: 3}]}"),
        ("{name: shares, min_support: 2}", "aggregation={rule: krum, stages: [bucketing]}"),
        ("shares", "aggregation={rule: krum, stages: [bucketing, nnm]}"),
        ("{name: shares, max_functionals: 20}", "aggregation.rule=fltrust"),
        ("{name: replicated, max_functionals: 60, colluders: 2}", "aggregation.rule=centered_clipping"),
        ("{name: shares, max_functionals: 0}", "aggregation.rule=adaptive"),
        ("masked", "trust.detector=consensus"),
        ("{name: masked, largest_count: 99}", "aggregation.weighting=samples"),
        ("grouped", "aggregation={rule: median, f: 0.04}"),
        ("{name: grouped, size: 3}", "aggregation={rule: median, f: 1}"),
        ("shares", "workers.parties=[one, one, two]"),
    ],
)
def test_what_goes_together_is_read(privacy: str, other: str, workplace: Path) -> None:
    read(f"privacy={privacy}", other)


@pytest.mark.parametrize("privacy", PROTOCOLS, ids=lambda privacy: privacy.name)
def test_the_rules_that_a_refusal_names_are_those_that_are_read(privacy: Privacy, workplace: Path) -> None:
    named = privacy._rules()
    assert "mean" in named
    for name in members(Rule, RowRule):
        found = privacy.refusal(Aggregation.model_validate({"rule": name, "f": 0}), participants=20, rounds=20)
        if name in named:
            assert found is None, name
        else:
            assert found is not None and found.hint.endswith(": " + ", ".join(named)), name


@pytest.mark.parametrize(
    ("privacy", "says"),
    [("masked", "label_mix needs gram, norms, which masked does not reveal"), ("grouped", "remembers clients")],
)
def test_a_detector_that_needs_single_updates_is_refused_where_none_is_judged(
    privacy: str, says: str, workplace: Path
) -> None:
    own = "data.root={patches: 40, set_aside: 0.2}"
    with refused(path="trust.detector", says=says):
        read(f"privacy={privacy}", own, "trust.detector=label_mix")
    for other in ("clear", "shares", "replicated"):
        read(f"privacy={other}", own, "trust.detector=label_mix")


def test_what_each_protocol_reveals() -> None:
    shown = {privacy.name: set(privacy.reveals) for privacy in PROTOCOLS}
    rows, gram = {"sum", "gram", "rows"}, {"sum", "gram"}
    assert shown == {"clear": rows, "shares": gram, "replicated": gram, "masked": {"sum"}, "grouped": rows}
    parties = {each.name: each.servers + each.dealer for each in PROTOCOLS if isinstance(each, SecretSharing)}
    assert parties == {"shares": 3, "replicated": 3}
    assert [each.name for each in PROTOCOLS if isinstance(each, PairwiseMasking)] == ["masked", "grouped"]
    assert Privacy.reveals == frozenset()  # whoever adds a protocol has to say what it shows


def test_a_protocol_is_part_of_the_experiment_and_its_parties_places_are_not(workplace: Path) -> None:
    shares = read("privacy=shares")
    assert shares.digest() != read().digest()
    assert shares.digest() != read("privacy={name: shares, clip: 4}").digest()
    assert shares.digest() == read("privacy=shares", "workers.parties=[a, b, c]").digest()
