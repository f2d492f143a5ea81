"""The loop: train, attack, aggregate, evaluate, commit, for as many rounds as the experiment has.

Evaluation of a round's model runs on the workers while the next round trains and is aggregated. What a run computes
does not depend on the number of workers: rows are sorted by client, evaluation batches are cut at fixed places.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError

from fedrobust.attacks import Backdoor, CraftedAttack, attacking, draw_attackers
from fedrobust.data.hospitals import Hospitals
from fedrobust.errors import FederationError
from fedrobust.experiment import Experiment
from fedrobust.federation.clients import Layout, Training, triggered
from fedrobust.federation.journal import Checkpoint, Journal, Record
from fedrobust.federation.pool import Team, answer, setup
from fedrobust.seeds import generator

ATTEMPTS = 3
"""How often a round is tried, when actors die or too few updates arrive, before the run stops."""

Hook = Callable[[Record], None]


@dataclass(frozen=True)
class Outcome:
    """The end of a run: the model, and the last evaluation of it."""

    weights: np.ndarray
    evaluation: Record
    probabilities: np.ndarray
    """(n, classes) float32 of the test patches, in the order of `Hospitals.indices["test"]`."""


@dataclass(frozen=True)
class _Updates:
    """What a round's training left in the object store."""

    honest: list[tuple[list[int], Any]]
    crafting: list[tuple[list[int], Any]]
    losses: dict[int, float]
    states: dict[int, np.ndarray]
    late: list[int]


