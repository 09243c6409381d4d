"""The checkpoint on disk: fetch it, verify it, stage it to a node's own disk."""
