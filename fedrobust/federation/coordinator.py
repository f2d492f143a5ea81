"""The coordinator: it sees of the updates what the protocol reveals, and makes the next global model of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256

import numpy as np

from fedrobust.aggregation import Aggregated, Layer
from fedrobust.arrays import Arrays, Vector
from fedrobust.data.root import RootPatches
from fedrobust.experiment import Experiment
from fedrobust.federation.arrival import Arrival, Received, WholeArrival
from fedrobust.federation.clients import STEPS
from fedrobust.federation.trials import Trials, candidates_of, told
from fedrobust.records import Fields, below
from fedrobust.timeline import Recording, recording, step
from fedrobust.trust import detection
from fedrobust.trust.defence import DefendedRound, guilty
from fedrobust.trust.jury import Poll
from fedrobust.trust.referee import DEFENCE, Ruling, weights_of
from fedrobust.updates import NotOpened, Updates


@dataclass(frozen=True, eq=False)
class JudgedRound:
    """A round that the defence has decided about, and the jury has not."""

    round: int
    participants: list[int]
    attacking: Sequence[int]
    arrival: Arrival
    received: Received | None
    done: DefendedRound
    ruling: Ruling | None
    started: float
    candidates: dict[str, Aggregated] = field(default_factory=dict)
    """Hypothesis → its aggregate, the defence's first; empty if there is no jury, or nothing to vote on."""


