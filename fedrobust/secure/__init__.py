"""What a coordinator may see of an update, and the protocols that see to it."""

from fedrobust.secure.privacy import (
    ClearPrivacy,
    GroupedPrivacy,
    MaskedPrivacy,
    MaskingPrivacy,
    Privacy,
    ReplicatedPrivacy,
    SharedPrivacy,
    SharesPrivacy,
)

__all__ = [
    "ClearPrivacy",
    "GroupedPrivacy",
    "MaskedPrivacy",
    "MaskingPrivacy",
    "Privacy",
    "ReplicatedPrivacy",
    "SharedPrivacy",
    "SharesPrivacy",
]
