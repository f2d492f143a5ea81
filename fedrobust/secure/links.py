"""What servers have in common: keys that they agree on by X25519, so that who passes their messages on knows none.

Each pair has a seed for each direction, and all have one for sketches, which server 0 draws and seals for the others.
Nobody vouches for the public keys here: who can exchange them on their way can stand between two servers.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedrobust.secure.messages import MessageError
from fedrobust.secure.ring import SEED_BYTES, derived

SEALED_BYTES = SEED_BYTES + 16


class Links:
    """The secrets of server `number` of so many; all of them come from `own` (32 bytes) and the others' public keys."""

    def __init__(self, number: int, parties: int, own: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        self.own, self.noise = own, derived(own, "noise")
        """All that it needs to be started again; what it adds to what is opened comes from the second."""
        self._number, self._parties = number, parties
        self._key = X25519PrivateKey.from_private_bytes(derived(own, "key"))
        self._common: dict[int, bytes] = {}
        self.sketch = derived(own, "sketch") if number == 0 else b""
        """The secret that the sketches of all rounds come from."""

    @property
    def public(self) -> bytes:
        """Its public key (32 bytes)."""
        return self._key.public_key().public_bytes_raw()

    @property
    def ready(self) -> bool:
        """Whether it has met all others, and knows the secret of the sketches."""
        return bool(self.sketch) and len(self._common) == self._parties - 1

    def meet(self, public: Mapping[int, bytes]) -> None:
        """Agree with each of the other servers. MessageError for a key that is none."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

        try:
            self._common = {
                other: self._key.exchange(X25519PublicKey.from_public_bytes(key)) for other, key in public.items()
            }
        except ValueError:
            raise MessageError("a server's public key is none, or of small order") from None

    def edge(self, sender: int, receiver: int) -> bytes:
        """The seed (32 bytes) that two servers, of which it is one, have for one direction. MessageError if they have
        not met."""
        other = receiver if sender == self._number else sender
        if other not in self._common:
            raise MessageError(f"server {self._number} has no key of server {other}")
        return derived(self._common[other], f"from {sender} to {receiver}")

    def sealed(self, receiver: int) -> bytes:
        """The secret of the sketches for another server: by server 0."""
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        # One key for one text, so the nonce may be the same.
        key = derived(self.edge(0, receiver), "sealed sketch")
        return ChaCha20Poly1305(key).encrypt(bytes(12), self.sketch, None)

    def learn(self, sealed: bytes) -> None:
        """Take the secret of the sketches from server 0. MessageError if it is not from there."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        try:
            key = derived(self.edge(0, self._number), "sealed sketch")
            self.sketch = ChaCha20Poly1305(key).decrypt(bytes(12), sealed, None)
        except InvalidTag:
            raise MessageError("the secret of the sketches was not sealed by server 0") from None
