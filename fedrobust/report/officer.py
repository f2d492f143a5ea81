"""One page for a hospital's security officer: what the parties of a run could see, what happened, and what is vouched
for. Facts come from the run's record; what the parties see is said by its protocol (`secure/disclosure.py`).

Nothing is claimed that the record does not show: where an older version has recorded less, or a protocol or rule is a
user's own, the page says that it does not know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from pydantic import ValidationError

from fedrobust.aggregation import Aggregation
from fedrobust.audit.verification import Verdict
from fedrobust.errors import ExperimentError
from fedrobust.options import members
from fedrobust.portions import portion
from fedrobust.records import RecordedRun
from fedrobust.records.skips import merged
from fedrobust.report.elements import plural, render
from fedrobust.secure import Privacy, SecretSharing
from fedrobust.secure.disclosure import OPERATOR, Disclosure, ProtocolSetting
from fedrobust.trust import Detector, Referee, Trust
from fedrobust.updates import Demand

LONGEST = 90
"""Characters of a reason or note from the record; the page is to fit on one sheet."""
LONGEST_SKIP = 160
"""Characters of the reason why rounds were skipped."""
CAUTIONS = 460
"""Characters of all warnings together: each is one that nobody may miss, and its end says what to do."""
OPERATOR_OF = "The operator of the Ray cluster"
MOST = 2
"""The most different reasons or notes of one kind."""

LIMITS = (
    "All sentences on what a party sees assume that the others keep to the protocol, unless they say otherwise. The "
    "run is a simulation under one operator. No differential privacy is claimed, for a hospital or for a patient: "
    "treat an update as being as sensitive as the patches. Whoever has two successive models knows the aggregate "
    "between them, but for what the server's optimiser hides; what a model remembers of patches was not measured. A "
    "real deployment needs separate operators, machines of the hospitals' own, TLS and certified keys "
    "(docs/secrecy.md)."
)


@dataclass(frozen=True)
class Checked:
    """What was found out about a run's audit log when the page was written.

    verdict: None if the run has no log.
    sealed: whether every file in the folder was compared with the seal, except for those that were written anew.
    montage: whether the folder holds pictures of patches.
    """

    verdict: Verdict | None
    sealed: bool = False
    montage: bool = False


def officer_page(run: RecordedRun, checked: Checked, now: datetime | None = None) -> str:
    """Return the page, without scripts or references to anything outside it.

    run: the records of the run.
    checked: what was found out about its audit log.
    now: when the page is written.
    """
    protocol, disclosure = _protocol(run)
    return render(
        "report/templates/officer.html.j2",
        title=_shortened(run.start.options.name),
        facts=_facts(run),
        warning=_warning(run, protocol),
        sees=[
            *disclosure.sees,
            *_beyond(run),
            ("The operator of the Ray cluster", OPERATOR),
            _readers(run, checked.montage),
        ],
        collusions=disclosure.collusions,
        deviations=disclosure.deviations,
        happened=[*_secrets(run), *_happened(run), *_functionals(run, protocol)],
        audit=_audit(checked, run),
        limits=LIMITS,
        run=run.start.run,
        written=(now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC"),
        versions=(run.start.versions.get("fedrobust", "unknown"), version("fedrobust")),
        configuration=run.start.configuration,
        digest=run.start.digest,
    )


def _facts(run: RecordedRun) -> list[str]:
    planned, federation = run.start.options.federation.rounds, _options(run, "federation")
    drawn = _drawn(run)
    each = "" if drawn == run.start.clients else f", {drawn} drawn for a round"
    attackers = len(run.attackers)
    played = "an attacker" if attackers == 1 else "attackers"
    return [
        f"protocol {run.start.options.privacy.name}",
        f"{plural(run.start.clients, 'hospital')}{each}" if federation else plural(run.start.clients, "hospital"),
        f"{len(run.rounds)} of {planned} rounds" if planned else plural(len(run.rounds), "round"),
        f"defence {run.start.options.defence}",
        f"{plural(attackers, 'hospital')} played {played}" if attackers else "no hospital played an attacker",
    ]


# The protocol


def _protocol(run: RecordedRun) -> tuple[Privacy | None, Disclosure]:
    """The protocol with the recorded options, None if it cannot be known, and what it discloses."""
    name = run.start.options.privacy.name
    kind, given = members(Privacy).get(name), {"name": name, **_options(run, "privacy")}
    if kind is None or ":" in name or not issubclass(kind, Privacy):
        silent = [("Every party", f"the record does not say. Treat {name} as if each of them saw every update.")]
        own = [(party, f"as the author of {name} says: {sees}") for party, sees in run.start.disclosure]
        return None, Disclosure(own or silent)
    if set(given) != set(kind.model_fields):
        differing = ", ".join(sorted(set(given) ^ set(kind.model_fields)))
        said = (
            f"not known here: the record was made by another version, whose options differ from today's ({differing}). "
            "Read docs/secrecy.md of that version."
        )
        return None, Disclosure([("Every party", said)])
    try:
        protocol = kind.model_validate(dict(given))
    except (ValidationError, ExperimentError) as error:
        return None, Disclosure([("Every party", f"not known here: the recorded options cannot be read ({error})")])
    return protocol, protocol.disclosure(_setting(run))


def _beyond(run: RecordedRun) -> list[tuple[str, str]]:
    """What this experiment shows to parties beyond their protocol."""
    found, aggregation = list[tuple[str, str]](), _defence(run)
    trust = _options(run, "trust")
    detector = _detector(run)
    tried = any(trust.get(name) is not None for name in ("referee", "repair"))
    tried = tried or (detector is not None and detector.own_patches)
    if tried or aggregation is None or "root" in aggregation.pipeline().anchors:
        root = _options(run, "data").get("root", "some")  # a number, in older records
        held, aside = (root.get("patches", "some"), root.get("set_aside")) if isinstance(root, Mapping) else (root, 0)
        if_any = "" if tried or aggregation else "if the rule trains an update of the server's own, "
        whose = "of patients that no hospital has" if aside else "drawn from those of all hospitals"
        found.append(("The coordinator, besides", f"{if_any}{held} training patches, {whose}."))
    if again := sum(bool(record.referee and record.referee.refused) for record in run.rounds):
        trained = "hospitals trained the same model again, and sent updates of new batches"
        found.append(("The coordinator, besides", f"after {plural(again, 'refused sum')}, {trained}."))
    if trust.get("jury") is not None:
        found.append(("Each hospital, besides", "in each round the models on which it votes."))
        votes = "how much its mean loss at training patches of each label differs between these models"
        found.append(
            ("The coordinator, besides", f"of each hospital {votes}, and for which labels it has enough patches.")
        )
    attacks = run.start.experiment.get("attacks", ())
    given = [each.get("knowledge") for each in attacks if isinstance(each, Mapping)]
    if "patches" in given:
        found.append(("Hospitals that play attackers", "the coordinator's patches, given to them by the experiment."))
    if known := sorted({str(each) for each in given if each in ("all", "aware")}):
        more = " and the defence with its memory" if "aware" in known else ""
        told = f"every update of a round{more}, given to them by the experiment (knowledge: {', '.join(known)})."
        found.append(("Hospitals that play attackers", told))
    return found


def _setting(run: RecordedRun) -> ProtocolSetting:
    demand, shards = _demand(run), _options(run, "workers").get("shards", 1)
    # Older versions counted no products: they opened all of them.
    counted = any(record.products is not None for record in run.rounds)
    return ProtocolSetting(
        drawn=_drawn(run),
        shards=shards if isinstance(shards, int) else 1,
        samples=_options(run, "aggregation").get("weighting") == "samples",
        vectors=None if demand is None else demand.vectors,
        histories=None if demand is None else len(demand.histories),
        opens=demand.opens if demand is not None and counted else "gram",
    )


def _demand(run: RecordedRun) -> Demand | None:
    """What the defence asked of the updates; None if it is not known here."""
    aggregation, detector = _defence(run), _detector(run)
    if aggregation is None or detector is None:
        return None
    referee = _options(run, "trust").get("referee")
    try:
        trust = Trust(detector=detector, referee=None if referee is None else Referee.model_validate(referee))
    except (ValidationError, ExperimentError):
        return None
    return aggregation.demand | trust.demand(len(run.start.label_names))


def _defence(run: RecordedRun) -> Aggregation | None:
    """The stages and the rule; None if one is a user's own, because no class is loaded for a record."""
    given = _options(run, "aggregation")
    stages = given.get("stages", ())
    parts = [given.get("rule"), *(stages if isinstance(stages, Sequence) else ())]
    if any(":" in str(part.get("name") if isinstance(part, Mapping) else part) for part in parts):
        return None
    try:
        return Aggregation.model_validate(dict(given))
    except (ValidationError, ExperimentError):
        return None


