"""What a coordinator may see of an update, and the protocols that see to it."""

from fedrobust.secure.privacy import (
    ClearPrivacy,
    GroupedPrivacy,
    MaskedPrivacy,
    PairwiseMasking,
    Privacy,
    ReplicatedPrivacy,
    SecretSharing,
    SharesPrivacy,
)

__all__ = [
    "ClearPrivacy",
    "GroupedPrivacy",
    "MaskedPrivacy",
    "PairwiseMasking",
    "Privacy",
    "ReplicatedPrivacy",
    "SecretSharing",
    "SharesPrivacy",
]
