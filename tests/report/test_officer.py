"""The page for a security officer: its sentences hold for the run at hand, and what is not recorded is not claimed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from reported import journal, recorded, write
from vouched import KEY, ended

from fedrobust import cli
from fedrobust.audit.signing import AuditError
from fedrobust.audit.verification import Verdict, verify_all
from fedrobust.experiment import Experiment
from fedrobust.options import members
from fedrobust.records import RecordedRun
from fedrobust.report import OFFICER, write_again, write_report
from fedrobust.report.officer import Checked, officer_page
from fedrobust.secure import OneMessage, PairwiseMasking, Privacy, SecretSharing
from fedrobust.secure.disclosure import Disclosure, ProtocolSetting, of_unknown

PROTOCOLS: dict[str, dict[str, Any]] = {
    "clear": {},
    "masked": {"aggregation": {"rule": {"name": "mean"}}},
    "grouped": {"aggregation": {"rule": {"name": "median"}, "f": 1}},
    "shares": {
        "aggregation": {"rule": {"name": "adaptive"}},
        "trust": {"detector": {"name": "consensus"}, "acts": True},
    },
    "replicated": {"aggregation": {"rule": {"name": "fltrust"}}},
}
LONG = (
    "the weights lie on 2.9 updates (Σw²/max w²), at least 3 are needed: opening their sum would show single updates "
)
UNBROKEN = Verdict("0123", 44, "cd" * 32, "ab" * 32, 8, True, uncovered=("model/MLmodel: model_id, artifact_path",))


def lines(privacy: dict[str, Any], clients: int = 20, **more: Any) -> list[Any]:
    """A journal of eight rounds with this protocol."""
    given = {"federation": {"clients": clients, "rounds": 40}, **PROTOCOLS[privacy["name"]], **more}
    records = journal(clients=clients, rounds=8)
    records[0]["experiment"] = Experiment.model_validate({"name": "tried", "privacy": privacy, **given}).resolved()
    return records


def page(records: list[Any] | RecordedRun, checked: Checked = Checked(UNBROKEN, sealed=True)) -> str:  # noqa: B008
    run = records if isinstance(records, RecordedRun) else recorded(records)
    return officer_page(run, checked, datetime(2026, 11, 29, 22, 0, tzinfo=UTC))


def text(found: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", found.partition("<body>")[2])).split())


def row(found: str, head: str) -> str:
    """The text beside a head of the page's tables."""
    (cell,) = re.findall(rf'<th scope="row">{re.escape(head)}</th><td>(.*?)</td>', found, re.DOTALL)
    return unescape(str(cell))


# What the protocols say


@pytest.mark.parametrize("name", sorted(members(Privacy)))
def test_every_protocol_of_the_package_says_what_its_parties_see(name: str) -> None:
    kind = members(Privacy)[name]
    assert issubclass(kind, Privacy)
    found = kind.model_validate({"name": name}).disclosure(ProtocolSetting(drawn=20))
    assert found != of_unknown(name) and found.collusions
    parties = [party for party, _ in found.sees]
    assert parties[:2] == ["Each hospital", "The coordinator"]
    if issubclass(kind, SecretSharing):
        assert parties[2:] == [f"Each of {kind.servers} servers", *(["The dealer"] if kind.dealer else [])]
    if issubclass(kind, SecretSharing | PairwiseMasking):
        assert found.deviations
    for sentence in (*(s for _, s in (*found.sees, *found.collusions)), *found.deviations):
        assert sentence.endswith(".") and not re.search(r"\b(nobody|never|impossible|guarantee)", sentence), sentence