class Federation:
    """One run on a leased team."""

    def __init__(self, experiment: Experiment, hospitals: Hospitals, team: Team) -> None:
        self.experiment, self.hospitals, self.team = experiment, hospitals, team
        self._patience = experiment.workers.patience
        self._attackers = draw_attackers(experiment.attacks, experiment.federation.clients, experiment.seed)
        held_out = np.concatenate([hospitals.indices["validation"], hospitals.indices["test"]])
        training = tuple(hospitals.training(client) for client in range(experiment.federation.clients))
        self._samples = np.array([len(own) for own in training])
        self._layout = Layout(training, held_out, hospitals.indices["test"], len(hospitals.label_names))
        self._shared = [ray.put(hospitals.images), ray.put(hospitals.labels)]
        self._client_setup = [experiment, ray.put(self._layout), *self._shared]
        setup(team.workers, self._client_setup, "the client actors to get ready", self._patience)
        setup([team.adversary], [experiment], "the adversary to get ready", self._patience)

    def initial_weights(self) -> np.ndarray:
        """(d,) float32: the model that the first round starts from."""
        return np.array(answer(self.team.workers[0].initial_weights.remote(), "the initial model", self._patience))

    def state_dict(self, weights: np.ndarray) -> dict[str, Any]:
        """The model's state dict with these weights."""
        return dict(answer(self.team.workers[0].state_dict.remote(weights), "the model", self._patience))

    def run(self, journal: Journal, start: Checkpoint, hooks: Sequence[Hook] = ()) -> Outcome:
        """Go on after the checkpoint `start` until the last round; each committed record goes to every hook.

        Raises `FederationError` when the federation cannot go on; what is committed stays.
        """
        settings = self.experiment.federation
        weights = np.ascontiguousarray(start.arrays["weights"])
        states = {int(client): state for client, state in start.below("client").items()}
        setup(
            [self.team.coordinator],
            [self.experiment, self._samples, weights, {k: v for k, v in start.arrays.items() if _coordinators(k)}],
            "the coordinator to get ready",
            self._patience,
        )
        pending = start.pending
        for round in range(start.round + 1, settings.rounds + 1):
            began = time.perf_counter()
            weights_ref = ray.put(weights)
            evaluation: list[Any] = []
            for attempt in range(1, ATTEMPTS + 1):
                updates = self._train(round, weights_ref, states)
                trained = time.perf_counter()
                if pending is not None and not evaluation:
                    evaluation = self._ask_evaluation(weights_ref)
                if len(self._arrived(updates)) >= settings.quorum * settings.participants():
                    break
                if attempt == ATTEMPTS:
                    raise FederationError(
                        f"round {round}: {len(self._arrived(updates))} of {settings.participants()} updates arrived, "
                        f"below the quorum of {settings.quorum:g}, {ATTEMPTS} times"
                    )
            record, new_weights, arrays = self._aggregate(round, updates)
            states = states | updates.states
            records = [record]
            if pending is not None:
                records.append(self._evaluation(pending, weights_ref, evaluation)[0])
            due = round % self.experiment.evaluation.every == 0 or round == settings.rounds
            pending, weights = (round if due else None), new_weights
            record["seconds"] |= {"train": trained - began, "round": time.perf_counter() - began}
            checkpoint = Checkpoint(
                round, {"weights": weights, **arrays, **{f"client/{c}": s for c, s in sorted(states.items())}}, pending
            )
            self._commit(journal, records, checkpoint, hooks)
        weights_ref = ray.put(weights)
        last, probabilities = self._evaluation(settings.rounds, weights_ref, self._ask_evaluation(weights_ref))
        return Outcome(weights, last, probabilities)

    def _commit(self, journal: Journal, records: list[Record], checkpoint: Checkpoint, hooks: Sequence[Hook]) -> None:
        journal.commit(records, checkpoint)
        for record in records:
            for hook in hooks:
                hook(record)

    def _participants(self, round: int) -> list[int]:
        settings = self.experiment.federation
        draw = generator(self.experiment.seed, "participants", round)
        return sorted(draw.choice(settings.clients, settings.participants(), replace=False).tolist())

    def _crafting(self, client: int, round: int) -> bool:
        index = self._attackers.get(client)
        attack = None if index is None else self.experiment.attacks[index]
        return isinstance(attack, CraftedAttack) and attack.schedule.active(round)

    def _train(self, round: int, weights: Any, states: dict[int, np.ndarray]) -> _Updates:
        """Train this round's hospitals; an actor that dies is replaced and its hospitals are trained again."""
        shares = self._divide(self._participants(round))
        asked: dict[int, tuple[list[int], list[int], list[Any]]] = {}
        for index, clients in enumerate(shares):
            if clients:
                asked[index] = self._ask_training(index, clients, round, weights, states)
        deadline = self.experiment.federation.deadline
        done = _Updates([], [], {}, {}, [])
        if deadline is not None:
            ray.wait([references[2] for _, _, references in asked.values()], num_returns=len(asked), timeout=deadline)
        for index, (honest, crafting, references) in asked.items():
            for attempt in range(1, ATTEMPTS + 1):
                if deadline is not None and not ray.wait([references[2]], timeout=0)[0]:
                    done.late.extend(honest + crafting)
                    break
                try:
                    training: Training = answer(
                        references[2], f"round {round}: worker {index} to train", self._patience
                    )
                except RayActorError as error:
                    if attempt == ATTEMPTS:
                        raise FederationError(
                            f"round {round}: worker {index} died {ATTEMPTS} times: {error}"
                        ) from error
                    self._revive(index)
                    honest, crafting, references = self._ask_training(index, shares[index], round, weights, states)
                    if deadline is not None:
                        ray.wait([references[2]], timeout=deadline)
                    continue
                done.honest.append((honest, references[0]))
                done.crafting.append((crafting, references[1]))
                done.losses.update(training.losses)
                done.states.update(training.states)
                break
        return done

    def _divide(self, clients: list[int]) -> list[list[int]]:
        """Hospitals over workers, the most laborious first, each to the worker with the least to do."""
        local = self.experiment.learning.local
        labour = {client: local.steps_for(int(self._samples[client])) for client in clients}
        shares: list[list[int]] = [[] for _ in self.team.workers]
        load = [0] * len(shares)
        for client in sorted(clients, key=lambda client: (-labour[client], client)):
            least = load.index(min(load))
            shares[least].append(client)
            load[least] += labour[client]
        return [sorted(share) for share in shares]

    def _ask_training(
        self, index: int, clients: list[int], round: int, weights: Any, states: dict[int, np.ndarray]
    ) -> tuple[list[int], list[int], list[Any]]:
        crafting = [client for client in clients if self._crafting(client, round)]
        honest = [client for client in clients if client not in crafting]
        own = {client: states[client] for client in clients if client in states}
        train = self.team.workers[index].train.options(num_returns=3)
        return honest, crafting, train.remote(round, honest, crafting, weights, own)

    def _revive(self, index: int) -> None:
        actor = self.team.replace(index)
        setup([actor], self._client_setup, f"worker {index} to be replaced", self._patience)

    def _arrived(self, updates: _Updates) -> list[int]:
        return sorted(client for ids, _ in updates.honest + updates.crafting for client in ids)

    def _aggregate(self, round: int, updates: _Updates) -> tuple[Record, np.ndarray, dict[str, np.ndarray]]:
        """The adversary replaces its rows, the coordinator aggregates what then arrives."""
        blocks = [part for part in updates.honest if part[0]]
        own = [part for part in updates.crafting if part[0]]
        experiment = self.experiment
        malicious = attacking(experiment.attacks, self._attackers, self._arrived(updates), round)
        if own:
            crafted_ids = sorted(client for ids, _ in own for client in ids)
            parts = own + blocks
            ids, references = [part[0] for part in parts], [part[1] for part in parts]
            blocks = [*blocks, (crafted_ids, self.team.adversary.replace.remote(round, ids, crafted_ids, *references))]
        ids, references = [part[0] for part in blocks], [part[1] for part in blocks]
        reply = self.team.coordinator.aggregate.remote(round, ids, malicious, *references)
        try:
            record, weights, arrays = answer(reply, f"round {round}: the coordinator to aggregate", self._patience)
        except RayActorError as error:
            raise FederationError(
                f"round {round}: the coordinator or the adversary died; resume the run: {error}"
            ) from error
        record["train_loss"] = dict(sorted(updates.losses.items()))
        if updates.late:
            record["late"] = sorted(updates.late)
        return record, weights, arrays

    def _ask_evaluation(self, weights: Any) -> list[Any]:
        parts = len(self.team.workers)
        return [worker.evaluate.remote(weights, part, parts) for part, worker in enumerate(self.team.workers)]

    def _evaluation(self, round: int, weights: Any, asked: list[Any]) -> tuple[Record, np.ndarray]:
        """The record of a round's evaluation, and the probabilities of the test patches."""
        answers = []
        for part, reference in enumerate(asked):
            awaited = f"the evaluation of round {round} on worker {part}"
            try:
                answers.append(answer(reference, awaited, self._patience))
            except RayActorError:
                self._revive(part)
                again = self.team.workers[part].evaluate.remote(weights, part, len(asked))
                answers.append(answer(again, awaited, self._patience))
        found = {key: np.concatenate([part[key] for part in answers]) for key in answers[0]}
        return self._measure(round, found), found["clean"][len(self.hospitals.indices["validation"]) :]

    def _measure(self, round: int, found: dict[str, np.ndarray]) -> Record:
        from fedrobust.learning.evaluation import attack_success, confusion_matrix, hospital_accuracy, metrics

        own, validation = self.hospitals, len(self.hospitals.indices["validation"])
        figures: dict[str, float] = {}
        for name, probabilities in (("validation", found["clean"][:validation]), ("test", found["clean"][validation:])):
            positions = own.indices[name]
            if len(positions):
                values = metrics(probabilities, own.labels[positions], own.hospital[positions])
                figures |= {f"{name}/{metric}": value for metric, value in values.items()}
        test, clean = own.indices["test"], found["clean"][validation:]
        rates = []
        for index, attack in enumerate(self.experiment.attacks):
            if isinstance(attack, Backdoor):
                positions = triggered(attack, own.labels, test)
                before = clean[np.searchsorted(test, positions)].argmax(1)
                after = found[f"trigger/{index}"].argmax(1)
                rates.append(attack_success(before, after, own.labels[positions], attack.target))
        if rates:  # several backdoors: the one that succeeds best
            figures |= {f"attack/{name}": max(rate[name] for rate in rates) for name in rates[0]}
        return {
            "kind": "evaluation",
            "round": round,
            "metrics": figures,
            "hospitals": hospital_accuracy(clean, own.labels[test], own.hospital[test]),
            "confusion": confusion_matrix(clean, own.labels[test]).tolist(),
        }


def _coordinators(name: str) -> bool:
    return name != "weights" and not name.startswith("client/")
