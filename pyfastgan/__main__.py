"""`python -m pyfastgan`."""

import sys

from pyfastgan.cli import main

if __name__ == "__main__":
    sys.exit(main())
