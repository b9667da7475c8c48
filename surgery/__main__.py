"""`python -m surgery`."""

from surgery.commands import main

main()
