"""Let ``python -m prefopt`` be the command line."""

import sys

from prefopt.cli import main

if __name__ == "__main__":
    sys.exit(main())
