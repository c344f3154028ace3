"""The program's first module, `refimpl` and `python -m refimpl`: from here on, Ctrl-C is one line.

It imports nothing at its top, so that no import comes before the handler.
"""


def main() -> None:
    """Run the program; before and after a command, Ctrl-C ends it at once with 130."""
    import os
    import signal

    def stop(
        *_: object,
    ) -> None:  # an exception could be lost in an import, or at the end
        try:
            os.write(2, b"interrupted\n")
        finally:  # whoever closed it
            os._exit(130)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
    from refimpl.cli.main import main as run

    run()


if __name__ == "__main__":  # not where a child process imports it
    main()
