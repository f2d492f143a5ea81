"""A round of Flower's SecAgg+: its own client mod and server workflow, with a wire between them that counts bytes.

What a Flower round does beside secure aggregation (choosing clients, training, the strategy's mean) is left out.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import flwr
import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.compat.common import recorddict_compat
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.supercore.task_identity import TaskIdentity
from metered import CLIP, HaltedError, Meter, Rows, check

VERSION: str = flwr.__version__
STAGES = ("setup_stage", "share_keys_stage", "collect_masked_vectors_stage", "unmask_stage")

logging.getLogger("flwr").setLevel(logging.CRITICAL)
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1  # messages are made in some task's name


class Grid:
    """Flower's way to the clients, with all of them here; those in `gone` answer no call for a masked update."""

    def __init__(self, rows: Rows, gone: Collection[int], meter: Meter) -> None:
        self._rows, self._gone, self._meter, self._calls = rows, gone, meter, 0
        self._contexts = {
            node: Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
            for node in range(1, rows.n + 1)
        }

    def send_and_receive(self, messages: Iterable[Message], timeout: float | None = None) -> list[Message]:
        """The replies, made one after the other."""
        with self._meter.of(None):
            self._calls += 1
            return [self._asked(message) for message in messages]

    def _asked(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        message = self._carried(message, "server", "client")
        if self._calls > 2 and node - 1 in self._gone:
            return Message(Error(ErrorCode.NODE_UNAVAILABLE), reply_to=message)
        with self._meter.of("client", STAGES[self._calls - 1]):
            reply = secaggplus_mod(message, self._contexts[node], self._trained)
        return self._carried(reply, "client", "server")

    def _trained(self, message: Message, context: Context) -> Message:
        with self._meter.of(None):
            parameters = ndarrays_to_parameters([self._rows[context.node_id - 1]])
            result = FitRes(Status(Code.OK, ""), parameters, num_examples=1, metrics={})
            return Message(recorddict_compat.fitres_to_recorddict(result, False), reply_to=message)

    def _carried(self, message: Message, sender: str, receiver: str) -> Message:
        """The same message with what its bytes say."""
        proto = recorddict_to_proto(message.content)
        data = proto.SerializeToString()
        self._meter.carry(len(data), sender, [receiver])
        message.content = recorddict_from_proto(type(proto).FromString(data))
        return message


class Strategy:
    """Asks everybody, and keeps what the workflow found."""

    def __init__(self, n: int, meter: Meter) -> None:
        self._n, self._meter = n, meter
        self.mean: np.ndarray | None = None

    def configure_fit(self, server_round: int, parameters: Parameters, client_manager: Any) -> list[tuple[Any, FitIns]]:
        return [(SimpleNamespace(node_id=node), FitIns(parameters, {})) for node in range(1, self._n + 1)]

    def aggregate_fit(self, server_round: int, results: list[tuple[Any, FitRes]], failures: Any) -> tuple[None, dict]:
        with self._meter.of(None):
            (self.mean,) = parameters_to_ndarrays(results[0][1].parameters)
        return None, {}


def flower_round(rows: Rows, neighbours: int, threshold: int, gone: Collection[int], meter: Meter) -> None:
    """A round of clients with so many neighbours each; `gone` drop out after they have sent shares of their keys."""
    strategy = Strategy(rows.n, meter)
    server = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    context = LegacyContext(server, strategy=strategy)  # type: ignore[arg-type]
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    empty = recorddict_compat.parameters_to_arrayrecord(Parameters([], "numpy.ndarray"), True)
    context.state.array_records[MAIN_PARAMS_RECORD] = empty
    # A client keeps a share of its own, so k neighbours make k + 1 shares. All weights are the largest one.
    workflow = SecAggPlusWorkflow(neighbours + 1, threshold, max_weight=1.0, clipping_range=CLIP)
    meter.watch("server", workflow, STAGES)
    workflow(Grid(rows, gone, meter), context)  # type: ignore[arg-type]
    if strategy.mean is None:
        raise HaltedError("too few neighbours of some client were left")
    there = [client for client in range(rows.n) if client not in gone]
    check(strategy.mean, rows.expected(dict.fromkeys(there, 1 / len(there)), clip=np.inf), 1e-2)
