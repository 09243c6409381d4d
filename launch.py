"""Which serving settings are right for our context length and load? Plan, submit, follow, print one table."""

import sys

if __name__ == "__main__":
    try:
        from jobs.cli.launch import main
        from jobs.cli.output import until_closed

        sys.exit(until_closed(main))
    except KeyboardInterrupt:  # while it was still being loaded
        sys.exit(130)
