"""The entry point of the command line: quiet if interrupted while it is still importing.

It lies outside the package, since importing any part of that imports all of it.
"""

import os
import signal


def main() -> int:
    """Runs `jaxspec`, and returns its exit status."""
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours:  # an exception could surface anywhere in what is being imported
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from jaxspec import __main__ as command

    if is_ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return command.main()
