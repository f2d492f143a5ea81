"""What a coordinator may see of an update, and the protocols that see to it."""

from fedrobust.options import find_options
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

find_options(__name__)
