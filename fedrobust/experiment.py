"""The experiment: one frozen object that combines the options of the rooms below and is checked as a whole."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fedrobust.aggregation import Aggregation, Layer
from fedrobust.attacks import Absent, Always, Attack, Attackers
from fedrobust.data import (
    Dirichlet,
    Histology,
    NoNormalisation,
    Partition,
    Root,
    Source,
    Split,
    StainNormalisation,
    StainShift,
)
from fedrobust.draft import Changes, Draft
from fedrobust.errors import ExperimentError, Problem
from fedrobust.learning import Cnn, Encoder, FedAvg, LocalTraining, Model, ServerOptimizer, Timm, model_shorthand
from fedrobust.metrics import Metric
from fedrobust.options import Many, OneOf, Options, members, refusal
from fedrobust.portions import portion
from fedrobust.secure import ClearPrivacy, Privacy
from fedrobust.seeds import generator
from fedrobust.trust import AFTER_DEFENCE, Trust
from fedrobust.trust.defence import Defence
from fedrobust.updates import Demand
from fedrobust.updates.interface import not_revealed

SET_ASIDE = "data.root.set_aside: 0.05 sets patients aside for the coordinator"


class Data(Options):
    """Which patches there are, who holds them, and what their stain looks like."""

    source: Annotated[Source, OneOf(Source)] = Histology()
    """Where the patches come from."""
    split: Split = Split()
    """How patients are divided into training, validation and test."""
    partition: Annotated[Partition, OneOf(Partition)] = Dirichlet()
    """How the patches are divided over the hospitals."""
    stain_shift: StainShift = StainShift()
    """A stain of its own for each hospital."""
    stain_normalisation: Annotated[StainNormalisation, OneOf(StainNormalisation)] = NoNormalisation()
    """Stain normalisation of every patch, cached on disk."""
    root: Root = Root()
    """The coordinator's own patches: for rules that compare updates with one of its own (fltrust, zeno_pp), for the
    referee and for the repair."""


class Federation(Options):
    """How many hospitals train together, for how long, and who may be missing."""

    clients: int = Field(default=10, ge=1, le=100_000)
    """Number of hospitals."""
    rounds: int = Field(default=20, ge=1)
    """Number of rounds."""
    participation: float = Field(default=1.0, gt=0, le=1)
    """Share of the hospitals that is drawn, anew for each round, to train in it; at least one."""
    quorum: float = Field(default=0.5, gt=0, le=1)
    """Share of the drawn hospitals whose updates must be usable; below it the model is not changed in this round. Drawn
    hospitals that send nothing count as drawn."""
    deadline: float | None = Field(default=None, gt=0)
    """Seconds after which a round goes on without late hospitals, if the quorum is reached; waited for three times at
    most. Off by default, because it makes a run depend on chance."""

    def participants(self) -> int:
        """Return how many hospitals are drawn for a round."""
        return max(1, portion(self.participation, self.clients))

    def drawn(self, seed: int, round: int) -> list[int]:
        """Return the hospitals that are drawn for a round, by ascending id.

        seed: the experiment's.
        round: its number, from 1.
        """
        if self.participants() == self.clients:
            return list(range(self.clients))
        chosen = generator(seed, "participants", round).choice(self.clients, self.participants(), replace=False)
        return sorted(chosen.tolist())

    def needed(self) -> int:
        """Return how many usable updates a round needs for its quorum."""
        return portion(self.quorum, self.participants(), least=True)


class Learning(Options):
    """The model, how a hospital trains it, and how the coordinator applies the aggregate."""

    model: Annotated[Model, OneOf(Model, shorthand=model_shorthand)] = Cnn()
    """`cnn`, a timm model as `timm:resnet18`, or `encoder`: a pretrained one with a small head."""
    local: LocalTraining = LocalTraining()
    """Training at a hospital."""
    server: Annotated[ServerOptimizer, OneOf(ServerOptimizer)] = FedAvg()
    """The server optimiser: what is done with the aggregate of the updates."""

    @property
    def on_features(self) -> bool:
        """Whether a frozen encoder's features are computed once, and training gets them instead of patches."""
        frozen = isinstance(self.model, Encoder) and self.model.trainable == "head"
        return frozen and (self.views > 1 or not self.local.augment) and self.local.engine != "stacked"

    @property
    def views(self) -> int:
        """How many views of each patch have features."""
        return (isinstance(self.model, Encoder) and self.model.views) or 1

    @model_validator(mode="after")
    def _views_are_used(self) -> Self:
        if self.views > 1 and not self.local.augment:
            raise refusal("are for augmentation, and local.augment is false", "model.views")
        if self.views > 1 and self.local.engine == "stacked":
            raise refusal("the stacked engine trains on patches; use engine: lean", "model.views")
        return self

    @model_validator(mode="after")
    def _can_be_stacked(self) -> Self:
        if self.local.engine == "stacked" and isinstance(self.model, Timm) and self.model.batch_norm == "keep":
            raise refusal(
                "a hospital's last batch is filled up in a stack, which would change the statistics of its batch "
                "normalisation; use model.batch_norm: group, or engine: lean",
                "local.engine",
            )
        return self


