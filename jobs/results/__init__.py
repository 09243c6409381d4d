"""From row files to one sweep table."""
