"""Serving sweeps of large models on shared Ascend clusters: plan, submit, serve, measure, tabulate."""
