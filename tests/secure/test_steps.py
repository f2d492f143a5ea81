"""What a coordinator can ask a server for at all: the steps of the protocol, and what only its owner may."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from wrapped import NAMES, D

from fedrobust.federation.party_host import STEPS, PartyHost
from fedrobust.secure import ReplicatedPrivacy, SharesPrivacy
from fedrobust.secure.messages import run_id
from fedrobust.secure.server import Server
from fedrobust.secure.weights import OpeningError
from fedrobust.updates import Demand

ASKED = Demand(frozenset({"gram"}), 2)


def hosts(name: str) -> Iterator[PartyHost]:
    privacy = (SharesPrivacy if name == "shares" else ReplicatedPrivacy)(max_functionals=9, sketch=None)
    for number in range(privacy.servers):
        host = PartyHost()
        host.setup(privacy, 1, number, run_id("a run"), D, ASKED, -1, {}, b"o" * 16)
        yield host


@pytest.mark.parametrize("name", NAMES)
def test_a_server_answers_to_the_steps_of_the_protocol_and_to_nothing_else(name: str) -> None:
    for host in hosts(name):
        for method, arguments in {
            "stack": (),
            "_whole": (b"",),
            "memory": (),
            "restore": ({}, 0, 0),
            "__setattr__": ("min_support", 0.0),
            "__getattribute__": ("links",),
            "links": (),
            "begin": (5, [0]),
            "receive": (b"",),
            "agree": ([],),
            "keep": ({},),
            "recall": ({},),
            "ledger": (),
            "introduce": (),
            "meet": ([],),
            "secrets": (),
            "__class__": (),
            "__reduce__": (),
            "nothing": (),
        }.items():
            with pytest.raises(OpeningError, match="is no step"):
                host.ask(-1, method, *arguments)
        assert {name for name in STEPS if callable(getattr(Server, name, None)) or not name.startswith("_")} == STEPS
        for method in STEPS:
            with pytest.raises(OpeningError):
                host.ask(4, method)


@pytest.mark.parametrize("name", NAMES)
def test_only_its_owner_sets_a_server_up_again_and_sees_what_it_remembers(name: str) -> None:
    for number, host in enumerate(hosts(name)):
        for call in (host.memory, host.introduce, host.secrets):
            with pytest.raises(OpeningError, match="party"):
                call(b"x" * 16)
        privacy = (SharesPrivacy if name == "shares" else ReplicatedPrivacy)(min_support=1.0)
        with pytest.raises(OpeningError, match="party"):
            host.setup(privacy, 1, number, run_id("a run"), D, ASKED, -1, {}, b"x" * 16)
        with pytest.raises(OpeningError, match="party"):
            host.meet(b"", b"")
        server = host._party
        assert isinstance(server, Server) and server.min_support == 3.0
        server.functionals = 6
        host.setup(
            privacy,
            1,
            number,
            run_id("a run"),
            D,
            Demand(frozenset({"gram"}), 2),
            -1,
            {"functionals": np.array(2)},
            b"o" * 16,
        )
        assert host._party is server and server.functionals == 6 and server.min_support == 3.0
        # Nor by way of another run, and back.
        with pytest.raises(OpeningError, match="party"):
            host.setup(privacy, 1, number, run_id("another run"), D, ASKED, -1, {}, b"x" * 16)
        with pytest.raises(OpeningError, match="party"):
            host.receive(b"x" * 16, 5, 5, [0, 1, 2])
        with pytest.raises(OpeningError, match="party"):
            host.agree(b"x" * 16)
        host.setup(privacy, 1, number, run_id("another run"), D, ASKED, -1, {}, b"o" * 16)
        assert host._party is not server
