"""Secrets that servers share: keys that they agree on by X25519, unknown to the party that passes on their messages.

Each pair has a seed for each direction. All have one secret for sketches, which server 0 draws and seals for the
others. Nobody vouches for the public keys here: an attacker that can exchange them on their way can stand between two
servers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

from fedrobust.secure.messages import MessageError
from fedrobust.secure.ring import SEED_BYTES, Words, derived, expand

SEALED_BYTES = SEED_BYTES + 16
INTRODUCTION_BYTES = 64
"""A public key, and a number that is used in one meeting only."""


def sealed_for(introduction: bytes, plain: bytes) -> bytes:
    """Encrypt a text so that only the server with this introduction can read it.

    introduction: as `Links.introduction` returns it.
    plain: the text.

    Returns a fresh X25519 public key (32 bytes) and the sealed text. Raises `MessageError` for an invalid public key.
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
    """The secrets of one server; all of them come from its `own` secret and from the others' public keys.

    number: of this server, from 0 on.
    parties: how many servers there are.
    own: 32 secret bytes.
    """

    def __init__(self, number: int, parties: int, own: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        self.own, self.noise = own, derived(own, "noise")
        """All that it needs to start again; the second is the source of its noise in what is opened."""
        self._number, self._parties = number, parties
        self._key = X25519PrivateKey.from_private_bytes(derived(own, "key"))
        self._common: dict[int, bytes] = {}
        self._nonce = b""
        self.session = b""
        """A number of this meeting alone, the same at all servers: messages may be numbered anew after it."""
        self.sketch = derived(own, "sketch") if number == 0 else b""
        """The secret from which the sketches of all rounds are drawn."""

    def introduction(self) -> bytes:
        """Its public key (32 bytes), and a fresh number (32 bytes)."""
        self._nonce = os.urandom(32)
        return self._key.public_key().public_bytes_raw() + self._nonce

    @property
    def ready(self) -> bool:
        """Whether it has met all other servers, and has the secret of the sketches."""
        return bool(self.sketch) and len(self._common) == self._parties - 1

    def meet(self, introductions: Mapping[int, bytes]) -> None:
        """Agree on a secret with each of the other servers. Call `introduction` before.

        introductions: number of the server → its introduction.

        Raises `MessageError` for an invalid public key.
        """
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
        """The seed (32 bytes) that two servers, one of them this one, share for the direction from `sender` to
        `receiver`.

        Raises `MessageError` if they have not met.
        """
        other = receiver if sender == self._number else sender
        if other not in self._common:
            raise MessageError(f"server {self._number} has no key of server {other}")
        return derived(self._common[other], f"from {sender} to {receiver}")

    def session_edge(self, sender: int, receiver: int) -> bytes:
        """The same as `edge`, but for this session alone: the seed from `sender` to `receiver` changes with each
        meeting."""
        return derived(self.edge(sender, receiver), f"session {self.session.hex()}")

    def zeros(self, count: int, label: str) -> Words:
        """Its share (count,) of zeros: uniform words that are zero when those of all servers are added. `label` names
        their use."""
        after, before = ((self._number + step) % self._parties for step in (1, -1))
        given, got = self.session_edge(self._number, after), self.session_edge(before, self._number)
        return expand(derived(got, label), count) - expand(derived(given, label), count)

    def drawn(self, count: int, label: str, bits: int) -> Words:
        """Noise (count,) that nobody else knows: uniform from −2^bits to 2^bits − 1, and different for each `label`."""
        found = expand(derived(self.noise, label), count)
        found &= (2 << bits) - 1
        found -= 1 << bits
        return found

    def sealed(self, receiver: int) -> bytes:
        """The secret of the sketches, sealed by server 0 for server `receiver`."""
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        # This key encrypts one text only, so the nonce may be constant.
        key = derived(self.edge(0, receiver), "sealed sketch")
        return ChaCha20Poly1305(key).encrypt(bytes(12), self.sketch, None)

    def unsealed(self, data: bytes) -> bytes:
        """Decrypt what `sealed_for` has sealed for this server.

        data: a fresh X25519 key (32 bytes), and the sealed text.

        Raises `MessageError` if it was not sealed for it.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        try:
            common = self._key.exchange(X25519PublicKey.from_public_bytes(data[:32]))
            return ChaCha20Poly1305(derived(common, f"for {data[:32].hex()}")).decrypt(bytes(12), data[32:], None)
        except (ValueError, InvalidTag):
            raise MessageError(f"it was not sealed for server {self._number}") from None

    def learn(self, sealed: bytes) -> None:
        """Take the secret of the sketches.

        sealed: as `sealed` of server 0 returned it for this server.

        Raises `MessageError` if it is not from server 0.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        try:
            key = derived(self.edge(0, self._number), "sealed sketch")
            self.sketch = ChaCha20Poly1305(key).decrypt(bytes(12), sealed, None)
        except InvalidTag:
            raise MessageError("the secret of the sketches was not sealed by server 0") from None
