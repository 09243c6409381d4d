"""Where an engine runs when it does not run on the node itself: enroot, pyxis or docker.

One frozen `Spec` (spec.py) is rendered to argv by pure functions of each runtime's module; entry.py is what runs first
inside; store.py keeps imported images; ascend.py knows what an NPU node lends to a container. `python -m containers`
prepares a container on a node and becomes its engine.
"""
