"""Decides which names a browser may call this server by.

A page of another site can make a browser resolve the site's own name to this machine (DNS rebinding), and then read
what the server answers. Its requests still carry the site's name in `Host`; an address cannot be rebound.
"""

import ipaddress
import socket


def is_loopback(host: str) -> bool:
    """Whether a server at this address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def may_name(header: str | None, host: str) -> bool:
    """Whether a request with this Host header is meant for a server that listens at `host`.

    The port is not looked at, because a tunnel may come from another.
    """
    name = _name(header or "").lower().rstrip(".")
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return not is_loopback(host) and name in {host.lower(), *_own_names()}
    return address.is_loopback or not is_loopback(host)


def _name(header: str) -> str:
    if header.startswith("["):  # an IPv6 address
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def _own_names() -> set[str]:
    name = socket.gethostname().lower()
    return {name, name.partition(".")[0], f"{name.partition('.')[0]}.local", socket.getfqdn().lower()} - {""}
