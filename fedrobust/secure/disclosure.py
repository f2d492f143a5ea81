"""What the parties of a protocol see, and which collusion breaks it, in sentences for a hospital's security officer.

Each sentence must hold for every run with the options that it is made from; docs/secrecy.md has the details. Sentences
about what a party does not see assume that all parties follow the protocol, unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from fedrobust.updates.demand import Opens

HOSPITAL = "Each hospital"
COORDINATOR = "The coordinator"
MODELS = "the global model of the rounds in which it trains or tests it"


@dataclass(frozen=True)
class ProtocolSetting:
    """What the sentences depend on, besides the protocol's own options."""

    drawn: int
    """Hospitals that are drawn for a round."""
    shards: int = 1
    """Actors that hold columns of the updates, where the coordinator does not hold them itself."""
    samples: bool = False
    """Whether updates are weighted by numbers of patches."""
    vectors: int | None = 0
    """Public vectors that the defence multiplies each update by; None: it is not known here."""
    histories: int | None = 0
    """Vectors that are kept of each hospital's earlier updates; None: it is not known here."""
    opens: Opens = "gram"
    """What secret shares open of the products of updates."""


@dataclass(frozen=True)
class Disclosure:
    """What a protocol reveals.

    sees: (party, what it sees of the updates).
    collusions: (who, what they learn together).
    deviations: what a party can do that does not follow the protocol.
    """

    sees: Sequence[tuple[str, str]]
    collusions: Sequence[tuple[str, str]] = field(default=())
    deviations: Sequence[str] = field(default=())


def of_clear(setting: ProtocolSetting) -> Disclosure:
    """No protection."""
    sees = [(HOSPITAL, f"{MODELS}."), (COORDINATOR, "every update of every hospital may be seen in full.")]
    if setting.shards > 1:
        sees.append((f"{setting.shards} column shards", "each one its share of the coordinates of every update."))
    return Disclosure(
        sees, [("The coordinator alone", "knows every update: there is no protection that a collusion could break.")]
    )


def of_one_message(name: str, text: str, setting: ProtocolSetting) -> Disclosure:
    """One message from each hospital; `text`: what the author of the protocol says that the coordinator sees."""
    said = text or (
        f"the author of {name} does not say what a message reveals. Treat it as if the coordinator saw every update."
    )
    return Disclosure([(HOSPITAL, f"{MODELS}."), (COORDINATOR, said)])


def of_unknown(name: str) -> Disclosure:
    """A protocol whose author says nothing."""
    said = f"the author of {name} does not say what the parties see. Treat it as if each of them saw every update."
    return Disclosure([("Every party", said)])


