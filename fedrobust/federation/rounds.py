"""The loop: train, attack, aggregate, evaluate, commit, for as many rounds as the experiment has.

A round's model is evaluated on the client actors while the next round is aggregated. The result of a run does not
depend on the number of actors: rows are sorted by client, and evaluation batches are cut at fixed positions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import ray

from fedrobust.attacks import CraftedAttack, DataAttack
from fedrobust.attacks.voting import with_lies
from fedrobust.data.hospitals import Hospitals
from fedrobust.errors import FederationError
from fedrobust.experiment import Experiment
from fedrobust.federation.actors import ActorDied, answer, setup
from fedrobust.federation.adversary import Outlook
from fedrobust.federation.clients import STEPS
from fedrobust.federation.delivery import Block, delivery
from fedrobust.federation.hosts import Hosts, TrainedUpdates
from fedrobust.federation.journal import Journal
from fedrobust.federation.measures import evaluation_record
from fedrobust.federation.pool import Team
from fedrobust.learning.models import state_digest
from fedrobust.records import Checkpoint, EvaluationRecord, Fields, Record, RoundRecord
from fedrobust.records.trace import ADVERSARY, AGGREGATE, COORDINATOR, ROUND
from fedrobust.timeline import arrived, happened, step

Hook = Callable[[Record], None]


@dataclass(frozen=True)
class FinalModel:
    """The end of a run: the model, and the last evaluation of it."""

    weights: np.ndarray
    digest: str
    """Of its state dict, as `state_digest` makes it."""
    evaluation: EvaluationRecord
    probabilities: np.ndarray
    """(n, classes) float32 of the test patches, in the order of `Hospitals.indices["test"]`."""


class Stored(NamedTuple):
    """A global model (d,) float32, and Ray's reference to it: the next round trains from where it lies."""

    weights: np.ndarray
    reference: Any


