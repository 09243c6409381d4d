"""Which serving settings are right for our context length and load? Plan, submit, follow, print one table."""

from jobs.sweep import main

if __name__ == "__main__":
    main()
