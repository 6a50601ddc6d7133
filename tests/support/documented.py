"""Tables of the README that tests write.

A test asserts that its row is there. `JAXSPEC_WRITE_DOCS=1` puts it there instead: the
line that begins with the row's name, below the marker of the table, is replaced or added.
"""

import os
import pathlib

README = pathlib.Path(__file__).parents[2] / "README.md"


def row(table, name, *cells):
    """Asserts (or writes) the row `| name | cells |` below `<!-- table -->`."""
    line = f"| {name} | " + " | ".join(cells) + " |"
    before, marker, after = README.read_text().partition(f"<!-- {table} -->\n")
    assert marker, f"the README has no table {table!r}"
    body, blank, rest = after.partition("\n\n")
    lines = body.split("\n")
    if line in lines:
        return
    assert os.environ.get("JAXSPEC_WRITE_DOCS"), f"the README's {table} lacks: {line}"
    places = [i for i, old in enumerate(lines) if old.startswith(f"| {name} |")]
    if places:
        lines[places[0]] = line
    else:
        lines.append(line)
    README.write_text(before + marker + "\n".join(lines) + blank + rest)