def _detector(run: RecordedRun) -> Detector | None:
    given = _options(run, "trust").get("detector")
    kind = members(Detector).get(str(given.get("name"))) if isinstance(given, Mapping) else None
    try:
        return kind.model_validate(dict(given)) if kind is not None and isinstance(given, Mapping) else None  # type: ignore[return-value]
    except (ValidationError, ExperimentError):
        return None


def _options(run: RecordedRun, key: str) -> Mapping[str, Any]:
    found = run.start.experiment.get(key)
    return found if isinstance(found, Mapping) else {}


def _drawn(run: RecordedRun) -> int:
    """Hospitals that are drawn for a round."""
    participation = _options(run, "federation").get("participation", 1.0)
    return max(1, portion(float(participation), run.start.clients))


def _warning(run: RecordedRun, protocol: Privacy | None) -> str:
    """What must be read first; empty if there is nothing."""
    if run.start.options.privacy.randomness == "seed":
        return (
            "NOT SECRET. The secrets of this run come from the seed in the experiment file (all but the dealer's, if "
            "there is one): the protocol hides nothing from those who have the file, and what is said below of single "
            "servers and the coordinator does not hold for them."
        )
    if protocol is not None and protocol.name == "clear":
        return "NO PROTECTION. Updates were sent in the clear."
    return ""