class Coordinator:
    """Aggregates a round. It runs as a Ray actor, but uses nothing of Ray. It sees of the rows only what `Updates`
    reveal."""

    def setup(
        self,
        experiment: Experiment,
        samples: np.ndarray,
        weights: np.ndarray,
        arrays: Arrays,
        layers: Sequence[Layer] = (),
        root: RootPatches | None = None,
    ) -> None:
        """Prepare for an experiment.

        samples: (clients,) the claimed number of training patches of every client id.
        weights: (d,) float32, the global model.
        arrays: the coordinator's part of a checkpoint; empty at the start.
        layers: those to which the d coordinates belong.
        root: the coordinator's own patches, if it tries models on them.
        """
        self._experiment, self._samples, self._weights = experiment, samples, weights
        self._defence = experiment.defence(layers)
        self._memory = self._defence.memory(arrays, len(samples))
        self._server, self._histories = below(arrays, "server"), below(arrays, "history")
        self._jury = experiment.trust.jury
        own = below(arrays, "referee"), below(arrays, "opened"), below(arrays, "good").get("model")
        self._trials = None if root is None else Trials(experiment, root, *own)

    def aggregate(
        self,
        round: int,
        ids: Sequence[Sequence[int]],
        attacking: Sequence[int],
        root: np.ndarray | None,
        *arriving: np.ndarray | Arrival,
    ) -> tuple[Fields, np.ndarray, Arrays]:
        """Aggregate one round: returns its record, the new global weights (d,) float32, and the arrays for the
        checkpoint.

        round: number of the round.
        ids: the clients of each block of updates.
        attacking: the true attackers of the simulation. They are used to measure the detection, never to aggregate.
        root: (1, d) the server's own update, for rules that want one; else None.
        arriving: in the clear the blocks (k, d) float32 themselves; else one `Arrival` that has them on their way.

        If steps are recorded, the record has them under `STEPS`.
        """
        seen = Recording() if self._experiment.tracking.profile else None
        with recording(seen), step("round", round=round):
            record = self._concluded(self._judged(round, ids, attacking, root, arriving), {})
        return self._answer(record, seen)

    def propose(
        self,
        round: int,
        ids: Sequence[Sequence[int]],
        attacking: Sequence[int],
        root: np.ndarray | None,
        *arriving: np.ndarray | Arrival,
    ) -> np.ndarray:
        """The first half of `aggregate`, where hospitals vote: returns the models (1 + K, d) float32 on which they do,
        that after the defence's aggregate first; none if the round is skipped. Arguments as for `aggregate`."""
        seen = Recording() if self._experiment.tracking.profile else None
        with recording(seen), step("propose", round=round):
            judged = self._judged(round, ids, attacking, root, arriving)
            models = {name: self._after(each.aggregate) for name, each in judged.candidates.items()}
            for name, model in models.items():
                if name != DEFENCE and not np.isfinite(model).all():
                    del judged.candidates[name]
        self._open = judged, seen
        found = [models[name] for name in judged.candidates]
        return np.stack(found) if found else np.empty((0, len(self._weights)), dtype=np.float32)

    def conclude(self, votes: Mapping[int, np.ndarray]) -> tuple[Fields, np.ndarray, Arrays]:
        """The second half of `aggregate`, after `propose`; returns what it returns.

        votes: hospital → (K, labels) how much less it loses with each model than with the first; see `Jury.poll`.
        """
        judged, seen = self._open
        del self._open
        with recording(seen), step("round", round=judged.round):
            record = self._concluded(judged, votes)
        return self._answer(record, seen)

    def _answer(self, record: Fields, seen: Recording | None) -> tuple[Fields, np.ndarray, Arrays]:
        if seen is not None:
            record[STEPS] = seen.recorded()
        return record, self._weights, self._arrays()

    def _judged(
        self,
        round: int,
        ids: Sequence[Sequence[int]],
        attacking: Sequence[int],
        root: np.ndarray | None,
        arriving: Sequence[np.ndarray | Arrival],
    ) -> JudgedRound:
        """What the defence decides about a round; arguments as for `aggregate`."""
        start = time.perf_counter()
        participants = sorted(client for block in ids for client in block)
        arrival = arriving[0]
        if not isinstance(arrival, Arrival):
            arrival = WholeArrival([block for block in arriving if isinstance(block, np.ndarray)])
        rejected, received, own = arrival.refused, None, None if root is None else root[0]
        ruling: Ruling | None = None
        try:
            with step("receive"):
                received = self._received(arrival, ids)
            if reason := self._unusable(len(received.clients), own):
                raise NotOpened(reason)
            updates, clients, malformed = received
            turn = self._trials.turn if self._trials is not None and self._trials.in_turn else None
            descents = None if self._trials is None else self._trials.descents(self._weights)
            done = self._defence.defend(
                self._memory, updates, clients, round, own, list(rejected), malformed, turn, descents
            )
            done, ruling = self._refereed(done, updates)
        except NotOpened as error:
            done = self._defence.unjudged(self._memory, participants, list(rejected), str(error))
        judged = JudgedRound(round, participants, attacking, arrival, received, done, ruling, start)
        if self._jury is not None and received is not None and done.aggregated is not None:
            assert done.judgement is not None
            judgement, prior = done.judgement, received.updates.prior
            weights = weights_of(
                self._jury.hypotheses, judgement.gram, prior, done.aggregated.weights, judgement.scores.score
            )
            judged.candidates.update(candidates_of(done.aggregated, received.updates, weights))
        return judged

    def _concluded(self, judged: JudgedRound, votes: Mapping[int, np.ndarray]) -> Fields:
        """Keep what a round leaves, and return its record; `votes`: see `conclude`."""
        round, participants, attacking, arrival = judged.round, judged.participants, judged.attacking, judged.arrival
        done, received, ruling, rejected = judged.done, judged.received, judged.ruling, arrival.refused
        done, poll = self._polled(done, judged.candidates, votes)
        record: Fields = {
            "kind": "round",
            "round": round,
            "participants": participants,
            "attacking": sorted(attacking),
            "rejected": rejected,
            "commitments": arrival.commitments,
        }
        if received is not None and done.judgement is not None:
            record |= figures(done, received)
        if ruling is not None:
            record["referee"] = told(ruling)
            if ruling.chosen != DEFENCE and not ruling.refused:
                record["notes"] = [*record["notes"], f"the referee overruled the defence: {ruling.chosen}"]
            if ruling.refused:
                record["notes"] = [*record["notes"], f"the referee refused the sum: {ruling.chosen}"]
        if poll is not None:
            record["jury"] = asdict(poll)
            if poll.chosen != DEFENCE:
                record["notes"] = [*record["notes"], f"the jury overruled the defence: {poll.chosen}"]
        with step("server step"):
            self._keep(done, refused=ruling is not None and bool(ruling.refused))
        if self._trials is not None and (repaired := self._repaired(round)) is not None:
            record["repair"] = repaired
        if done.skipped is not None:
            reasons = counts(rejected)
            record["skipped"] = done.skipped + (f" ({reasons})" if reasons else "")
        if arrival.notes:
            record["notes"] = [*record.get("notes", ()), *arrival.notes]
        record |= arrival.traffic(len(participants), len(self._weights)) | self._standing()
        scores = record.get("anomaly", {}) | dict.fromkeys(guilty(participants, list(rejected)), 1.0)
        found = detection(
            np.array([scores.get(client, 0.0) for client in participants]),
            np.isin(participants, record["suspected"]),
            np.isin(participants, attacking),
        )
        known = scores or not rejected
        record["detection"] = {f"defense/{name}": figure for name, figure in found.items()} if known else {}
        record["model"] = sha256(self._weights.tobytes()).hexdigest()
        record["seconds"] = {"aggregate": time.perf_counter() - judged.started}
        return record

    def _refereed(self, done: DefendedRound, updates: Updates) -> tuple[DefendedRound, Ruling | None]:
        """The round with the aggregate that the referee chooses, and its ruling, if there is a referee.

        If it refuses the aggregate, the memory keeps the previous one.
        """
        if self._trials is None or done.aggregated is None or done.judgement is None:
            return done, None
        aggregated = done.aggregated
        ruling: Ruling | None
        with step("referee"):
            if self._trials.in_turn:
                after = self._after(aggregated.aggregate)
                ruling = self._trials.judged(aggregated, done.judgement, self._weights, after)
            else:
                aggregated, ruling = self._trials.chosen(
                    aggregated, done.judgement, updates, self._weights, self._after
                )
        refused = ruling is not None and ruling.refused
        memory = replace(done.memory, previous=self._memory.previous if refused else aggregated.aggregate)
        return replace(done, aggregated=aggregated, memory=memory), ruling

    def _polled(
        self, done: DefendedRound, candidates: Mapping[str, Aggregated], votes: Mapping[int, np.ndarray]
    ) -> tuple[DefendedRound, Poll | None]:
        """The round with the aggregate that the jury chooses, and its poll, if there is a jury."""
        if self._jury is None or len(candidates) < 2:
            return done, None
        others, cast = [name for name in candidates if name != DEFENCE], np.stack(list(votes.values()))
        poll = self._jury.poll(others, cast, self._experiment.federation.clients)
        aggregated = candidates[poll.chosen]
        memory = replace(done.memory, previous=aggregated.aggregate)
        return replace(done, aggregated=aggregated, memory=memory), poll

    def _repaired(self, round: int) -> int | None:
        """Repair the global model if that is due; returns the number of steps."""
        assert self._trials is not None
        before = self._weights
        with step("repair"):
            self._weights, steps = self._trials.repaired(before, round)
        if steps and self._memory.step is not None:
            self._memory = replace(self._memory, step=self._memory.step + (self._weights - before))
        return steps

    def _after(self, aggregate: Vector) -> Vector:
        """The global model (d,) if this were the aggregate."""
        return self._experiment.learning.server.step(self._weights, aggregate, self._server)[0]

    def _received(self, arrival: Arrival, ids: Sequence[Sequence[int]]) -> Received:
        """The usable updates; `arrival.refused` then names the clients that sent others."""
        updates, clients, malformed = arrival.receive(ids, self._prior, self._too_few, self._histories)
        usable = updates.finite_rows()
        if usable.all():
            return Received(updates, clients, malformed)
        arrival.refused.update(dict.fromkeys(clients[~usable].tolist(), updates.unusable))
        left = updates.subset(np.flatnonzero(usable)) if usable.any() else updates
        return Received(left, clients[usable], malformed + int((~usable).sum()))

    def _prior(self, clients: np.ndarray) -> np.ndarray:
        """The prior weights of these clients."""
        participants = self._experiment.federation.participants()
        return self._experiment.aggregation.prior(self._samples[clients], len(clients), participants)

    def _unusable(self, accepted: int, root: np.ndarray | None) -> str | None:
        """Why so few updates, not counting the server's own, cannot be aggregated; None if they can."""
        if root is not None and not np.isfinite(root).all():
            return "the server's own update is not finite"
        return self._too_few(accepted)

    def _too_few(self, accepted: int) -> str | None:
        """Why so few usable updates make no round; None if they suffice."""
        settings, drawn = self._experiment.federation, self._experiment.federation.participants()
        if accepted < settings.needed():
            return f"{accepted} of {drawn} updates were usable, below the quorum of {settings.quorum:g}"
        return None

    def _keep(self, done: DefendedRound, refused: bool) -> None:
        """Keep what a round leaves: memory, histories, and the server's step if there is an aggregate that was not
        refused."""
        self._memory = done.memory
        if done.histories is not None:
            self._histories = done.histories
        before = self._weights
        if refused and self._trials is not None:
            self._weights = self._trials.after_refusal(before)
        elif done.aggregated is not None:
            self._weights, self._server = self._experiment.learning.server.step(
                before, done.aggregated.aggregate, self._server
            )
        if self._weights is not before:
            self._memory = done.stepped(self._weights - before)

    def _standing(self) -> Fields:
        """Reputations after the round, suspected clients, and clients in quarantine."""
        reputation, state = self._experiment.trust.reputation, self._memory.trust
        return {
            "reputation": dict(enumerate(reputation.value(state).tolist())),
            "suspected": reputation.suspected(state),
            "quarantined": np.flatnonzero(state["quarantined"]).tolist(),
        }

    def _arrays(self) -> Arrays:
        own = {"server": self._server, "history": self._histories}
        if self._trials is not None:
            own |= {"referee": self._trials.evidence, "opened": self._trials.opened}
            own |= {} if self._trials.good is None else {"good": {"model": self._trials.good}}
        arrays = {f"{folder}/{name}": array for folder, each in own.items() for name, array in each.items()}
        return arrays | self._defence.arrays(self._memory)


