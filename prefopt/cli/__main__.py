"""Let ``python -m prefopt.cli`` be the command line, as launchers of several processes call it."""

import sys

from prefopt.cli import main

if __name__ == "__main__":
    sys.exit(main())