def test_the_numbers_of_masks_are_those_of_the_guide() -> None:
    """docs/secrecy.md: 20 hospitals, all neighbours: t = 13, c ≥ 7."""
    found = page(lines({"name": "masked"}))
    assert "The coordinator and 13 of the 19 neighbours of a hospital" in found
    assert "With 7 colluding neighbours" in found and "19 hospitals learn the last one" in text(found)
    some = page(lines({"name": "masked", "neighbours": 8, "threshold": 0.5}))
    assert "The coordinator and 5 of the 8 neighbours" in some and "With 2 colluding neighbours" in some
    groups = text(page(lines({"name": "grouped", "size": 4})))
    assert "the mean of each of 5 groups of 4 hospitals" in groups and "3 of the 3 neighbours" in groups
    uneven = text(page(lines({"name": "grouped", "size": 3})))
    assert "6 groups of 3 or 4 hospitals" in uneven and "one group of 10 hospitals" in text(
        page(lines({"name": "grouped", "size": 6}, clients=10, aggregation={"rule": {"name": "median"}, "f": 0}))
    )
    assert "Groups are drawn from the seed" in groups and "3 hospitals learn the last one" in groups


def test_half_of_the_hospitals_are_drawn() -> None:
    found = page(lines({"name": "masked"}, federation={"clients": 20, "rounds": 40, "participation": 0.5}))
    assert "10 drawn for a round" in found and "of the 9 neighbours of a hospital" in found


def test_what_secret_shares_open_is_that_of_this_defence() -> None:
    histories = page(lines({"name": "shares"}))
    assert "earlier updates (1 for each hospital)" in row(histories, "The coordinator")
    assert "public vectors" not in row(histories, "The coordinator") + row(histories, "Each of 2 servers")
    vectors = page(lines({"name": "replicated", "sketch": None, "colluders": 2}))
    told = row(vectors, "The coordinator")
    assert "public vectors that the coordinator knows (1 in each round)" in told and "earlier updates" not in told
    assert (
        "exactly" in told and "lie on 5 updates or more" in told and "sketch" not in row(vectors, "Each of 3 servers")
    )
    assert row(vectors, "Any two of the 3 servers") == "learn every update." and "dealer" not in told
    assert "open the sum of any 5 updates (2 of them may be those of colluders)" in text(vectors)


LESS: dict[str, Any] = {
    "sum": ({"rule": "mean"}, {"detector": "none"}, 0),
    "norms": ({"rule": "mean", "stages": ["clip"]}, {"detector": "none"}, 20),
    "gram": ({"rule": "mean", "stages": ["clip"]}, {}, 210),
}


@pytest.mark.parametrize("opens", LESS)
def test_what_is_opened_of_products_is_said_if_it_was_counted(opens: str) -> None:
    aggregation, trust, products = LESS[opens]
    records = lines({"name": "shares"}, aggregation=aggregation, trust=trust)
    shown = {"sum": "64 random", "norms": "the lengths of all updates, as", "gram": "the inner products of every two"}
    old = row(page(records), "The coordinator")
    assert old.startswith(shown["gram"])  # an older version opened all
    for record in records:
        if record["kind"] == "round":
            record |= {"products": products, "functionals": 0}
    found = page(records)
    assert row(found, "The coordinator").startswith(shown[opens])
    alone = "learn the weighted sum of the others' updates, and no more"
    assert row(found, "The coordinator and c hospitals").startswith(alone) == (opens != "gram")
    assert row(found, "Products opened").startswith(f"{8 * products} of updates")


def test_who_makes_the_vectors_is_said() -> None:
    own = {"data": {"root": {"patches": 40, "set_aside": 0.2}}, "trust": {"detector": "label_mix"}}
    found = page(lines({"name": "shares"}, aggregation={"rule": "adaptive"}, **own))
    assert "products with public vectors that the coordinator knows (2 in each round)" in row(found, "The coordinator")
    assert "read 2 numbers of its choice of every update in each round, blurred by the sketch" in text(found)
    assert "of its choice" not in text(page(lines({"name": "shares"})))


@pytest.mark.parametrize(
    ("privacy", "warned"),
    [
        ({"name": "shares", "randomness": "seed"}, "NOT SECRET. The secrets of this run come from the seed"),
        ({"name": "clear"}, "NO PROTECTION."),
        ({"name": "shares"}, ""),
        ({"name": "masked"}, ""),
    ],
)
def test_what_must_be_read_first_stands_first(privacy: dict[str, Any], warned: str) -> None:
    found = page(lines(privacy))
    assert ('<p class="stop">' in found) == bool(warned) and warned in text(found)
    if privacy["name"] == "shares":
        assert row(found, "Secrets") == (
            "NOT SECRET: computed from the seed" if warned else "drawn from the operating system"
        )


