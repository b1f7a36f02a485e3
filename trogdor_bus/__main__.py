"""`trogdor-bus`, and `python -m trogdor_bus`: the command line, on whatever it has for standard streams.

Whatever takes time to import is imported when Ctrl-C ends it without a word. Before that, Python starts by itself.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    """Run the command line; return the exit code."""
    hears = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if hears:
        signal.signal(signal.SIGINT, _leave)  # while modules are imported, no traceback is of any use
    from trogdor_bus import badge, streams

    badge.wear()
    streams.open_missing()

    def command() -> int:
        from trogdor_bus import cli

        if hears:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return cli.main()

    try:
        return streams.run(command)
    except KeyboardInterrupt:
        return streams.INTERRUPTED
    finally:
        if hears:
            signal.signal(signal.SIGINT, _leave)


def _leave(*_: object) -> None:
    os._exit(130)  # streams.INTERRUPTED, which may not be there yet


if __name__ == "__main__":
    sys.exit(main())