def of_masks(setting: ProtocolSetting, neighbours: int | None, needed: float, group: int | None) -> Disclosure:
    """Pairwise masks.

    neighbours: with how many others a hospital shares masks; None: with all of its sum.
    needed: more than this share of them must answer if a hospital drops out.
    group: hospitals in a group; None: one sum of all.
    """
    from fedrobust.secure.masking_terms import Terms

    groups = 1 if group is None else setting.drawn // group
    members = setting.drawn // groups  # of the smallest group
    sizes = f"{members} hospitals" if setting.drawn % groups == 0 else f"{members} or {members + 1} hospitals"
    half = members if neighbours is None else -(-neighbours // 2)
    k = min(2 * half, members - 1)
    t = Terms(run="", round=1, d=1, clip=1.0, threshold=needed).shares_needed(k)
    inside = "its sum" if group is None else "its group"
    weight = "the total of their patch counts, as claimed and capped" if setting.samples else "their number"
    opened = "the mean of the updates of the hospitals that did not drop out"
    if group is not None:
        each = f"each of {groups} groups" if groups > 1 else "one group"
        opened = f"the mean of {each} of {sizes}, without those that dropped out; who is in which group"
    dropped = f"{weight}, and which hospital dropped out at which stage."
    collusions = [
        (
            f"The coordinator and {t} of the {k} neighbours of a hospital",
            f"learn its update (if all hospitals take part{'' if group is None else f', in a group of {members}'}).",
        ),
        (
            f"The coordinator and other hospitals of {'the sum' if group is None else 'a group'}",
            f"learn the sum of the updates of the rest; {members - 1} hospitals learn the last one's update.",
        ),
    ]
    deviations = [
        "Hospitals' public keys are certified by no one: a coordinator that invents hospitals, or shows different keys "
        "to different hospitals, can read single updates without any help.",
        f"With {max(2 * t - k, 0)} colluding neighbours of a hospital, it can also do so by reporting that hospital as "
        "present to some and as dropped out to others.",
        "Whether a hospital clips its update, or uses the right weight, is not checked: any update may be in a sum.",
    ]
    if group is not None:
        deviations.append(
            "Groups are drawn from the seed, so everyone who has the experiment file knows them in advance. Over many "
            "rounds the coordinator alone can work out what the updates of each hospital have in common."
        )
    return Disclosure(
        [
            (
                HOSPITAL,
                f"{MODELS}; the ids and public keys of the hospitals in {inside}, and which of them did not drop out.",
            ),
            (COORDINATOR, f"{opened}, {dropped}"),
        ],
        collusions,
        deviations,
    )


def of_shares(
    setting: ProtocolSetting,
    servers: int,
    dealer: bool,
    sketch: int | None,
    support: float,
    colluders: int,
    clip: float,
) -> Disclosure:
    """Secret shares between servers.

    support: on how many updates the weights of a sum must lie.
    colluders: hospitals for which this was raised.
    clip: norm to which updates are cut.
    """
    whole = setting.opens == "gram"
    angles = "inner products of every two updates, so all their lengths and angles"
    shown = angles if whole else "lengths of all updates"
    error = "the product of the two lengths" if whole else "a length"
    products = [
        f"the {shown}, exactly"
        if sketch is None
        else f"the {shown}, as random sketches of {sketch} columns give them (an error of about 1 / √{sketch} of "
        f"{error})"
    ]
    kept = _counted(
        setting.histories,
        "products with and between what the servers keep of earlier updates ({} for each hospital)",
        "if hospitals are remembered, products with and between what the servers keep of earlier updates",
    )
    public = _counted(
        setting.vectors,
        "products with public vectors that the coordinator knows ({} in each round)",
        "if the defence uses public vectors, products with these",
    )
    coordinator = "; ".join(
        [
            *([] if setting.opens == "sum" else products),
            *kept,
            *public,
            "64 random combinations of each update under noise, by which its length is checked",
            f"one weighted sum of the updates, under noise, whose weights lie on {support:g} updates or more "
            "(Σw² / max w²), and these weights",
            "which hospitals took part",
        ]
    )
    longer = "how much longer an update is than the median one"
    if_any = "if hospitals are remembered, " if setting.histories is None else ""
    remembered = "" if setting.histories == 0 else f"; {if_any}{longer}"
    vectors = "" if setting.vectors == 0 else ", the defence's public vectors"
    each = (
        "a part of every update that looks random without the other part"
        if dealer
        else "two of the three parts of every update, which look random without the third"
    )
    sketched = "" if sketch is None else ", the sketch"
    sees = [
        (HOSPITAL, f"{MODELS}."),
        (COORDINATOR, f"{coordinator}."),
        (
            f"Each of {servers} servers",
            f"{each}; which hospitals took part, the weights{vectors}{sketched}{remembered}.",
        ),
    ]
    if dealer:
        sees.append(("The dealer", "how many updates and columns there are."))
    known = f"the {'products' if whole else 'lengths'} without the blur of the sketch, and "
    exact = "" if sketch is None or setting.opens == "sum" else known
    blurred = "" if sketch is None else "blurred "
    more = "" if setting.histories == 0 else ", or more where hospitals are remembered"
    together = "The two servers" if servers == 2 else f"Any two of the {servers} servers"
    collusions = [(together, "learn every update.")]
    if dealer:
        collusions.append(("The dealer and one server", "learn every update."))
    collusions += [
        (
            "The coordinator and one server",
            f"learn {exact}64 linear functionals of every update in each round, under noise of ± {clip / 2:g}.",
        ),
        (
            "The coordinator and c hospitals",
            f"learn c {blurred}linear functionals of every other update in each round{more}, and so approximate these "
            "updates, with a sketch or without: in the measurements of docs/secrecy.md, five colluders of twenty knew "
            "the others' updates up to a third of their length."
            if whole
            else "learn the weighted sum of the others' updates, and no more of these than the coordinator alone: no "
            "product of two updates is opened.",
        ),
    ]
    many = "as many numbers" if setting.vectors is None else f"{setting.vectors} number{'s' * (setting.vectors != 1)}"
    blur = "" if sketch is None else ", blurred by the sketch"
    probes = [
        f"It can send other public vectors than the defence needs, and read {many} of its choice of every update in "
        f"each round{blur}: no other party can check where a vector comes from. "
    ] * (setting.vectors != 0)
    assumed = f" ({colluders} of them may be those of colluders)" if colluders else ""
    return Disclosure(
        sees,
        collusions,
        [
            "A coordinator that does not follow the protocol can choose the weights, and open the sum of any "
            f"{ceil(support)} updates{assumed}. {''.join(probes)}It can keep updates whose values wrap around, and "
            "then read several numbers from one product.",
            "Servers know a hospital by its name alone: who can reach them can pose as one that has not sent yet. A "
            "server can also spoil what is opened.",
            "Messages of hospitals are not encrypted by the protocol: who hears a hospital's links to all servers has "
            "its update.",
        ],
    )


def _counted(count: int | None, known: str, unknown: str) -> list[str]:
    if count is None:
        return [unknown]
    return [known.format(count)] if count else []


OPERATOR = (
    "everything: all parties are processes of one cluster. The process that starts them hands out the updates, which "
    "lie in Ray's object store as they are before they are sent; and whoever may submit jobs may run code in every "
    "process. So this run tried the protocol out; it did not hide updates from its operator."
)
"""What the operator of the cluster sees, whatever the protocol is."""
