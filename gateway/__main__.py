"""`python -m gateway`: the same as the command `imageset-gateway`."""

from .cli import main

main()
