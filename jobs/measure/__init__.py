"""Load and figures of one point: prompts (workload), the window client (client) and its statistics."""
