"""What can go wrong between an endpoint's URL and an open connection, beyond httpx's own errors.

    httpx.ConnectError
      AddressRefusedError    the egress policy does not let us connect there
      DnsError               the host name could not be resolved
      TlsError               the receiver's identity could not be verified, or the handshake failed

Rules of this module: each is a child of `httpx.ConnectError`, so that whoever knows httpx alone still understands;
their messages are made here and hold no URL, no query and no header.
"""

from __future__ import annotations

import httpx

__all__ = ["AddressRefusedError", "DnsError", "TlsError"]


class AddressRefusedError(httpx.ConnectError):
    """The egress policy refuses an address; nothing was sent to it.

    Attributes:
        address: the address that was refused, as it was given or resolved.
        range: the network of the table, of `deny` or of the rule that refused it, in words.
    """

    def __init__(self, address: str, range: str) -> None:  # noqa: A002 - the public name of the attribute
        super().__init__(f"the address {address} is refused: {range}")
        self.address = address
        self.range = range


class DnsError(httpx.ConnectError):
    """The host name could not be resolved to any address."""


class TlsError(httpx.ConnectError):
    """The TLS handshake failed, or the certificate is not valid for the host."""
