"""Where the parties of a simulation take their secrets from: the system, or the experiment's seed."""

from __future__ import annotations

import hashlib
import os
from typing import Literal

from fedrobust.secure.ring import Entropy

Randomness = Literal["seed", "system"]


def entropy(randomness: Randomness, seed: int, *path: int | str) -> Entropy:
    """The system's source of random bytes, or the stream that the seed gives at this path (AES-256 in counter mode).

    randomness: which of the two.
    seed: the experiment's.
    path: names the use.

    Everybody who knows the seed knows the stream: it makes runs that can be repeated, and protects nobody.
    """
    if randomness == "system":
        return os.urandom
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = hashlib.sha256("/".join(map(str, ("fedrobust secrets", seed, *path))).encode()).digest()
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    return lambda count: encryptor.update(bytes(count))
