"""A container runtime of a site that has no images: a mount namespace of its own over the node's files."""

from __future__ import annotations

from collections.abc import Sequence

from containers.base import Env, Fetched, Inside, Order, Runtime, Start, Stock, check_programs, lost
from containers.spec import Spec
from jobs.core.registry import RUNTIMES


@RUNTIMES.register("example_box")
class ExampleBox(Runtime):
    """unshare(1), which becomes the engine."""

    name = "example_box"
    programs = ("unshare", "nsenter")
    version = ("unshare", "--version")
    is_engine = True
    unnamed = True

    def check(self, spec: Spec, *, here: bool = False) -> None:
        """Refuse nothing: whatever is mounted is there already."""
        if here:
            check_programs(self)

    def look(self, order: Order, env: Env) -> Stock:
        """There is no image to bring."""
        return Stock(unpacked_gib=0.0)

    def fetch(self, order: Order, env: Env) -> Fetched:
        """There is no image to bring."""
        return Fetched()

    def start(self, order: Order) -> Start:
        """Start the engine as root of a user namespace."""
        return Start((["unshare", "--user", "--map-root-user", "--mount", *order.command],), order.spec.env)

    def reach(self, order: Order, env: Env) -> Inside:
        """Its processes and files are the node's."""
        return InExampleBox(order, env)


class InExampleBox(Inside):
    """The namespaces of the engine."""

    def join(self, command: Sequence[str]) -> Start:
        """Join the namespaces of the engine."""
        if (pid := self.pid()) is None:
            raise lost("its process id is not known")
        return Start((["nsenter", "--target", str(pid), "--user", "--mount", "--preserve-credentials", *command],))
