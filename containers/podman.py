"""podman: docker's command line without a daemon. What starts a container is this user, so our files can be mounted.

Tried with podman 4.3. A site names the OCI runtime and the like in containers.conf.
"""

from __future__ import annotations

from containers.base import Env
from containers.docker import LABEL, Docker
from jobs.core.registry import RUNTIMES


@RUNTIMES.register("podman")
class Podman(Docker):
    """Containers of this user."""

    name = "podman"
    programs = ("podman",)
    version = ("podman", "version", "--format", "{{.Client.Version}}")
    unanswered = "Try it by hand on this node."
    settings = ("XDG_RUNTIME_DIR", "CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF")
    sees_all = False
    copies = False
    label = f'{{{{index .Labels "{LABEL}"}}}}'
    storage = "{{.Store.GraphRoot}}"
    taken = "is already in use by"

    def remove(self, name: str, env: Env) -> None:
        """End everything in a container, and remove it: without a time its shell would be waited for."""
        self.run(env, "rm", "--force", "--time", "0", name)