# What happened


def _readers(run: RecordedRun, montage: bool) -> tuple[str, str]:
    """What readers of the run's folder and of MLflow see of hospitals, as far as this run's record has it."""
    rounds = run.rounds
    held = {
        "numbers of training patches of each label": bool(run.start.hospital_labels),
        "training losses": any(record.train_loss for record in rounds),
        "lengths of updates": any(record.update_norm for record in rounds),
        "anomaly scores": any(record.anomaly for record in rounds),
        "weights": any(record.weights for record in rounds),
        "reputations": any(record.reputation for record in rounds),
        "accuracy on its test patches": any(record.hospitals for record in run.evaluations),
        "whether it played an attacker": True,
    }
    pictures = " The report and figures/misread.png show test patches as pictures." if montage else ""
    listed = ", ".join(name for name, there in held.items() if there)
    return (
        "Whoever reads the run's folder, or what MLflow has of it",
        f"the model, and of each hospital: {listed}. A real coordinator would not know all of this.{pictures}",
    )


def _secrets(run: RecordedRun) -> list[tuple[str, str]]:
    randomness = run.start.options.privacy.randomness
    if randomness is None:
        return []
    real = "drawn from the operating system" if randomness == "system" else "NOT SECRET: computed from the seed"
    return [("Secrets", real)]


def _happened(run: RecordedRun) -> list[tuple[str, str]]:
    skips, sent = run.skips, sum(len(record.participants) for record in run.rounds)
    rejected = [reason for record in run.rounds for reason in record.rejected.values()]
    late = sum(len(record.late) for record in run.rounds)
    notes = Counter(note for record in run.rounds for note in record.notes)
    quarantined = sum(len(record.quarantined) for record in run.rounds)
    planned = run.start.options.federation.rounds
    ended = "The run has ended." if run.end is not None else "The record has no end: the run stopped, or goes on."
    if run.end is not None and skips.untrained:
        ended = "The run has failed: as every round was skipped, no sum changed the model."
    found = [
        ("Rounds", f"{len(run.rounds)}{f' of {planned}' if planned else ''} recorded. {ended}"),
        ("Skipped", f"{skips.skipped} of {plural(skips.rounds, 'round')}{_listed(skips.reasons, LONGEST_SKIP)}"),
        ("Rejected", f"{len(rejected)} of {plural(sent, 'update')}{_listed(Counter(rejected))}"),
    ]
    if (missing := _drawn(run) * len(run.rounds) - sent) > 0:
        deadline = f", {late} of them because it missed the deadline" if late else ""
        found.append(("Missing", f"{missing} times a hospital that was drawn for a round sent nothing{deadline}"))
    act = "left out of the sum" if run.acts else "recorded only; none was left out for it"
    if quarantined:
        found.append(("In quarantine", f"{quarantined} times a hospital after a round ({act})"))
    if notes:
        found.append(("Notes", f"{plural(notes.total(), 'note')}{_listed(notes)}"))
    if run.start.cautions:
        longest = CAUTIONS // len(run.start.cautions)
        found.append(("Warned of before", "; ".join(_shortened(each, longest) for each in run.start.cautions)))
    return found