class Evaluation(Options):
    """When the global model is evaluated on the held-out patients."""

    every: int = Field(default=1, ge=1)
    """Evaluate after every so many rounds, and always after the last one."""
    last: int | None = Field(default=None, ge=1)
    """Evaluate only the last so many rounds."""
    metrics: Many[Annotated[Metric, OneOf(Metric)]] = ()
    """Metrics of your own, `package.module:Class`, beside those that every run has."""

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        names = [*members(Metric), *(metric.key for metric in self.metrics)]
        for name in names:
            if names.count(name) > 1:
                raise refusal(f"there are two metrics '{name}'", "metrics")
        return self

    def due(self, round: int, rounds: int) -> bool:
        """Return whether the model after `round` of `rounds` is evaluated."""
        late_enough = self.last is None or round > rounds - self.last
        return round == rounds or (round % self.every == 0 and late_enough)


class Workers(Options):
    """Client actors; each hosts a share of the hospitals. Their number changes the speed, but no bit of a result."""

    count: int | Literal["auto"] = "auto"
    """Number of client actors; `auto`: one for each core, or for each share of a GPU, at most one a hospital."""
    cpus: float | Literal["auto"] = "auto"
    """Cores for each actor; `auto`: 1, or less where there are more actors than cores."""
    gpus: float | Literal["auto"] = "auto"
    """Share of a GPU for each actor, e.g. 0.25; `auto`: 0.25 where the cluster has a GPU, else 0."""
    threads: int = Field(default=1, ge=1)
    """Threads that torch uses in each actor. Like a GPU, more than one may change the last bits of a result."""
    shards: int = Field(default=1, ge=1)
    """Actors that hold the updates, a part of the columns each, if they are too large for the coordinator alone."""
    parties: Many[str] = ()
    """Custom Ray resources of the nodes that hold the servers of a protocol, in order, and last its dealer; by default
    they are beside the first client actor."""
    patience: float = Field(default=600.0, gt=0)
    """Seconds without any answer from an actor after which the run stops with an error."""

    @model_validator(mode="after")
    def _positive(self) -> Self:
        for field in ("count", "cpus", "gpus"):
            value = getattr(self, field)
            least = 0 if field == "gpus" else 1e-3
            if value != "auto" and value < least:
                raise refusal(f"must be 'auto' or {'at least 0' if field == 'gpus' else 'positive'}", field)
        if self.gpus != "auto" and self.gpus > 1 and self.gpus % 1:
            raise refusal("must be a share of one GPU or a whole number of them", "gpus")
        return self


# The field hides only `ABCMeta.register`, which options do not need.
warnings.filterwarnings("ignore", message='Field name "register" in "Tracking" shadows', category=UserWarning)


LONGEST = 250
"""Characters that a name may have in every database of MLflow."""


class Tracking(Options):
    """What MLflow keeps of the run."""

    experiment: str = Field(default="fedrobust", min_length=1, max_length=LONGEST)
    """Name of the MLflow experiment that the run belongs to."""
    run_name: str | None = None
    """Name of the run; by default it is made of the experiment's name and what sets it apart."""
    model: bool = True
    """Log the final model, with its signature."""
    curves: bool = False
    """For the runs of a matrix, a sweep or a duel: send every round, not only the last figures, as a single run does.
    For many runs an SQLite file is slow at that; use a server."""
    profile: bool = False
    """Record when each process does what, as `fedrobust run --profile` does: `trace.json` in the run's folder, and a
    picture in the report. Not for the runs of a matrix, a sweep or a duel."""
    register: str | None = Field(default=None, min_length=1, max_length=LONGEST)
    """Name in MLflow's model registry under which the final model becomes the latest version: `models:/NAME@latest`."""

    @model_validator(mode="after")
    def _registrable(self) -> Self:
        if self.register is not None and not self.model:
            raise refusal("only a model that is logged can be registered; use tracking.model: true", "register")
        if self.register is not None and not re.fullmatch(r"\w[\w .-]*", self.register):
            raise refusal("must begin with a letter or digit, and hold only those, space, '_', '-' and '.'", "register")
        return self


