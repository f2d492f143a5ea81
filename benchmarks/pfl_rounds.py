"""The round of peers.py in pfl-research: FederatedAveraging on a SimulatedBackend, in the processes of torchrun."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from rounds import BATCH, CLIENTS, STEPS, network, patches, pixels
from torch import Tensor, nn


class Net(nn.Module):
    """The network, with the loss and the metrics that pfl asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of a batch of uint8 images."""
        return nn.functional.cross_entropy(self.layers(pixels(images)), labels)

    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """None: nothing is evaluated."""
        return {}


class Clock(TrainingProcessCallback):
    """Notes when each round ends."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.ended.append(time.perf_counter())
        return False, Metrics()


def main() -> None:
    """All rounds; the first process writes the answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--answer", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    np.random.seed(0)  # noqa: NPY002 – pfl draws from it, and its processes must draw the same
    torch.manual_seed(0)
    images, labels, _ = patches(CLIENTS, 0)
    users = [Dataset(raw_data=[images[user], labels[user]], user_id=str(user)) for user in range(CLIENTS)]
    data = FederatedDataset(lambda user: users[user], get_user_sampler("minimize_reuse", list(range(CLIENTS))))
    net = Net()
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))
    clock = Clock()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=arguments.rounds + 1,
            evaluation_frequency=arguments.rounds + 2,
            train_cohort_size=CLIENTS,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(training_data=data, val_data=data),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=None, local_num_steps=STEPS, local_learning_rate=0.05, local_batch_size=BATCH
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=BATCH),
        callbacks=[clock],
    )
    if os.environ.get("RANK", "0") == "0":
        seconds = [late - early for early, late in itertools.pairwise(clock.ended)]
        arguments.answer.write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
