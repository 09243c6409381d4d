"""Checks of the nodes of an allocation before the first service loads.

`look`, `tools` and `paths` gather facts on one node; `host`, `network`, `npu` and `fabric` judge the facts of all nodes
(pure); `station` is one rank's side, `conduct` rank 0's; `report` and `evidence` are what remains.
"""
