"""`python -m main` is `python -m main.main`."""

import sys

from main.training import interrupt

if __name__ == "__main__":  # what is imported below takes seconds
    interrupt.end_at_once()

from main.main import main

if __name__ == "__main__":
    sys.exit(main())
