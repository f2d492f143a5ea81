"""What a coordinator may see of an update, and the protocols that see to it."""

from fedrobust.secure.privacy import ClearPrivacy, Privacy

__all__ = ["ClearPrivacy", "Privacy"]
