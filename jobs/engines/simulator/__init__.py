"""The rehearsal engine: takes the flags of `vllm serve` and acts like it, with times from a roofline.

    python -m jobs.engines.simulator serve MODEL FLAGS...

What the flags cannot say (model size, hardware, rank, faults) comes in the variable REHEARSAL_SPEC (settings.py).
"""
