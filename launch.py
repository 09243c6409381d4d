"""Which serving settings are right for our context length and load? Plan, submit, follow, print one table."""

import sys

from jobs.cli.launch import main
from jobs.cli.output import until_closed

if __name__ == "__main__":
    sys.exit(until_closed(main))
