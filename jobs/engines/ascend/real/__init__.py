"""The real code of a release, on a machine without NPUs: its packages, and what it says to command lines."""
