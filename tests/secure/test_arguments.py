"""Everything that a party is asked with is checked: what is wrong is refused by a word, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hosted import OWNER

from fedrobust.federation.party_host import PartyHost
from fedrobust.secure.arguments import are_numbers, are_words, is_number
from fedrobust.secure.local import LocalParties
from fedrobust.secure.messages import MessageError, run_id, unpack
from fedrobust.secure.shares import Dealer, ShareServer
from fedrobust.secure.sharing import ReplicatedPrivacy, SecretSharing, SharesPrivacy
from fedrobust.secure.weights import OpeningError
from fedrobust.updates import Demand

RUN, D = run_id("arguments"), 50


def host(number: int | None, privacy: SecretSharing | None = None) -> PartyHost:
    found = PartyHost()
    found.setup(privacy or SharesPrivacy(sketch=None), 0, number, RUN, D, Demand(histories=("sum",)), 2, {}, OWNER)
    return found


def opened(name: str = "shares") -> LocalParties:
    """Servers that have opened the Gram matrix of four clients."""
    played = LocalParties(name, RUN, D, np.random.default_rng(3).bytes, histories=("sum",))  # type: ignore[arg-type]
    played.play(np.random.default_rng(4).normal(size=(4, D)), 1, 9.0)
    return played


def test_numbers_and_words() -> None:
    assert all(is_number(value) for value in (0, 5, np.int64(3), (1 << 63) - 1)) and is_number(4, 5)
    for value in (True, -1, 1 << 63, 1.0, "1", None, np.int64(-1), np.float64(1), np.zeros(2), [1]):
        assert not is_number(value)
    assert are_numbers([2, 0]) and are_numbers(()) and are_numbers(range(3), 3) and not are_numbers([0, 1], 1)
    for values in ([0, 0], [True, 0], [0, 1.0], "01", b"01", {0, 1}, None, 3, [[0]], np.arange(2)):
        assert not are_numbers(values)
    assert are_words(np.arange(3), 3)
    masked = np.ma.masked_array(np.full(3, 1 << 40), mask=True)
    for array in (masked, np.arange(3.0), np.arange(3, dtype=">i8"), np.zeros((3, 1), dtype=np.int64), [0, 1, 2]):
        assert not are_words(array, 3)


@pytest.mark.parametrize("data", [None, 3, "text", [b""], np.zeros(200, np.uint8)[::2]])
def test_what_has_no_bytes_is_no_message(data: object) -> None:
    with pytest.raises(MessageError, match="instead of bytes"):
        unpack(data)  # type: ignore[arg-type]


def test_a_difference_is_given_once_whatever_its_number_is_called() -> None:
    """True is 1 and 0.0 is 0 to a dictionary, but not in a label: a chunk could be added twice."""
    played = opened()
    server = played.servers[0]
    assert isinstance(server, ShareServer)
    for chunk in (False, 0.0, np.zeros(1), None, "0", -1, 1):
        with pytest.raises(OpeningError, match="none of the 1"):
            server.difference(chunk)  # type: ignore[arg-type]
    for same in (0, np.int64(0)):
        with pytest.raises(OpeningError, match="difference 0 is done"):
            server.difference(same)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["shares", "replicated"])
def test_words_that_hide_what_they_are_are_no_weights(name: str) -> None:
    """Of a masked array neither sum nor maximum shows what is hidden in it."""
    played = opened(name)
    hidden = np.ma.masked_array(np.full(D, 1 << 40), mask=True)
    for step, words in (("anchor_share", hidden), ("combine_share", hidden[:4]), ("combine_share", None)):
        with pytest.raises(OpeningError, match="as words"):
            played.ask(step, words)
    for rows, coefficients in (([0], hidden[:1]), ([True], np.ones(1, int)), (3, None), ([[0]], np.ones(1, int))):
        with pytest.raises(OpeningError, match="histories"):
            played.servers[0].remember(rows, coefficients)  # type: ignore[arg-type]
    for history, client in (([], 0), ("sum", "0"), ("sum", None), ("other", 0)):
        with pytest.raises(OpeningError, match=r"no history|a client is a number"):
            played.forget(history, client)  # type: ignore[arg-type]


@pytest.mark.parametrize("round, clients", [("1", [0]), (1 << 70, [0]), (5, None), (5, [[0]]), (5, ["a"]), (5, [1, 1])])
def test_a_round_that_cannot_be_does_not_begin(round: object, clients: object) -> None:
    server = opened().servers[0]
    with pytest.raises(OpeningError, match="number"):
        server.begin(round, clients)  # type: ignore[arg-type]
    assert server.round == 1
    server.begin(2, range(4))


def test_a_list_of_senders_that_was_damaged_can_come_again() -> None:
    played = LocalParties("shares", RUN, D)
    for server in played.servers:
        server.begin(1, range(3))
    for client in range(3):
        for server, data in zip(played.servers, played.sent(np.zeros(D, int), 1, client), strict=True):
            server.receive(data)
    first, second = played.servers
    for wrong in (b"", first.senders(), second.senders()[:-1] + b"x"):
        with pytest.raises(MessageError):
            first.agree([wrong])
    assert first.agree([second.senders()]) == (0, 1, 2)


def test_a_server_that_goes_on_after_a_round_has_nothing_of_a_later_one() -> None:
    """Else what it opens of the later round would be blinded as the earlier one was."""
    played = opened()
    server = played.servers[0]
    server.restore({"sum": {0: {}}}, 0, 0)
    for step in (
        server.check_share,
        server.senders,
        lambda: server.agree([]),
        lambda: server.combine_share(np.ones(4, int)),
    ):
        with pytest.raises(OpeningError, match=r"no round has begun|must come first"):
            step()
    with pytest.raises(OpeningError, match="no round"):
        host(0).agree(OWNER, b"")


def test_servers_that_have_not_met_seal_nothing() -> None:
    for number, step in ((0, lambda server: server.secrets()), (1, lambda server: server.links.sealed(0))):
        with pytest.raises(MessageError, match=f"server {number} .* server {1 - number}"):
            step(ShareServer(number, RUN, D))


ASKED: dict[str, tuple[int | None, Callable[[PartyHost], object], str]] = {
    "a step without its argument": (0, lambda party: party.ask(2, "difference"), "takes 1 arguments, found 0"),
    "a step with too many": (0, lambda party: party.ask(2, "check_share", 1), "takes 0 arguments, found 1"),
    "no name": (0, lambda party: party.ask(2, [], 1), "is no step"),  # type: ignore[arg-type]
    "an array as a round": (0, lambda party: party.ask(np.zeros(2), "check_share"), "is over"),  # type: ignore[arg-type]
    "an owner of another type": (0, lambda party: party.memory("o" * 16), "only who has set"),  # type: ignore[arg-type]
    "a triple of a server": (0, lambda party: party.triple(RUN, 3, 4, D), "is no dealer"),
    "histories of shares": (0, lambda party: party.reshared([b""]), "only servers of `replicated`"),
    "no list of histories": (0, lambda party: party.reshared(3), "only servers"),  # type: ignore[arg-type]
    "another run": (None, lambda party: party.triple("f" * 32, 3, 4, D), "in the run"),
    "no run": (None, lambda party: party.triple(np.zeros(3), 3, 4, D), "in the run"),  # type: ignore[arg-type]
    "other columns": (None, lambda party: party.triple(RUN, 3, 4, 1 << 60), "of 50 columns"),
    "too many rows": (None, lambda party: party.triple(RUN, 3, 1 << 20, D), "at most 32,768 rows"),
    "less than no rows": (None, lambda party: party.triple(RUN, 3, -1, D), "at most 32,768 rows"),
}


@pytest.mark.parametrize("what", ASKED)
def test_a_party_is_asked_for_what_cannot_be(what: str) -> None:
    number, step, why = ASKED[what]
    party = host(number)
    with pytest.raises(OpeningError, match=why):
        step(party)
    assert party.traffic()[1] == 0


def test_a_dealer_that_was_asked_for_nonsense_still_deals() -> None:
    dealer, played = Dealer(), LocalParties("shares", RUN, D)
    dealer.meet(RUN, [server.introduce() for server in played.servers])
    for rows in (-1, 1 << 20, None, 2.0, "4"):
        with pytest.raises(OpeningError, match="found 3"):
            dealer.triple(RUN, 3, rows, D)  # type: ignore[arg-type]
    dealer.triple(RUN, 3, 4, D)


def test_packets_that_are_none_cost_nobody_else_anything() -> None:
    played = LocalParties("replicated", RUN, D)
    party = host(0, ReplicatedPrivacy(sketch=None))
    party._party = played.servers[0]  # it has met the others
    good = [(c, np.frombuffer(played.sent(np.zeros(D, int), 3, c)[0], np.uint8)) for c in range(3)]
    packets = [[good[0], None, (1,), ("2", good[2][1]), (1, None), (2, np.zeros(3)), good[1]], None, 5, [good[2]]]
    senders, refused = party.receive(OWNER, 3, 3, [0, 1, 2], *packets)  # type: ignore[arg-type]
    assert sorted(refused) == [1, 2] and "instead of bytes" in refused[1]
    assert len(unpack(senders).body) == 1 + 3 * (8 + 64)  # who sent a good one after it is there
