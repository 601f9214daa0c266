"""`python -m main` is `python -m main.main`."""

import sys

from main.main import main

if __name__ == "__main__":
    sys.exit(main())