# What is not known is not claimed


@pytest.mark.parametrize("change", [lambda given: given.pop("sketch"), lambda given: given.update(blur=3)])
def test_options_of_another_version_are_not_guessed(change: Any) -> None:
    records = lines({"name": "shares"})
    change(records[0]["experiment"]["privacy"])
    found = page(records)
    assert "not known here: the record was made by another version" in row(found, "Every party")
    assert "sketches" not in found and "The dealer" not in found


def test_a_protocol_of_the_users_own_is_not_loaded_for_the_page() -> None:
    records = lines({"name": "clear"})
    records[0]["experiment"]["privacy"] = {"name": "nowhere_to_be_found:Own"}
    assert "as if each of them saw every update" in row(page(records), "Every party")
    records[0]["disclosure"] = [["The coordinator", "<b>half</b> of it."]]
    assert row(page(records), "The coordinator") == "as the author of nowhere_to_be_found:Own says: <b>half</b> of it."
    assert "<b>half" not in page(records)


def test_an_author_who_says_nothing_is_not_trusted() -> None:
    class Silent(OneMessage):
        name: str = "silent:Silent"

        def write(self, update: Any, generator: Any) -> bytes:
            return b""

        def read(self, message: bytes, d: int) -> Any:
            return None

    class Own(Privacy):
        name: str = "own:Own"

    for protocol in (Silent(), Own()):
        found: Disclosure = protocol.disclosure(ProtocolSetting(drawn=3))
        assert "every update" in found.sees[-1][1] and "does not say" in found.sees[-1][1]


def test_a_rule_of_the_users_own_is_not_loaded_for_the_page() -> None:
    records = lines({"name": "shares"})
    records[0]["experiment"]["aggregation"]["rule"] = {"name": "nowhere_to_be_found:Rule"}
    records[1]["functionals"] = 3
    found = page(records)
    assert "if hospitals are remembered, products" in found and "if the defence uses public vectors" in found
    assert row(found, "Functionals opened").endswith("the limit follows from the defence, which is not known here")


def test_what_an_experiment_shows_beyond_its_protocol_is_told() -> None:
    plain = page(lines({"name": "shares"}))
    assert "Hospitals that play attackers" not in plain and "The coordinator, besides" not in plain
    records = lines({"name": "replicated"}, attacks=[{"name": "sign_flip", "count": 1, "knowledge": "all"}])
    found = page(records)
    assert row(found, "The coordinator, besides").startswith("100 training patches, drawn from those of all hospitals")
    own = {"root": {"patches": 50, "set_aside": 0.05}}
    refereed = page(lines({"name": "clear"}, trust={"referee": {}}, data=own))
    assert row(refereed, "The coordinator, besides") == "50 training patches, of patients that no hospital has."
    refusing = lines({"name": "shares"}, trust={"referee": {}}, data=own)
    refusing[1]["referee"] = {"chosen": "defence", "refused": True}
    assert "after 1 refused sum, hospitals trained the same model again" in page(refusing)
    assert "refused sum" not in refereed
    voted = page(lines({"name": "clear"}, trust={"jury": {}}))
    assert row(voted, "Each hospital, besides") == "in each round the models on which it votes."
    assert "mean loss at training patches of each label" in row(voted, "The coordinator, besides")
    assert "every update of a round, given to them" in row(found, "Hospitals that play attackers")
    aware = page(lines({"name": "shares"}, attacks=[{"name": "optimal_alie", "count": 4}]))
    assert "the defence with its memory" in row(aware, "Hospitals that play attackers")


def test_the_readers_of_the_record_see_what_is_recorded() -> None:
    head, records = (
        "Whoever reads the run's folder, or what MLflow has of it".replace("'", "&#39;"),
        lines({"name": "clear"}),
    )
    assert "training losses" not in row(page(records), head) and "reputations" in row(page(records), head)
    records[1]["train_loss"] = {"0": 0.5}
    assert "training losses" in row(page(records), head) and "pictures" not in row(page(records), head)
    assert "test patches as pictures" in row(page(records, Checked(None, montage=True)), head)


