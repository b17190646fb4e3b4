"""Keeping secrets out of texts: an address may hold a user and a password."""

import re

_USER = re.compile(r"(?<=://)[^/\s]+@")  # up to the last @ before the path: a password may hold one


def redacted(text: str) -> str:
    """Replace what stands before the host in addresses: `http://user:password@host` becomes `http://***@host`."""
    return _USER.sub("***@", text)
