"""Standard output for what was asked for, standard error for everything about it."""

import sys
from collections.abc import Callable

from rich import color, progress, style
from rich import console as consoles

_UNLIMITED = 10_000  # columns


def console(*, stderr: bool = False) -> consoles.Console:
    """A console as wide as its terminal; in files and pipes no line is cut."""
    found = consoles.Console(stderr=stderr)
    if found.file.isatty():
        return found
    return consoles.Console(stderr=stderr, width=_UNLIMITED)


def compiles(bar: progress.Progress) -> Callable[[str, int, int], None]:
    """A bar of the programs that an engine compiles, as its `watch`."""
    task = bar.add_task("compiles", total=None)

    def watch(name: str, done: int, total: int) -> None:
        bar.update(task, completed=done, total=total, description=f"compiles {name}")
        if done == total:
            bar.remove_task(task)

    return watch


class Screen:
    """Text on standard output, and lines about it on standard error.

    Text is written as it is, without wrapping or a change to its tabs, and in colours only
    where they show.

    Attributes:
        has_colours: whether they do.
    """

    def __init__(self, *, is_quiet: bool = False):
        """Looks at standard output; a quiet screen prints nothing."""
        self._is_quiet = is_quiet
        found = consoles.Console()
        shows = found.color_system is not None and not found.no_color
        self.has_colours = shows and not is_quiet

    def write(self, text: str, colour: str = "") -> None:
        """Prints a piece of text at once."""
        if self._is_quiet:
            return
        if self.has_colours and colour and text:
            standard = color.ColorSystem.STANDARD
            text = style.Style.parse(colour).render(text, color_system=standard)
        sys.stdout.write(text)
        sys.stdout.flush()

    def say(self, line: str) -> None:
        """Prints a line about the text."""
        if not self._is_quiet:
            print(line, file=sys.stderr, flush=True)
