"""`python -m fedrobust.cli`: the command line."""

from fedrobust.cli import main

main()
