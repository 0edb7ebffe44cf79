"""Which addresses are read, and how they stand in messages.

An address is data: what would run a command (``pipe:``) or open anything but the kinds of
server that are offered is refused by name. Passwords and signatures never reach a message.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

from t2i_hpc.common.errors import DataError

NEEDED = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}
_OFFERED = "a folder or an address that begins with http://, https://, s3:// or gs://"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>)]+")


def scheme_of(address: str) -> str:
    """Return the part of an address before ``://``, in lower case."""
    return address.partition("://")[0].lower()


def is_remote(address: str, setting: str) -> bool:
    """Tell an address on a server from a path.

    Args:
        address: what was given.
        setting: the key it was given as, for messages.

    Raises:
        DataError: a command, or a kind of server that is not offered.
    """
    if address.lower().startswith("pipe:"):
        raise DataError(
            f"{setting}=pipe:… would run a command, which is never done: name {_OFFERED}"
        )
    if "://" not in address:
        return False
    if scheme_of(address) not in NEEDED:
        raise DataError(f"{setting}={shown(address)} is not offered: name {_OFFERED}")
    return True


def join(address: str, *names: str) -> str:
    """Return the address of a file in a folder; a query, such as a signature, stays behind it."""
    if not scheme_of(address).startswith("http"):
        return "/".join([address.rstrip("/"), *names])
    parts = urlsplit(address)
    return urlunsplit(parts._replace(path="/".join([parts.path.rstrip("/"), *names])))


def shown(address: str) -> str:
    """Return an address without user, password, query and fragment."""
    scheme, mark, rest = address.partition("://")
    if not mark:
        return address
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


def without_secrets(text: str) -> str:
    """Return a text with every address in it as :func:`shown`."""
    return _ADDRESS.sub(lambda found: shown(found.group()), text)
