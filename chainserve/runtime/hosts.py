"""Which hosts are this machine."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches itself under that address or name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
