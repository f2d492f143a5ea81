"""What servers have in common: keys that they agree on by X25519, so that who passes their messages on knows none.

Each pair has a seed for each direction, and all have one for sketches, which server 0 draws and seals for the others.
Nobody vouches for the public keys here: who can exchange them on their way can stand between two servers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

from fedrobust.secure.messages import MessageError
from fedrobust.secure.ring import SEED_BYTES, Words, derived, expand

SEALED_BYTES = SEED_BYTES + 16
INTRODUCTION_BYTES = 64
"""A public key, and a number that is used in one meeting."""


def sealed_for(introduction: bytes, plain: bytes) -> bytes:
    """What only the server with this introduction can open: a fresh X25519 key (32 bytes), and the sealed text.

    MessageError for a public key that is none.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    own = X25519PrivateKey.generate()
    try:
        common = own.exchange(X25519PublicKey.from_public_bytes(introduction[:32]))
    except ValueError:
        raise MessageError("a server's public key is none, or of small order") from None
    fresh = own.public_key().public_bytes_raw()
    return fresh + ChaCha20Poly1305(derived(common, f"for {fresh.hex()}")).encrypt(bytes(12), plain, None)


class Links:
    """The secrets of server `number` of so many; all of them come from `own` (32 bytes) and the others' public keys."""

    def __init__(self, number: int, parties: int, own: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        self.own, self.noise = own, derived(own, "noise")
        """All that it needs to be started again; what it adds to what is opened comes from the second."""
        self._number, self._parties = number, parties
        self._key = X25519PrivateKey.from_private_bytes(derived(own, "key"))
        self._common: dict[int, bytes] = {}
        self._nonce = b""
        self.session = b""
        """What all servers have in common since they met, and never had before: messages may be numbered anew."""
        self.sketch = derived(own, "sketch") if number == 0 else b""
        """The secret that the sketches of all rounds come from."""

    def introduction(self) -> bytes:
        """Its public key, and a fresh number."""
        self._nonce = os.urandom(32)
        return self._key.public_key().public_bytes_raw() + self._nonce

    @property
    def ready(self) -> bool:
        """Whether it has met all others, and knows the secret of the sketches."""
        return bool(self.sketch) and len(self._common) == self._parties - 1

    def meet(self, introductions: Mapping[int, bytes]) -> None:
        """Agree with each of the other servers, after its own `introduction`. MessageError for a key that is none."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

        try:
            self._common = {
                other: self._key.exchange(X25519PublicKey.from_public_bytes(data[:32]))
                for other, data in introductions.items()
            }
        except ValueError:
            raise MessageError("a server's public key is none, or of small order") from None
        nonces = {other: data[32:] for other, data in introductions.items()} | {self._number: self._nonce}
        self.session = hashlib.sha256(b"".join(nonces[number] for number in sorted(nonces))).digest()

    def edge(self, sender: int, receiver: int) -> bytes:
        """The seed (32 bytes) that two servers, of which it is one, have for one direction. MessageError if they have
        not met."""
        other = receiver if sender == self._number else sender
        if other not in self._common:
            raise MessageError(f"server {self._number} has no key of server {other}")
        return derived(self._common[other], f"from {sender} to {receiver}")

    def session_edge(self, sender: int, receiver: int) -> bytes:
        """The same, for this session alone."""
        return derived(self.edge(sender, receiver), f"session {self.session.hex()}")

    def zeros(self, count: int, label: str) -> Words:
        """Its share of `count` zeros: uniform, and together with those of the other servers zero."""
        after, before = ((self._number + step) % self._parties for step in (1, -1))
        given, got = self.session_edge(self._number, after), self.session_edge(before, self._number)
        return expand(derived(got, label), count) - expand(derived(given, label), count)

    def drawn(self, count: int, label: str, bits: int) -> Words:
        """Noise that nobody else knows: uniform from −2^bits to 2^bits − 1, for each label another one."""
        found = expand(derived(self.noise, label), count)
        found &= (2 << bits) - 1
        found -= 1 << bits
        return found

    def sealed(self, receiver: int) -> bytes:
        """The secret of the sketches for another server: by server 0."""
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        # One key for one text, so the nonce may be the same.
        key = derived(self.edge(0, receiver), "sealed sketch")
        return ChaCha20Poly1305(key).encrypt(bytes(12), self.sketch, None)

    def unsealed(self, data: bytes) -> bytes:
        """What was sealed for it by `sealed_for`. MessageError if it was not."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        try:
            common = self._key.exchange(X25519PublicKey.from_public_bytes(data[:32]))
            return ChaCha20Poly1305(derived(common, f"for {data[:32].hex()}")).decrypt(bytes(12), data[32:], None)
        except (ValueError, InvalidTag):
            raise MessageError(f"it was not sealed for server {self._number}") from None

    def learn(self, sealed: bytes) -> None:
        """Take the secret of the sketches from server 0. MessageError if it is not from there."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        try:
            key = derived(self.edge(0, self._number), "sealed sketch")
            self.sketch = ChaCha20Poly1305(key).decrypt(bytes(12), sealed, None)
        except InvalidTag:
            raise MessageError("the secret of the sketches was not sealed by server 0") from None
