"""Shamir's secret sharing of 32-byte secrets.

A. Shamir, How to share a secret, CACM 1979: the secret is f(0) of a random polynomial f of degree t − 1 over a prime
field, the share of person x is f(x). Any t shares give f(0) = Σ_i f(x_i) Π_{j≠i} x_j / (x_j − x_i); t − 1 of them are
independent of it.

The polynomials are made by `shamirs`, whose coefficients come from the operating system, never from a seed: a secret
that is put together again does not depend on them, so a run is reproducible all the same. Putting together takes no
secret choice. `shamirs` inverts each of the t² differences by an exponentiation (77 ms for t = 33). Here t products are
inverted (0.3 ms), once for all secrets of which the same persons have shares; a test compares the two.

Shares of one polynomial are a word of a Reed-Solomon code (R. J. McEliece and D. V. Sarwate, On sharing secrets and
Reed-Solomon codes, CACM 1981): of m shares ⌊(m − t) / 2⌋ wrong ones can be found, whatever they are, by a decoder in
place of a search. S. Gao's (A new algorithm for decoding Reed-Solomon codes, 2003) is the extended Euclidean algorithm
on two polynomials; where there is an answer, it is that of Berlekamp and Welch. `sympy` has the arithmetic. `galois`
would look for a generator of this field first, and so for the factors of a number of 257 bits: it was not done after
two minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from math import prod

from fedrobust.errors import FedRobustError

FIELD = 2**256 + 297
"""The smallest prime above 2^256: every 32-byte secret is one element."""
SECRET_BYTES = 32
SHARE_BYTES = 33
LARGEST = 1 << 8 * SECRET_BYTES
"""Secrets are elements below this."""


class ShareError(FedRobustError):
    """Shares that do not give the secret: too few, of a wrong form, or wrong."""


def split(secret: bytes, count: int, threshold: int) -> list[bytes]:
    """Cut a secret into shares.

    secret: 32 bytes.
    count: how many shares.
    threshold: any this many shares give the secret.

    Returns the shares (33 bytes each) of persons 1, 2, …
    """
    import shamirs

    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, found {len(secret)}")
    if not 2 <= threshold <= count:
        raise ValueError(f"the threshold must be from 2 to the number of shares {count}, found {threshold}")
    value = int.from_bytes(secret, "little")
    shares = shamirs.shares(value, quantity=count, modulus=FIELD, threshold=threshold, compact=True)
    return [share.value.to_bytes(SHARE_BYTES, "little") for share in shares]


def is_share(share: bytes) -> bool:
    """Whether these bytes are an element of the field."""
    return len(share) == SHARE_BYTES and int.from_bytes(share, "little") < FIELD


def join(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret (32 bytes) from all these shares, if none of them is wrong.

    shares: person → share.
    threshold: as in `split`.

    Raises `ShareError` if there are too few.
    """
    constant = _constant(_elements(shares, threshold))
    if constant >= LARGEST:
        raise ShareError("the shares do not belong together")
    return constant.to_bytes(SECRET_BYTES, "little")


def recover(
    shares: Mapping[int, bytes], threshold: int, right: Callable[[bytes], bool]
) -> tuple[bytes, frozenset[int]]:
    """The secret that is `right`, and the persons whose shares are wrong.

    shares: person → share. Those that are no elements of the field are left out.
    threshold: as in `split`.
    right: whether a secret is the expected one.

    Of m shares, up to ⌊(m − threshold) / 2⌋ may be wrong. With more wrong ones the right ones are not searched for.
    Wrong shares whose errors cancel in the secret do no harm, and are not named.

    Raises `ShareError` for too few shares, and for too many wrong ones.
    """
    foreign = frozenset(person for person, share in shares.items() if not is_share(share))
    values = _elements({person: share for person, share in shares.items() if person not in foreign}, threshold)
    for constant, wrong in _candidates(values, threshold):
        if constant < LARGEST and right(secret := constant.to_bytes(SECRET_BYTES, "little")):
            return secret, foreign | wrong
    raise ShareError(
        f"wrong shares: of {len(values)} shares, {threshold} of which are needed, up to "
        f"{(len(values) - threshold) // 2} may be wrong; here more are, or the secret is not the one that was promised"
    )


def _elements(shares: Mapping[int, bytes], threshold: int) -> dict[int, int]:
    """Person → share as a number, by ascending person."""
    if len(shares) < threshold:
        raise ShareError(f"{len(shares)} shares where {threshold} are needed")
    for person in sorted(shares):
        if not is_share(shares[person]):
            raise ShareError(f"share {person} is no element of the field")
    return {person: int.from_bytes(shares[person], "little") for person in sorted(shares)}


def _candidates(values: Mapping[int, int], threshold: int) -> Iterator[tuple[int, frozenset[int]]]:
    """Candidates for f(0), with the persons whose shares would be wrong: first none, then the result of a search for
    some."""
    yield _constant(values), frozenset()
    if (found := _decoded(values, threshold)) is not None:
        yield found


def _constant(values: Mapping[int, int]) -> int:
    """f(0) of the polynomial through all these points."""
    factors = _factors(tuple(values))
    return sum(value * factor for value, factor in zip(values.values(), factors, strict=True)) % FIELD


@lru_cache(maxsize=128)
def _factors(persons: tuple[int, ...]) -> tuple[int, ...]:
    """The factor of each person's share in the sum that is the secret."""
    found = []
    for person in persons:
        others = [other for other in persons if other != person]
        below = prod(other - person for other in others)
        found.append(prod(others) * pow(below, -1, FIELD) % FIELD)
    return tuple(found)


def _decoded(values: Mapping[int, int], threshold: int) -> tuple[int, frozenset[int]] | None:
    """f(0) and the persons that are not on f, the polynomial of degree below t through all but ⌊(m − t) / 2⌋ points;
    None if there is none.

    Gao: with g_0 = Π (X − x_i) and g_1 the polynomial through all m points, Euclid's algorithm is run until the
    remainder g = u g_0 + v g_1 has a degree below (m + t) / 2; then f = g / v.
    """
    from sympy import ZZ
    from sympy.polys.galoistools import gf_add, gf_degree, gf_div, gf_eval, gf_mul, gf_mul_ground, gf_quo, gf_sub

    roots = {person: [ZZ(1), ZZ(FIELD - person)] for person in values}
    whole = [ZZ(1)]
    for root in roots.values():
        whole = gf_mul(whole, root, FIELD, ZZ)
    through: list[int] = []
    for person, value in values.items():
        basis = gf_quo(whole, roots[person], FIELD, ZZ)
        scale = value * pow(int(gf_eval(basis, person, FIELD, ZZ)), -1, FIELD) % FIELD
        through = gf_add(through, gf_mul_ground(basis, ZZ(scale), FIELD, ZZ), FIELD, ZZ)
    before, rest, v_before, v = whole, through, [], [ZZ(1)]
    while 2 * gf_degree(rest) >= len(values) + threshold:
        quotient, remainder = gf_div(before, rest, FIELD, ZZ)
        before, rest = rest, remainder
        v_before, v = v, gf_sub(v_before, gf_mul(quotient, v, FIELD, ZZ), FIELD, ZZ)
    f, left = gf_div(rest, v, FIELD, ZZ)
    if left or gf_degree(f) >= threshold:
        return None
    wrong = frozenset(person for person, value in values.items() if gf_eval(f, person, FIELD, ZZ) != value)
    return int(gf_eval(f, 0, FIELD, ZZ)), wrong