# What happened


def test_a_run_whose_rounds_were_all_skipped_has_failed() -> None:
    records = lines({"name": "shares"})
    for record in records:
        if record["kind"] == "round":
            record["skipped"] = "the weights lie on 2.9 updates"
    assert row(page(records), "Rounds").endswith(
        "The run has failed: as every round was skipped, no sum changed the model."
    )


def test_what_was_skipped_rejected_missing_and_opened_is_counted() -> None:
    records = lines({"name": "shares"})
    rounds = [record for record in records if record["kind"] == "round"]
    for number, record in enumerate(rounds):
        record["functionals"] = 4
        if number < 3:
            record |= {"skipped": f"the weights lie on 2.{number}1 updates", "rejected": {"2": "too long", "4": "late"}}
    found = page(records)
    assert row(found, "Rounds") == "8 of 40 recorded. The run has ended."
    assert row(found, "Skipped") == "3 of 8 rounds: the weights lie on 2.01 to 2.21 updates (3×)"
    assert row(found, "Rejected").startswith("6 of 159 updates: too long (3×); late (3×)")
    assert row(found, "Missing") == "1 times a hospital that was drawn for a round sent nothing"
    assert row(found, "Functionals opened") == "32 of every update, as the servers counted them; " + (
        "each server would open 0 at most"
    )
    assert row(page(lines({"name": "clear"})), "Skipped") == "0 of 8 rounds"
    caution = f"aggregation.f: {LONG * 2}; use aggregation.f=3"
    records[0]["cautions"] = [caution]
    rounds[0]["skipped"] = LONG
    told = page(records)
    assert row(told, "Warned of before") == caution and LONG.strip() in row(told, "Skipped")
    assert "no end: the run stopped" in row(page(records[:5]), "Rounds")


@pytest.mark.parametrize(("limit", "told"), [(None, "there was NO limit"), (900, "each server would open 900 at most")])
def test_the_limit_of_functionals_is_that_of_the_run(limit: int | None, told: str) -> None:
    records = lines({"name": "replicated", "max_functionals": limit})
    records[1]["functionals"] = 7
    assert row(page(records), "Functionals opened").endswith(told)


# What is vouched for


