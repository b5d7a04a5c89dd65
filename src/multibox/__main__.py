"""`python -m multibox`: what torchrun starts."""

import sys

from multibox.cli import main

if __name__ == "__main__":
    sys.exit(main())