class FederatedTraining:
    """One run on a leased team."""

    def __init__(
        self,
        experiment: Experiment,
        hospitals: Hospitals,
        team: Team,
        say: Callable[[str], None] = lambda what: None,
    ) -> None:
        """Set the client actors up; `say`: see `Hosts`."""
        self.experiment, self.hospitals, self._team = experiment, hospitals, team
        self._patience, self._profiled = experiment.workers.patience, int(experiment.tracking.profile)
        self._attackers = experiment.attackers
        if self._attackers.crafts:
            team.start_adversary()  # it imports what it needs while the client actors get ready
        self.hosts = Hosts(experiment, hospitals, team, say)
        self._appear = self._attackers.ids(experiment.federation.rounds)
        self._samples = self._claimed_samples()

    def begin(self, start: Checkpoint | None) -> Checkpoint:
        """Start the training of the round after a checkpoint. It goes on while the run gets its folder and journal.

        start: the last commit; None: there is none, the first round starts from the initial weights.

        Returns the checkpoint after which it starts.
        """
        if start is None:
            self._reference, self._states, self._previous, after = self.hosts.initial_weights(), {}, None, 0
        else:
            self._reference, after = ray.put(np.ascontiguousarray(start.arrays["weights"])), start.round
            self._states = {int(client): state for client, state in start.below("client").items()}
            self._previous = ray.put(start.arrays["previous_weights"]) if "previous_weights" in start.arrays else None
        self._began = time.perf_counter()
        self._tasks = self._ask_training(after + 1, self._reference, self._states, self._previous)
        if start is not None:
            return start
        return Checkpoint(0, {"weights": np.array(answer(self._reference, "the initial model", self._patience))})

    def run(self, journal: Journal, hooks: Sequence[Hook] = ()) -> FinalModel:
        """Go on after the journal's last commit, with which it has begun, until the last round.

        journal: has the commit of the first weights, or of a later round.
        hooks: each is called with every committed record.

        Raises `FederationError` if the federation cannot go on; what is committed stays.
        """
        settings, evaluation, start = self.experiment.federation, self.experiment.evaluation, journal.checkpoint
        assert start is not None, "a run begins with the commit of its first weights"
        weights, states, pending = np.ascontiguousarray(start.arrays["weights"]), self._states, start.pending
        samples, layers = self._samples, self.hosts.layers
        self._delivery = delivery(
            self.experiment,
            self._team,
            self.hosts.columns,
            journal.folder.name,
            samples,
            self.experiment.demand(0 if self.hosts.root is None else self.hosts.root.labelled),
            self.hosts.alive,
        )
        self._start(start.round, start.arrays)
        if self._attackers.crafts:
            crafting = [self._team.start_adversary()]
            setup(crafting, [self.experiment, samples, layers], "the adversary to get ready", self._patience)
        attacks = self.experiment.attacks
        keeps = any(isinstance(a, CraftedAttack) or (isinstance(a, DataAttack) and a.needs_step) for a in attacks)
        arrays, previous, reference = start.arrays, self._previous, self._reference
        tasks, began = self._tasks, self._began
        for round in range(start.round + 1, settings.rounds + 1):
            # Each actor evaluates after its training.
            asked = [] if pending is None else self.hosts.ask_evaluation(reference)
            with step("wait for training", round=round):
                updates = self.hosts.collect(tasks)
            trained = time.perf_counter()
            before = {"previous_weights": weights} if keeps else {}
            with step(AGGREGATE, round=round):
                record, (weights, new), kept = self._aggregate(round, updates, arrays)
            states |= updates.states
            previous, old, reference = reference if keeps else None, pending, new
            # The next round trains while this one's evaluation is collected and the round is written to disk.
            with step("start the next training", round=round + 1):
                tasks = self._ask_training(round + 1, reference, states, previous)
            with step("wait for evaluation", round=round - 1):
                evaluations = [] if old is None else [self._evaluated(old, asked)[0]]
            pending = round if evaluation.due(round, settings.rounds) else None
            ended = time.perf_counter()
            record["seconds"] |= {"train": trained - began, "round": ended - began}
            happened(ROUND, began, ended, round=round)
            began = ended
            records: list[Record] = [RoundRecord.of(record), *evaluations]
            arrays = {"weights": weights, **before, **kept}
            arrays |= {f"client/{id}": state for id, state in sorted(states.items())}
            with step("journal", round=round):
                journal.commit(records, Checkpoint(round, arrays, pending))
            with step("hooks", round=round):
                for each in records:
                    for hook in hooks:
                        hook(each)
        asked, digested = self.hosts.ask_evaluation(reference), self.hosts.ask_of_model(state_digest, reference)
        with step("last evaluation", round=settings.rounds):
            last, probabilities = self._evaluated(settings.rounds, asked)
        return FinalModel(weights, digested(), last, probabilities)

    def _ask_training(self, round: int, weights: Any, states: dict[int, np.ndarray], previous: Any) -> list[Any]:
        """Start the training of a round's participants, if there is such a round."""
        if round > self.experiment.federation.rounds:
            return []
        return self.hosts.ask_training(round, self._participants(round), weights, states, previous)

    def _start(self, round: int, arrays: dict[str, np.ndarray]) -> None:
        """Prepare coordinator and protocol to go on after `round`, whose checkpoint had these arrays."""
        own = self._delivery.setup(round, coordinators(arrays))
        # If a row stands for several hospitals, they weigh their own updates, and their counts stay secret.
        samples = self._samples if self.experiment.privacy.single else np.ones_like(self._samples)
        arguments = [self.hosts.sent, samples, arrays["weights"], own, self.hosts.layers, self.hosts.root]
        setup([self._team.coordinator], arguments, "the coordinator to get ready", self._patience)

    def _participants(self, round: int) -> list[int]:
        drawn = self.experiment.federation.drawn(self.experiment.seed, round)
        return sorted(set(drawn) - self._attackers.absent(round))

    def _claimed_samples(self) -> np.ndarray:
        """(ids,) training patches of each id with which a hospital ever appears, as it claims."""
        own = self.hosts.samples.copy()
        for hospital in self._attackers.drawn:
            attack = self._attackers.attack(hospital)
            assert attack is not None
            own[hospital] = max(1, round(attack.claim * own[hospital]))
        claimed = np.concatenate([own, np.ones(self._appear - len(own), dtype=np.int64)])
        for number in range(1, self.experiment.federation.rounds + 1):
            for hospital, id in self._attackers.new_ids(number).items():
                claimed[id] = own[hospital]
        return claimed

    def _outlook(self, arrays: dict[str, np.ndarray]) -> Outlook:
        """What attackers can know of the next round, from the last round's checkpoint."""
        before = arrays.get("previous_weights")
        aware = any(attack.knowledge == "aware" for attack in self.experiment.attacks)
        known = {}
        if aware:
            past = self._delivery.histories(arrays)
            known = {name: array for name, array in coordinators(arrays).items() if not name.startswith("party/")}
            known |= {f"history/{name}": rows for name, rows in past.items()}
        return Outlook(None if before is None else arrays["weights"] - before, known)

    def _aggregate(
        self, round: int, updates: TrainedUpdates, arrays: dict[str, np.ndarray]
    ) -> tuple[Fields, Stored, dict[str, np.ndarray]]:
        """The adversary replaces its rows, then the coordinator aggregates.

        arrays: those of the last checkpoint. A round in which a party of the protocol dies begins again from them.
        """
        if not updates.arrived():
            drawn = self.experiment.federation.participants()
            reason = "no update arrived by the deadline; raise federation.deadline"
            if not updates.late:
                reason = f"all {drawn} hospitals drawn are absent; raise federation.participation, or lower the attack"
            raise FederationError(f"round {round}: {reason}")
        blocks, columns, steps = updates.honest, self.hosts.columns, list[Any]()
        root = updates.root[0] if updates.root else None
        if updates.crafting:
            trained = updates.crafting + updates.honest
            crafting = sorted(client for block in updates.crafting for client in block.clients)
            ids, parts = [block.clients for block in trained], [part for block in trained for part in block.parts]
            adversary = self._team.start_adversary()
            replace = adversary.replace.options(num_returns=len(columns) + self._profiled)
            crafted = replace.remote(round, ids, crafting, columns, self._outlook(arrays), root, *parts)
            own = crafted if len(columns) + self._profiled > 1 else [crafted]
            own, steps = own[: len(columns)], own[len(columns) :]
            blocks = [*blocks, Block(crafting, own, adversary)]
        malicious = self._attackers.active(updates.arrived(), round)
        elsewhere = self._attackers.new_ids(round)
        malicious = [elsewhere.get(client, client) for client in malicious]
        blocks = [
            block._replace(clients=[elsewhere.get(client, client) for client in block.clients]) for block in blocks
        ]
        record, weights, found = self._aggregated(round, blocks, malicious, root, arrays, updates.arrived())
        arrived(COORDINATOR, record.pop(STEPS, None))
        for reference in steps:
            arrived(ADVERSARY, answer(reference, f"round {round}: the adversary", self._patience))
        if self._appear > len(self.hosts.samples):
            record = by_hospital(record, elsewhere, self.experiment.federation.clients)
        record["train_loss"] = dict(sorted(updates.losses.items()))
        if updates.late:
            record["late"] = sorted(updates.late)
        if "skipped" in record:
            record["skipped"] += explained(record["skipped"], updates)
        return record, weights, found

    def _aggregated(
        self,
        round: int,
        blocks: list[Block],
        malicious: list[int],
        root: Any,
        arrays: dict[str, np.ndarray],
        voters: list[int],
    ) -> tuple[Fields, Stored, dict[str, np.ndarray]]:
        """The coordinator's result for the updates, sent by the protocol; the hospitals `voters` vote on it, if there
        is a jury."""
        way, ids, jury = self._delivery, [block.clients for block in blocks], self.experiment.trust.jury
        for attempt in range(way.attempts):
            try:
                if attempt:
                    self._start(round - 1, arrays)
                coordinator, sent = self._team.coordinator, way.send(round, attempt, blocks)
                awaited = f"round {round}: the coordinator to aggregate"
                aggregate, asked = coordinator.aggregate, (round, ids, malicious, root, *sent)
                if jury is not None:
                    models = coordinator.propose.remote(*asked)
                    several = len(answer(models, awaited, self._patience)) > 1
                    with step("wait for votes", round=round):
                        votes = self.hosts.votes(voters, models) if several else {}
                    needed = jury.needed(self.experiment.federation.clients)
                    aggregate, asked = coordinator.conclude, (with_lies(votes, self._attackers.drawn, needed),)
                reply = aggregate.options(num_returns=3).remote(*asked)
                record, weights, own = (answer(each, awaited, self._patience) for each in reply)
                return record, Stored(weights, reply[1]), own | way.arrays()
            except ActorDied:
                if attempt + 1 == way.attempts:
                    raise
        raise AssertionError

    def _evaluated(self, round: int, asked: list[Callable[[], Any]]) -> tuple[EvaluationRecord, np.ndarray]:
        """The record of a round's evaluation, and the probabilities of the test patches."""
        found = self.hosts.collect_evaluation(asked)
        record = evaluation_record(round, self.hospitals, self.experiment, found)
        return record, found["clean"][len(self.hospitals.indices["validation"]) :]


