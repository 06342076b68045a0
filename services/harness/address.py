"""Addresses that a server binds."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host; of a name other than ``localhost`` nobody knows."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_of(address: str) -> str:
    """The host of ``host:port``, an IPv6 one without its brackets."""
    return address.rpartition(":")[0].strip("[]")


def join(host: str, port: int) -> str:
    """``host:port``, an IPv6 host in brackets."""
    return f"[{host.strip('[]')}]:{port}" if ":" in host else f"{host}:{port}"
