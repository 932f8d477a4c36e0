"""`python -m irtool`: the command line, where its script is not on the path."""

from irtool.cli import main

main()