def test_the_state_of_the_log_is_told_as_it_is() -> None:
    records = lines({"name": "clear"})
    assert "compare it with the copy" in row(page(records), "Key") and "ab" * 32 in row(page(records), "Key")
    assert "NO audit log" in row(page(records, Checked(None)), "Signed record")
    broken = Verdict("0123", 3, "", "", 0, False, broken="audit.jsonl: line 4: it was changed")
    assert "DOES NOT VERIFY: audit.jsonl: line 4" in row(page(records, Checked(broken)), "Signed record")
    going = Verdict("0123", 3, "cd" * 32, "ab" * 32, 2, False)
    assert "NO seal" in row(page(records, Checked(going)), "Signed record")
    assert "as the log says itself" in row(page(records, Checked(going)), "Key")


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take a second, and are not what is tried here."""
    monkeypatch.setattr("fedrobust.report.files.make_figures", lambda *given: {})


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    path = tmp_path / "coordinator.pem"
    raw = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(KEY.private_bytes(*raw))
    path.chmod(0o600)
    return path


def records(folder: Path) -> list[str]:
    return (folder / "journal.jsonl").read_text().splitlines()


@pytest.mark.usefixtures("no_pictures")
def test_the_page_is_sealed_linked_and_kept(tmp_path: Path, pem: Path) -> None:
    folder = ended(tmp_path / "r1")
    assert write_again(folder, pem).name == "report.html"
    assert "--officer</code>" in (folder / "report.html").read_text() and not (folder / OFFICER).exists()
    assert write_again(folder, pem, officer=True) == folder / OFFICER
    verdict = verify_all(folder)
    assert not verdict.broken and OFFICER in verdict.files
    assert 'href="officer.html"' in (folder / "report.html").read_text()
    before = (folder / OFFICER).read_bytes()
    write_again(folder, pem)
    assert (folder / OFFICER).read_bytes() == before and not verify_all(folder).broken
    assert len(records(folder)) > 6 and "lines. Checked when this page was written" in text(before.decode())


@pytest.mark.usefixtures("no_pictures")
def test_the_command_of_the_guide_prints_the_path(
    workplace: Path, pem: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "secrecy.md").read_text(encoding="utf-8")
    assert "```\nfedrobust report RUN --officer\n```" in guide
    ended(workplace / "mlruns" / "runs" / "r1")
    monkeypatch.setattr("fedrobust.runner.KEY", pem)
    monkeypatch.setattr("sys.argv", ["fedrobust", "report", "r1", "--officer"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code and capsys.readouterr().out.strip() == f"mlruns/runs/r1/{OFFICER}"


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("forged", ["journal.jsonl", "officer.html", "report.html"])
def test_of_a_folder_that_was_changed_there_is_no_page(tmp_path: Path, pem: Path, forged: str) -> None:
    folder = ended(tmp_path / "r1")
    write_again(folder, pem, officer=True)
    (folder / forged).write_bytes((folder / forged).read_bytes() + b"x")
    if forged == "journal.jsonl":
        with pytest.raises(AuditError):
            write_again(folder, pem, officer=True)
    else:
        assert verify_all(folder).broken
        write_again(folder, pem, officer=True)  # both are written anew
        assert not verify_all(folder).broken


@pytest.mark.usefixtures("no_pictures")
def test_a_run_without_log_or_end_has_a_page_that_says_so(tmp_path: Path) -> None:
    found = write_again(write(tmp_path, lines({"name": "clear"})), tmp_path / "no.pem", officer=True)
    assert "NO audit log" in found.read_text()
    stopped = ended(tmp_path / "r1", steps=3)
    assert "NO seal" in write_again(stopped, tmp_path / "no.pem", officer=True).read_text()
    write_report(stopped)
    assert 'href="officer.html"' in (stopped / "report.html").read_text()


# The sheet


def worst(name: str) -> str:
    """A page on which everything is as long as it can be."""
    more = {"randomness": "seed", "colluders": 2} if name == "shares" else {}
    records = lines({"name": name, **more}, attacks=[{"name": "sign_flip", "count": 2, "knowledge": "all"}])
    records[0]["experiment"]["name"] = "<script>alert(1)</script> a name " * 20
    records[0] |= {"cautions": [LONG * 5, LONG * 4], "configuration": "ab" * 32, "versions": {"fedrobust": "0.1.0"}}
    for number, record in enumerate(record for record in records if record["kind"] == "round"):
        record |= {"notes": [f"{'abcdefgh'[number]} {LONG * 4}"], "late": [2], "quarantined": [1], "functionals": 4}
        record["rejected"] = {"5": f"{'abcdefgh'[number]} {LONG * 4}"}
        if number % 2:
            record["skipped"] = f"{'abcdefgh'[number]} {LONG * 4}"
    return page(records, Checked(UNBROKEN, sealed=True, montage=True))


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_the_page_is_self_contained_and_everything_on_it_is_escaped(name: str) -> None:
    found = worst(name)
    assert "<script" not in found and not re.search(r"(src|href)=|url\(|@import", found)


@pytest.mark.browser
def test_the_page_prints_on_one_sheet(tmp_path: Path) -> None:
    """All pages as one file, with a break after each: with one that is too long there are more sheets."""
    if (chromium := shutil.which("chromium") or shutil.which("chromium-browser")) is None:
        assert os.environ.get("CI") != "true", "CI has chromium"
        pytest.skip("no chromium on this machine")
    pages = [worst(name).replace("<main>", '<main style="break-after: page">') for name in sorted(PROTOCOLS)]
    (tmp_path / "all.html").write_text("".join(pages), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer", f"--user-data-dir={tmp_path}/c"]
    command = [chromium, *options, f"--print-to-pdf={tmp_path / 'all.pdf'}", str(tmp_path / "all.html")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    sheets = re.findall(rb"/Type\s*/Page\b", (tmp_path / "all.pdf").read_bytes())
    assert len(sheets) == len(PROTOCOLS)
