"""`python -m service` is the command `paca`."""

from .cli import main

main()
