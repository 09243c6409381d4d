"""Who listens on a port of this host, as the kernel tells in microseconds: sock_diag(7), one exact question.

Reading /proc/net/tcp takes milliseconds where a host has many connections, too long for each new one of a load.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

_SOCK_DIAG, _BY_FAMILY, _REQUEST, _ERROR = 4, 20, 1, 2
_HEAD = struct.Struct("=IHHII")
"""Length, type, flags, number and sender of a netlink message (netlink(7))."""
_ASKED = struct.Struct("=BBBxI2s2s4s12x4s12xIII")
"""struct inet_diag_req_v2: family, protocol, extensions, states, both ports, both addresses, interface, no cookie."""
_UID = _HEAD.size + 64
"""Where struct inet_diag_msg has the user id."""


def stranger(uid: int) -> str | None:
    """Return the name of who may not have a port of ours: anybody but this user, and root, who starts containers."""
    return None if uid in (os.geteuid(), 0) else f"user {uid}"


def owner(address: str, port: int) -> int | None:
    """Return the user id of who gets a new connection to an IPv4 address of this host; None: nobody listens there.

    Raises:
        OSError: this kernel does not tell.
    """
    own, any_state, none = socket.inet_aton(address), 0xFFFFFFFF, 0xFFFFFFFF
    asked = _ASKED.pack(
        socket.AF_INET, socket.IPPROTO_TCP, 0, any_state, struct.pack("!H", port), bytes(2), own, own, 0, none, none
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG) as kernel:
        kernel.settimeout(1.0)
        kernel.send(_HEAD.pack(_HEAD.size + len(asked), _BY_FAMILY, _REQUEST, 1, 0) + asked)
        answer = kernel.recv(4096)
    if _HEAD.unpack_from(answer)[1] == _ERROR:
        [number] = struct.unpack_from("=i", answer, _HEAD.size)
        if -number == errno.ENOENT:
            return None
        raise OSError(-number, os.strerror(-number))
    return int(struct.unpack_from("=I", answer, _UID)[0])
