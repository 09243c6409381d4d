"""Which serving settings are right for our context length and load? Plan, submit, follow, print one table."""

import sys

from jobs.core.output import until_closed
from jobs.sweep.launch import main

if __name__ == "__main__":
    sys.exit(until_closed(main))
