"""What `hccn_tool` prints: pure parsers.

Options and messages are those of the tool's public source (the NPU driver's hccn_tool: command list, error list) and of
vllm-ascend's installation guide, "Verify Multi-Node Communication". The tool runs once at a time on a host: a
second one gets "hccn_tool is busy, please try again."
"""

from __future__ import annotations

import re

BUSY = "is busy, please try again"

DENIED = ("permission denied", "run permission")
"""The tool wants root or the driver's group."""

ANSWERS = ("no ip was preset", "no certificate found", "is not supported")
"""Answers that come as errors: no address is set, TLS was never set up, the product has no such option."""

_LINK = re.compile(r"link status:\s*(\w+)", re.IGNORECASE)
_HEALTH = re.compile(r"net health status:\s*(\S.*?)\s*$", re.MULTILINE)
_TLS = re.compile(r"tls switch\[(\d)\]")
_ADDRESS = re.compile(r"ipaddr:\s*(\d+\.\d+\.\d+\.\d+)")
_NETMASK = re.compile(r"netmask:\s*(\d+\.\d+\.\d+\.\d+)")
_PING = re.compile(r"(\d+) packets transmitted, (\d+) received")


def parse_link(text: str) -> str | None:
    """Return UP or DOWN from `-link -g`; None: it says neither."""
    match = _LINK.search(text)
    return match[1].upper() if match else None


def parse_health(text: str) -> str | None:
    """Return the word of `-net_health -g`: Success, Init, Fault, Socket fail, Receive timeout, ..."""
    match = _HEALTH.search(text)
    return match[1] if match else None


def parse_tls(text: str) -> bool | None:
    """Return whether the TLS switch of `-tls -g` is on; a device without any certificate has it off."""
    match = _TLS.search(text)
    if match:
        return match[1] == "1"
    return False if "no certificate found" in text.lower() else None


def parse_address(text: str) -> tuple[str, str] | None:
    """Return address and netmask of `-ip -g`; None: none is set."""
    address, netmask = _ADDRESS.search(text), _NETMASK.search(text)
    return (address[1], netmask[1] if netmask else "255.255.255.255") if address else None


def parse_ping(text: str) -> tuple[int, int] | None:
    """Return packets sent and received of `-ping -g address A`; None: there is no such line."""
    match = _PING.search(text)
    return (int(match[1]), int(match[2])) if match else None
