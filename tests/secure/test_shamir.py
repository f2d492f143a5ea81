"""Shamir's shares: from any t of them the secret, from fewer nothing; a few wrong ones are found and named."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import shamirs
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrobust.secure import shamir
from fedrobust.secure.shamir import FIELD, SHARE_BYTES, ShareError, join, recover, split

SECRETS = st.binary(min_size=32, max_size=32)


def numbered(shares):
    return dict(enumerate(shares, start=1))


@settings(max_examples=60, deadline=None)
@given(secret=SECRETS, count=st.integers(2, 20), data=st.data())
def test_any_threshold_of_shares_gives_the_secret(secret, count, data):
    threshold = data.draw(st.integers(2, count))
    shares = numbered(split(secret, count, threshold))
    chosen = data.draw(st.permutations(sorted(shares)))[:threshold]
    assert join({person: shares[person] for person in chosen}, threshold) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, (297).to_bytes(32, "little")])
def test_the_ends_of_the_field(secret):
    assert join(numbered(split(secret, 5, 3)), 3) == secret


@settings(max_examples=20, deadline=None)
@given(secret=SECRETS, data=st.data())
def test_putting_together_agrees_with_the_library(secret, data):
    shares = numbered(split(secret, 9, 5))
    chosen = sorted(data.draw(st.sets(st.sampled_from(sorted(shares)), min_size=5, max_size=5)))
    points = [shamirs.share(person, int.from_bytes(shares[person], "little"), FIELD) for person in chosen]
    assert shamirs.interpolate(points) == int.from_bytes(join({p: shares[p] for p in chosen}, 5), "little")


def test_a_polynomial_by_hand():
    # f(x) = 7 + 3 x: f(1) = 10, f(4) = 19
    shares = {1: (10).to_bytes(SHARE_BYTES, "little"), 4: (19).to_bytes(SHARE_BYTES, "little")}
    assert join(shares, 2) == (7).to_bytes(32, "little")


def test_fewer_than_the_threshold_fit_every_secret(monkeypatch):
    # In a field of 11 elements each secret goes with each pair of shares in as many polynomials of degree 2.
    monkeypatch.setattr(shamir, "FIELD", 11)
    seen = {0: Counter(), 10: Counter()}
    for secret, pairs in seen.items():
        for one in range(11):
            for two in range(11):
                drawn = iter((one, two))
                monkeypatch.setattr("secrets.randbelow", lambda limit, drawn=drawn: next(drawn))
                shares = split(secret.to_bytes(32, "little"), 4, 3)
                pairs[shares[1], shares[3]] += 1
    assert seen[0] == seen[10]
    assert set(seen[0].values()) == {1}
    assert len(seen[0]) == 121


def test_the_coefficients_are_fresh_and_span_the_field():
    shares = [split(bytes(32), 3, 2)[0] for _ in range(50)]
    assert len(set(shares)) == 50
    assert max(int.from_bytes(share, "little") for share in shares).bit_length() > 250


@pytest.mark.parametrize("left", [0, 1, 3])
def test_too_few_shares_are_refused(left):
    shares = numbered(split(b"s" * 32, 6, 4)[:left])
    for call in (lambda: join(shares, 4), lambda: recover(shares, 4, lambda secret: True)):
        with pytest.raises(ShareError, match=f"{left} shares .* 4"):
            call()


@pytest.mark.parametrize("share", [b"", bytes(32), bytes(34), b"\xff" * 33])
def test_what_is_no_element_of_the_field_is_refused(share):
    shares = numbered(split(b"s" * 32, 3, 3)) | {2: share}
    with pytest.raises(ShareError, match="share 2"):
        join(shares, 3)


def test_a_result_above_32_bytes_is_refused():
    too_large = (2**256 + 5).to_bytes(SHARE_BYTES, "little")  # the constant polynomial 2^256 + 5
    with pytest.raises(ShareError, match="together"):
        join({1: too_large, 2: too_large}, 2)


@settings(max_examples=30, deadline=None)
@given(wrong=st.sets(st.integers(1, 9), max_size=2), seed=st.integers(0, 1000))
def test_one_wrong_share_among_nine_is_named(wrong, seed):
    rng = random.Random(seed)
    secret = rng.randbytes(32)
    shares = numbered(split(secret, 9, 6))
    for person in wrong:
        shares[person] = rng.randbytes(32) + b"\0"
    # One is within the radius ⌊(9 − 6) / 2⌋; of two it may only be said that something is wrong.
    if len(wrong) < 2:
        assert recover(shares, 6, lambda found: found == secret) == (secret, wrong)
    else:
        with pytest.raises(ShareError, match="up to 1"):
            recover(shares, 6, lambda found: found == secret)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), threshold=st.integers(2, 12), spare=st.integers(0, 9), seed=st.integers(0, 1000))
def test_up_to_half_of_the_spare_shares_may_be_wrong_wherever_they_are(data, threshold, spare, seed):
    rng = random.Random(seed)
    secret, count = rng.randbytes(32), threshold + spare
    shares = numbered(split(secret, count + 3, threshold))
    here = rng.sample(sorted(shares), count)  # some have not come back
    wrong = data.draw(st.sets(st.sampled_from(here), max_size=spare // 2))
    kind = data.draw(st.sampled_from(["random", "one off", "of another secret", "no element"]))
    other = numbered(split(rng.randbytes(32), count + 3, threshold))
    for person in wrong:
        value = int.from_bytes(shares[person], "little")
        shares[person] = {
            "random": rng.randbytes(32) + b"\0",
            "one off": ((value + 1) % FIELD).to_bytes(SHARE_BYTES, "little"),
            "of another secret": other[person],
            "no element": b"\xff" * SHARE_BYTES,
        }[kind]
    found = recover({person: shares[person] for person in here}, threshold, lambda found: found == secret)
    assert found == (secret, wrong)


def test_three_wrong_shares_among_sixty_are_decoded_and_not_searched_for():
    secret, attempts = b"s" * 32, []
    for wrong in ({1, 2, 3}, {20, 33, 47}, {58, 59, 60}):
        shares = numbered(split(secret, 60, 41))
        shares |= dict.fromkeys(wrong, b"\x07" * 32 + b"\x00")
        assert recover(shares, 41, lambda found: attempts.append(found) or found == secret) == (secret, wrong)
    assert len(attempts) <= 6  # the polynomial through all shares, and the one that is decoded


def test_errors_that_cancel_in_the_secret_do_no_harm():
    shares = numbered(split(b"s" * 32, 9, 5))
    factors = shamir._factors(tuple(shares))
    for person, error in ((2, factors[2]), (3, FIELD - factors[1])):
        value = (int.from_bytes(shares[person], "little") + error) % FIELD
        shares[person] = value.to_bytes(SHARE_BYTES, "little")
    assert recover(shares, 5, lambda found: found == b"s" * 32)[0] == b"s" * 32


def test_shares_that_fit_together_and_give_another_secret_are_refused():
    shares = numbered(split(b"t" * 32, 9, 5))
    with pytest.raises(ShareError, match="promised"):
        recover(shares, 5, lambda found: found == b"s" * 32)


def test_more_wrong_shares_than_spare_ones_give_nothing():
    shares = numbered(split(b"s" * 32, 5, 4))
    other = split(b"s" * 32, 5, 4)
    shares |= {1: other[0], 2: other[1]}
    with pytest.raises(ShareError, match=r"5 shares, 4 .* 0 "):
        recover(shares, 4, lambda found: found == b"s" * 32)


@pytest.mark.parametrize(("secret", "count", "threshold"), [(b"s" * 31, 3, 2), (b"s" * 33, 3, 2), (b"s" * 32, 3, 4)])
def test_impossible_sharings_are_refused(secret, count, threshold):
    with pytest.raises(ValueError, match=r"32 bytes|threshold"):
        split(secret, count, threshold)


def test_a_threshold_of_one_is_refused():
    with pytest.raises(ValueError, match=r"threshold .* 2"):  # each share would be the secret
        split(b"s" * 32, 3, 1)
