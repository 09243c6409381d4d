"""The login side: from overrides to submitted allocations, and what became of them."""
