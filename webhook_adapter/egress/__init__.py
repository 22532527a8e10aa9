"""Egress: which addresses may be connected to, and the transport that connects to no others.

Rules of this package: it decides and connects; it knows no endpoint, message, signature, deadline or retry. All HTTP of
the project is behind here and `sender.py`.
"""

from __future__ import annotations

from webhook_adapter.egress.addresses import EgressPolicy
from webhook_adapter.egress.errors import AddressRefusedError, DnsError, TlsError
from webhook_adapter.egress.exchange import Exchange, Received, Target, exchange_over
from webhook_adapter.egress.resolving import Resolver, SystemResolver
from webhook_adapter.egress.transport import default_transport
from webhook_adapter.egress.urls import check_url, parse_url

__all__ = [
    "AddressRefusedError",
    "DnsError",
    "EgressPolicy",
    "Exchange",
    "Received",
    "Resolver",
    "SystemResolver",
    "Target",
    "TlsError",
    "check_url",
    "default_transport",
    "exchange_over",
    "parse_url",
]