def _functionals(run: RecordedRun, protocol: Privacy | None) -> list[tuple[str, str]]:
    """How many products with vectors that the coordinator knows were opened, against the limit."""
    counted = [record.functionals for record in run.rounds if record.functionals is not None]
    if not counted:
        return []
    limit = "the limit is not known here"
    if isinstance(protocol, SecretSharing):
        limit = _limit(run, protocol)
    found = [("Functionals opened", f"{sum(counted)} of every update, as the servers counted them; {limit}")]
    multiplied = [record.products for record in run.rounds if record.products is not None]
    if multiplied:
        said = "of updates, and what is kept of earlier ones, with themselves and with each other"
        found.append(("Products opened", f"{sum(multiplied)} {said}, as the servers counted them"))
    return found


def _limit(run: RecordedRun, protocol: SecretSharing) -> str:
    if protocol.max_functionals is None:
        return "there was NO limit"
    if isinstance(protocol.max_functionals, int):
        return f"each server would open {protocol.max_functionals} at most"
    demand, rounds = _demand(run), run.start.options.federation.rounds
    if demand is None or rounds is None:
        return "the limit follows from the defence, which is not known here"
    return f"each server would open {protocol.limit(demand, rounds)} at most"


def _listed(reasons: Mapping[str, int], longest: int = LONGEST) -> str:
    """The most frequent reasons, with their numbers; `reasons`: reason → how often."""
    kinds = merged(reasons)
    if not kinds:
        return ""
    shown = [f"{_shortened(reason, longest)} ({times}×)" for reason, times in kinds[:MOST]]
    rest = sum(times for _, times in kinds[MOST:])
    return f": {'; '.join(shown)}{f'; {rest} for other reasons' if rest else ''}"


def _shortened(text: str, longest: int = LONGEST) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


# The audit


def _audit(checked: Checked, run: RecordedRun) -> list[tuple[str, str]]:
    verdict = checked.verdict
    if verdict is None:
        return [("Signed record", "This run has NO audit log: nothing on this page is vouched for by a signature.")]
    if verdict.broken:
        return [("Signed record", f"DOES NOT VERIFY: {_shortened(verdict.broken)}. Do not rely on this page.")]
    state = "Checked when this page was written: all signatures hold, the journal agrees with the log" + (
        ", and every other file in the folder is as it was sealed (report, pictures and this page are written anew)."
        if checked.sealed
        else ". The run has not ended, so there is NO seal: the other files are not vouched for, and lines may be "
        "missing at the end."
    )
    whose = (
        "the key that lies with the runs where this page was written" if checked.sealed else "as the log says itself"
    )
    missing = f" Not there to compare: {', '.join(verdict.missing[:4])}." if verdict.missing else ""
    return [
        ("Signed record", f"{plural(verdict.lines, 'line')}. {state}{missing}"),
        (
            "Key",
            f"{verdict.key} — {whose}. That is no evidence by itself: compare it with the copy that you were given, "
            f"and repeat the check with that copy: fedrobust audit {run.start.run} --key coordinator.pub",
        ),
        ("Last line", verdict.head),
        (
            "Not covered",
            "whether what the coordinator recorded is true (with the key one can write any log; keep the last line "
            "where the coordinator has no access); times of day; files of the data set that were not read; MLflow's "
            "database" + (f"; {', '.join(verdict.uncovered)}" if verdict.uncovered else "") + ".",
        ),
    ]
