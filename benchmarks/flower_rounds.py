"""The round of peers.py in Flower's simulation: a ClientApp on two Ray actors, a FedAvg strategy in the ServerApp."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from rounds import CLIENTS, PER_CLIENT, PROCESSES, STEPS, network, patches, step

client_app, server_app = ClientApp(), ServerApp()
began: list[float] = []
plan: dict[str, int] = {}
held: dict[int, Any] = {}
"""The data of each client that this process has trained."""


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """A client's answer to the global model: its own model after the local steps."""
    client = int(context.node_config["partition-id"])
    torch.set_num_threads(1)
    if client not in held:
        held[client] = patches(1, client)
    (images,), (labels,), draw = held[client]
    model = network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(STEPS):
        step(model, optimizer, images, labels, draw)
    metrics = MetricRecord({"num-examples": PER_CLIENT})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


class Timed(FedAvg):
    """FedAvg that notes when each round begins."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        began.append(time.perf_counter())
        return super().configure_train(server_round, arrays, config, grid)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds."""
    strategy = Timed(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=CLIENTS)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(network().state_dict()), num_rounds=plan["rounds"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--answer", type=Path, required=True)
    arguments = parser.parse_args()
    plan["rounds"] = arguments.rounds
    logging.getLogger("flwr").setLevel(logging.ERROR)
    import flower_rounds  # the app by its module's name: then Ray's workers import it, and keep the data

    flower_rounds.plan.update(plan)
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": PROCESSES}}
    run_simulation(flower_rounds.server_app, flower_rounds.client_app, CLIENTS, backend_config=resources)
    seconds = [late - early for early, late in itertools.pairwise(flower_rounds.began)]
    arguments.answer.write_text(json.dumps(seconds))