def figures(done: DefendedRound, received: Received) -> Fields:
    """What the defence found out about a round's clients, for its record.

    done: the round after the defence.
    received: the updates that it worked on.
    """
    judgement, aggregated = done.judgement, done.aggregated
    assert judgement is not None
    updates, clients, _ = received
    rows, scores = updates.groups or [(int(client),) for client in clients], judgement.scores
    record: Fields = {}
    if {"norms", "gram"} & updates.reveals:
        parts = {part: by_client(rows, values) or {} for part, values in scores.parts.items()}
        record = {
            "anomaly": judgement.anomaly,
            "anomaly_parts": {
                client: {part: own[client] for part, own in parts.items()} for client in judgement.anomaly
            },
            "update_norm": by_client(rows, judgement.gram.norms()),
        }
    if aggregated is None:
        return record
    return record | {
        "f": judgement.context.f,
        "stages": [
            {
                "name": step.name,
                "scores": by_client(rows, step.scores),
                "weights": by_client(rows, step.weights, shared=True),
            }
            for step in aggregated.steps
        ],
        "weights": by_client(rows, aggregated.weights, shared=True),
        "aggregate_norm": float(np.linalg.norm(aggregated.aggregate.astype(np.float64))),  # a square may overflow
        "notes": list(aggregated.notes),
    }


def counts(rejected: Mapping[int, str]) -> str:
    """`not finite: 4, truncated: 1`: why updates were rejected, the most frequent reason first; empty if none was.

    rejected: client → reason.
    """
    return ", ".join(f"{reason}: {count}" for reason, count in Counter(rejected.values()).most_common())


def by_client(
    rows: Sequence[Sequence[int]], values: np.ndarray | None, shared: bool = False
) -> dict[int, float] | None:
    """Figures of the rows by client id.

    rows: the clients of each row.
    values: (n,) one for each row; None returns None.
    shared: give each client of a row an equal part of its figure, instead of the figure itself.
    """
    if values is None:
        return None
    figures = values.tolist()
    found = {
        client: figure / len(row) if shared else figure
        for row, figure in zip(rows, figures, strict=True)
        for client in row
    }
    return dict(sorted(found.items()))
