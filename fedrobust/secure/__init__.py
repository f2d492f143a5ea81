"""What a coordinator may see of an update, and the protocols that enforce it.

A rule that needs the updates themselves does not work with secret shares, which open only their Gram matrix:

>>> from fedrobust.aggregation import Aggregation, GeometricMedian, Median
>>> SharesPrivacy().fits(Aggregation(rule=Median()))
'median needs rows, which shares does not reveal'
>>> SharesPrivacy().fits(Aggregation(rule=GeometricMedian())) is None
True
"""

from fedrobust.options import find_options
from fedrobust.secure.messages import MessageError
from fedrobust.secure.privacy import (
    ClearPrivacy,
    GroupedPrivacy,
    MaskedPrivacy,
    OneMessage,
    PairwiseMasking,
    Privacy,
)
from fedrobust.secure.sharing import ReplicatedPrivacy, SecretSharing, SharesPrivacy

__all__ = [
    "ClearPrivacy",
    "GroupedPrivacy",
    "MaskedPrivacy",
    "MessageError",
    "OneMessage",
    "PairwiseMasking",
    "Privacy",
    "ReplicatedPrivacy",
    "SecretSharing",
    "SharesPrivacy",
]

find_options(__name__)
