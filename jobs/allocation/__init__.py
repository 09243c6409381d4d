"""The node side: what the ranks of an allocation do together."""