class Experiment(Options):
    """A federated run: data, hospitals, learning, attacks, defence. `fedrobust.load` reads one from a YAML file."""

    name: str = Field(default="experiment", min_length=1)
    """Name of the experiment."""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    """The one seed that every random draw of the run derives from."""
    data: Data = Data()
    federation: Federation = Federation()
    learning: Learning = Learning()
    attacks: Many[Annotated[Attack, OneOf(Attack)]] = ()
    """The attacks; each draws its own malicious hospitals."""
    aggregation: Aggregation = Aggregation()
    """The defence: stages that mix the updates, and the rule that combines them."""
    trust: Trust = Trust()
    """Anomaly scores and reputations."""
    privacy: Annotated[Privacy, OneOf(Privacy)] = ClearPrivacy()
    """The protocol between hospitals and coordinator: what is revealed of an update."""
    evaluation: Evaluation = Evaluation()
    workers: Workers = Workers()
    tracking: Tracking = Tracking()

    @classmethod
    def _instead(cls, key: str) -> str:
        if key == "experiment":
            return "a file that names an experiment is for fedrobust matrix, sweep or duel"
        return super()._instead(key)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        try:
            self.attackers  # noqa: B018  draws them
        except ExperimentError as error:
            raise refusal(error.problems[0]) from None
        for index, attack in enumerate(self.attacks):
            if attack.chosen != "random" and getattr(self.data.partition, "ratio", None) is None:
                hint = "data.partition.ratio: 10 makes hospital 0 the largest, of ten times the smallest"
                raise refusal(Problem("sizes are not known before the run", f"attacks.{index}.chosen", hint=hint))
            if attack.knowledge == "patches" and self.data.root.set_aside == 0:
                reason = "the coordinator has no patches of its own"
                raise refusal(Problem(reason, f"attacks.{index}.knowledge", hint=SET_ASIDE))
        self._private()
        self._refereed()
        rows, participants, needed = self.most_there(), self.federation.participants(), self.federation.needed()
        if rows < needed:
            reason = f"{rows} of {participants} hospitals at most are ever there, the quorum is {needed}: see attacks"
            raise refusal(reason, "federation.quorum")
        if unkept := self.aggregation.refusal(self.privacy.rows(rows), participants):
            raise refusal(unkept, "aggregation.f")
        return self

    @property
    def attackers(self) -> Attackers:
        """Return the malicious hospitals, drawn with the seed. Each call draws again, so callers keep the result."""
        return Attackers.draw(self.attacks, self.federation.clients, self.seed)

    def defence(self, layers: Sequence[Layer] = ()) -> Defence:
        """Return detector, reputation, quarantine and pipeline as one object.

        layers: which coordinates of an update belong to which layer of the model.
        """
        return Defence(self.aggregation, self.trust, self.federation.participants(), self.seed, layers)

    def demand(self, labels: int = 0) -> Demand:
        """Return what the defence asks of the updates.

        labels: of the coordinator's own patches; 0 where they are not known yet.
        """
        return self.aggregation.demand | self.trust.demand(labels)

    def most_there(self) -> int:
        """Return how many of the drawn hospitals send an update if as many as possible take part."""
        never = [each for each in self.attacks if isinstance(each, Absent) and isinstance(each.schedule, Always)]
        present = self.federation.clients - sum(attack.attackers(self.federation.clients) for attack in never)
        return min(self.federation.participants(), present)

    def _private(self) -> None:
        """Refuse options that do not fit the protocol."""
        privacy, name, federation = self.privacy, self.privacy.name, self.federation
        there, drawn = self.most_there(), federation.participants()
        if found := privacy.refusal(self.aggregation, there, federation.rounds, self.demand(), drawn):
            raise refusal(found)
        if self.workers.shards > 1 and not privacy.sharded:
            raise refusal(f"privacy {name} places the updates itself; use 1", "workers.shards")
        if not privacy.single:
            if self.trust.acts:
                raise refusal(f"{name} shows no single update that could be left out or weighed", "trust.acts")
            if "gram" in privacy.reveals and (self.trust.detector.histories or self.trust.detector.remembers):
                reason = f"{self.trust.detector.name} remembers clients; a group is no single client's"
                raise refusal(reason, "trust.detector")
        self._exact_where_needed()
        resources = self.workers.parties
        if resources and len(resources) != privacy.parties:
            reason = f"expected one resource for each of the {privacy.parties} parties of {name}"
            raise refusal(Problem(reason, "workers.parties", str(len(resources))))

    def _refereed(self) -> None:
        """Refuse a referee or a repair without patches, and several sums of a round where one is opened."""
        for name in self.trust.own_patches:
            if self.data.root.set_aside == 0:
                who = f"{name} {self.trust.detector.name}" if name == "detector" else name
                reason = f"the {who} needs patches that no hospital trains on"
                raise refusal(Problem(reason, f"trust.{name}", hint=SET_ASIDE))
        detector = self.trust.detector
        if detector.own_patches and (hidden := not_revealed(detector.demand().needs, self.privacy.reveals)):
            reason = f"{detector.name} needs {', '.join(sorted(hidden))}, which {self.privacy.name} does not reveal"
            raise refusal(Problem(reason, "trust.detector", hint="privacy: shares and replicated do"))
        referee = self.trust.referee
        if referee is not None and referee.openings == "together" and "rows" not in self.privacy.reveals:
            raise refusal(f"a round of {self.privacy.name} opens one sum; use in_turn", "trust.referee.openings")
        groups = "rows" in self.privacy.reveals and not self.privacy.single
        if referee is not None and referee.openings == "in_turn" and groups:
            reason = f"in turn refuses sums, and {self.privacy.name} would train one model again in other groups"
            raise refusal(f"{reason}; use together", "trust.referee.openings")
        if self.trust.jury is not None:
            if self.trust.referee is not None:
                raise refusal("a referee or a jury decides, not both", "trust.jury")
            if "rows" not in self.privacy.reveals:
                reason = f"a round of {self.privacy.name} opens one sum, and a jury compares several"
                raise refusal(f"{reason}; use privacy: clear", "trust.jury")
            if groups:
                reason = f"every hospital would see several sums of {self.privacy.name}'s groups"
                raise refusal(f"{reason}; use privacy: clear", "trust.jury")

    def _exact_where_needed(self) -> None:
        """Refuse a sketch where the coordinator does not have whole updates, or looks at their coordinates anyway."""
        if self.aggregation.sketch is None:
            return
        if "rows" not in self.privacy.reveals:
            own = "; it has its own: privacy.sketch" if hasattr(self.privacy, "sketch") else ""
            reason = f"under {self.privacy.name} the coordinator has no updates to sketch{own}"
            raise refusal(reason, "aggregation.sketch")
        if self.workers.shards > 1:
            raise refusal("a sketch mixes all columns, and shards hold some each; use 1", "workers.shards")

    def changed(self, changes: Changes) -> Experiment:
        """Return this experiment with other values.

        changes: dotted path → value, or texts such as `"aggregation.rule=krum"`.

        >>> Experiment().changed({"aggregation.rule": "krum", "federation.clients": 20}).federation.clients
        20

        Raises `ExperimentError`, as `fedrobust.load` does.
        """
        return Draft.of(self.name, self.resolved()).overridden(changes).checked(Experiment)

    def resolved(self) -> dict[str, Any]:
        """Return every option with its value, as plain JSON types; `Experiment.model_validate` reads it back."""
        return self.model_dump(mode="json", serialize_as_any=True)

    def digest(self) -> str:
        """Return the SHA-256 of everything that can change the result; `workers` and `tracking` cannot."""
        decisive = {key: value for key, value in self.resolved().items() if key not in ("workers", "tracking")}
        # These options are newer than the first digests, which must not change.
        if not self.evaluation.metrics:
            del decisive["evaluation"]["metrics"]
        if self.learning.local.engine != "stacked":
            del decisive["learning"]["local"]["stack"]
        if isinstance(self.learning.model, Encoder):
            for name, usual in Encoder.of_frozen.items():
                if decisive["learning"]["model"][name] == usual:
                    del decisive["learning"]["model"][name]
        if self.aggregation.sketch is None:
            del decisive["aggregation"]["sketch"]
        if self.aggregation.cap == 2.0:
            del decisive["aggregation"]["cap"]
        if decisive["data"]["partition"].get("ratio", 0) is None:
            del decisive["data"]["partition"]["ratio"]
        for attack in decisive["attacks"]:
            for name, usual in (("chosen", "random"), ("claim", 1.0), ("pleasing", 0.5)):
                if attack.get(name) == usual:
                    del attack[name]
        for name in AFTER_DEFENCE:
            if getattr(self.trust, name) is None:
                del decisive["trust"][name]
        if self.trust.referee is not None and self.trust.referee.openings is None:
            del decisive["trust"]["referee"]["openings"]
        if self.data.root.set_aside == 0:
            decisive["data"]["root"] = self.data.root.patches
        if decisive["data"]["source"].get("unreadable") == "refuse":
            del decisive["data"]["source"]["unreadable"]
        return sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
