"""`python -m refimpl`."""

from refimpl.cli.main import main

if __name__ == "__main__":  # not where an executor's worker imports it
    main()
