"""podman: docker's command line without a daemon. What starts a container is this user, so our files can be mounted.

Tried with podman 4.3. A site names the OCI runtime and the like in containers.conf.
"""

from __future__ import annotations

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
    brings = "podman pull IMAGE"
    leaves_files = True  # conmon: a file `oom`, if the kernel kills something in its container
    own_scheme = "podman"
    label = f'{{{{index .Labels "{LABEL}"}}}}'
    storage = "{{.Store.GraphRoot}}"
    taken = "is already in use by"
    at_once = ("--time", "0")