def explained(skipped: str, updates: TrainedUpdates) -> str:
    """What the hospitals' side adds to the coordinator's reason for skipping a round; empty if there is nothing to add.

    skipped: the coordinator's reason.
    updates: of the round.
    """
    diverged = sum(not math.isfinite(loss) for loss in updates.losses.values())
    told = f", late: {len(updates.late)}" if updates.late else ""
    # Under secret shares and masks an update that is not finite is never sent.
    return told + (f", training loss not finite: {diverged}" if diverged and "not finite" not in skipped else "")


def coordinators(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint, without model weights and client states."""
    elsewhere = ("weights", "client", "previous_weights")
    return {name: array for name, array in arrays.items() if name.split("/")[0] not in elsewhere}


def by_hospital(record: Fields, elsewhere: dict[int, int], clients: int) -> Fields:
    """A coordinator's record, whose figures are by id, with figures by hospital.

    elsewhere: hospital → its id, where that is not its own number.
    clients: how many hospitals there are.

    Ids that no hospital uses in this round, because it has left them or does not use them yet, are left out.
    """
    hospital = {id: client for client, id in ({client: client for client in range(clients)} | elsewhere).items()}

    def told(value: Any) -> Any:
        if isinstance(value, dict):
            named = {hospital.get(id): figure for id, figure in value.items()}
            return dict(sorted((client, figure) for client, figure in named.items() if client is not None))
        return sorted(hospital[id] for id in value if id in hospital)

    lists = ("participants", "attacking", "suspected", "quarantined")
    figures = ("rejected", "commitments", "reputation", "weights", "anomaly", "anomaly_parts", "update_norm")
    found = record | {name: told(record[name]) for name in (*lists, *figures) if record.get(name) is not None}
    for stage in found.get("stages", ()):
        stage |= {name: told(stage[name]) for name in ("scores", "weights") if stage[name] is not None}
    return found | ({"identities": elsewhere} if elsewhere else {})
