"""Shamir's secret sharing of 32-byte secrets.

A. Shamir, How to share a secret, CACM 1979: the secret is f(0) of a random polynomial f of degree t − 1 over a prime
field, the share of person x is f(x). Any t shares give f(0) = Σ_i f(x_i) Π_{j≠i} x_j / (x_j − x_i); t − 1 of them are
independent of it.

The polynomials are made by `shamirs`, whose coefficients come from the operating system, never from a seed: a secret
that is put together again does not depend on them, so a run is reproducible all the same. Putting together takes no
secret choice. `shamirs` inverts each of the t² differences by an exponentiation (77 ms for t = 33), here t products are
inverted (0.3 ms); a test holds one to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations, islice
from math import prod

from fedrobust.errors import FedRobustError

FIELD = 2**256 + 297
"""The smallest prime above 2^256: every 32-byte secret is one element."""
SECRET_BYTES = 32
SHARE_BYTES = 33
ATTEMPTS = 1000
"""So many choices of shares are tried at most, where some are wrong."""


class ShareError(FedRobustError):
    """Shares that do not give the secret: too few, of a wrong form, or wrong."""


def split(secret: bytes, count: int, threshold: int) -> list[bytes]:
    """`count` shares (33 bytes each), of persons 1, 2, …, any `threshold` of which give the secret (32 bytes)."""
    import shamirs

    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, found {len(secret)}")
    if not 2 <= threshold <= count:
        raise ValueError(f"the threshold must be from 2 to the number of shares {count}, found {threshold}")
    value = int.from_bytes(secret, "little")
    shares = shamirs.shares(value, quantity=count, modulus=FIELD, threshold=threshold, compact=True)
    return [share.value.to_bytes(SHARE_BYTES, "little") for share in shares]


def join(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret from the shares of `threshold` persons, those of lowest number; ShareError if there are fewer."""
    if len(shares) < threshold:
        raise ShareError(f"{len(shares)} shares where {threshold} are needed")
    chosen = sorted(shares)[:threshold]
    total = 0
    for person in chosen:
        value = int.from_bytes(shares[person], "little")
        if len(shares[person]) != SHARE_BYTES or value >= FIELD:
            raise ShareError(f"share {person} is no element of the field")
        others = [other for other in chosen if other != person]
        below = prod(other - person for other in others)
        total += value * prod(others) * pow(below, -1, FIELD)
    total %= FIELD
    if total >= 1 << 8 * SECRET_BYTES:
        raise ShareError("the shares do not belong together")
    return total.to_bytes(SECRET_BYTES, "little")


def recover(shares: Mapping[int, bytes], threshold: int, right: Callable[[bytes], bool]) -> bytes:
    """The secret that is `right`, although a few of the shares may be wrong: they are left out, as few as possible.

    One wrong share among m is found in m + 1 attempts at most. ShareError if there are too few or `ATTEMPTS` fail.
    """
    spare = len(shares) - threshold
    if spare < 0:
        raise ShareError(f"{len(shares)} shares where {threshold} are needed")
    without = (set(left_out) for size in range(spare + 1) for left_out in combinations(sorted(shares), size))
    for left_out in islice(without, ATTEMPTS):
        try:
            secret = join({person: share for person, share in shares.items() if person not in left_out}, threshold)
        except ShareError:
            continue
        if right(secret):
            return secret
    raise ShareError(f"wrong shares: no {threshold} of {len(shares)} give the secret that was promised")
