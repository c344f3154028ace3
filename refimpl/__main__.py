"""`python -m refimpl`."""

from refimpl.cli.main import main

main()
