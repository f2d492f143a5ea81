"""`python -m fedrobust`: the command line."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        # Python looks in the current folder first: a numpy.py in that folder would be imported instead of NumPy.
        del sys.path[0]
    from fedrobust.cli import main

    main()
