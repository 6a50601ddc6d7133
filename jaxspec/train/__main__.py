"""`python -m jaxspec.train ...` is `jaxspec train ...`."""

import sys

from jaxspec.cli.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
