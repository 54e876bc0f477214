"""`python -m jvdm` is the command `jvdm`."""

import sys

from jvdm.cli import main

if __name__ == "__main__":
    sys.exit(main())
