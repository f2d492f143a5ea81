"""How patches are scaled before a network gets them: in [0, 1], minus MEAN, divided by STD."""

MEAN = (0.75, 0.58, 0.70)
"""Mean of the channels of H&E tissue in [0, 1], rounded."""
STD = (0.17, 0.21, 0.17)
"""Standard deviation of the channels, rounded."""
