"""The checks of `validity.py`, one file a kind: answers, counters of the engines, steadiness, the client, accuracy."""
