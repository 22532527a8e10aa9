"""Which addresses may be connected to: one explicit table, two lists that amend it, one judgement.

Rules of this module:

* An address is refused if the table below names its range, or, for IPv6, if it is not global unicast at all. The
  `is_global` of the standard library is not asked: it says yes to several forms that carry a private IPv4 address.
* An IPv6 address that carries an IPv4 address inside is judged as both, and each must pass.
* `deny` beats `allow`; `allow` lifts the table, and the ban on plain HTTP, for its ranges and nothing else.

It knows no DNS, no URL and no HTTP: whoever connects must ask about every single address, at the moment of connecting.
Sources: the IANA special-purpose address registries; RFC 6052 (NAT64), 8215 (local NAT64), 3056 (6to4),
4380 (Teredo), 5214 (ISATAP), 2765 (translated), 4291 (mapped and compatible).
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, TypeAlias

import attrs

from webhook_adapter.egress.errors import AddressRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["EgressPolicy", "embedded_ipv4"]

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_IPV4_BITS = 32
_LOW_32 = 0xFFFF_FFFF

_REFUSED_IPV4: tuple[tuple[ipaddress.IPv4Network, str], ...] = tuple(
    (ipaddress.IPv4Network(network), name)
    for network, name in (
        # Narrow ranges first, so that the message gives the most telling name.
        ("169.254.169.254/32", "cloud metadata"),
        ("168.63.129.16/32", "cloud metadata"),
        ("100.100.100.200/32", "cloud metadata"),
        ("192.0.0.192/32", "cloud metadata"),
        ("255.255.255.255/32", "broadcast"),
        ("0.0.0.0/32", "unspecified"),
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "IETF protocol assignments"),
        ("192.0.2.0/24", "documentation"),
        ("192.31.196.0/24", "AS112"),
        ("192.52.193.0/24", "multicast tunnelling"),
        ("192.88.99.0/24", "6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "AS112"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)

_REFUSED_IPV6: tuple[tuple[ipaddress.IPv6Network, str], ...] = tuple(
    (ipaddress.IPv6Network(network), name)
    for network, name in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::/96", "IPv4-compatible"),
        ("::ffff:0:0:0/96", "IPv4-translated"),
        ("64:ff9b:1::/48", "local NAT64"),
        ("100::/64", "discard"),
        ("100:0:0:1::/64", "dummy prefix"),
        ("2001:1::/32", "IETF protocol assignments"),
        ("2001:2::/48", "benchmarking"),
        ("2001:3::/32", "multicast tunnelling"),
        ("2001:4:112::/48", "AS112"),
        ("2001:10::/28", "ORCHID"),
        ("2001:20::/28", "ORCHIDv2"),
        ("2001:30::/28", "drone identifiers"),
        ("2001:db8::/32", "documentation"),
        ("2620:4f:8000::/48", "AS112"),
        ("3fff::/20", "documentation"),
        ("5f00::/16", "segment routing"),
        ("fd00:ec2::254/128", "cloud metadata"),
        ("fd20:ce::254/128", "cloud metadata"),
        ("fc00::/7", "unique local"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
)
# The whole block of protocol assignments is refused but for Teredo, which is judged by what it carries.
_PROTOCOL_ASSIGNMENTS = ipaddress.IPv6Network("2001::/23")
_TEREDO = ipaddress.IPv6Network("2001::/32")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_TRANSLATED = ipaddress.IPv6Network("::ffff:0:0:0/96")
_6TO4 = ipaddress.IPv6Network("2002::/16")
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
# The upper half of an ISATAP interface identifier, with and without the bit for "globally unique".
_ISATAP = frozenset({0x0000_5EFE, 0x0200_5EFE})


def _networks(ranges: Iterable[str], name: str) -> tuple[Network, ...]:
    if isinstance(ranges, str):
        raise ValueError(f"{name} must be a collection of networks in CIDR form, not the string {ranges!r}")
    networks: list[Network] = []
    for given in ranges:
        if not isinstance(given, str | ipaddress.IPv4Network | ipaddress.IPv6Network):
            raise ValueError(f"{name} must hold networks in CIDR form, not {given!r}")
        try:
            network = ipaddress.ip_network(given)
        except ValueError as exc:
            raise ValueError(f"{name} must hold networks in CIDR form, not {given!r}: {exc}") from exc
        if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
            # An address of this form is judged as the IPv4 address that it is, so its ranges are too.
            inner = int(network.network_address) & _LOW_32
            network = ipaddress.IPv4Network((inner, network.prefixlen - (128 - _IPV4_BITS)))
        networks.append(network)
    return tuple(networks)


def _allowed(ranges: Iterable[str]) -> tuple[Network, ...]:
    return _networks(ranges, "allow")


def _denied(ranges: Iterable[str]) -> tuple[Network, ...]:
    return _networks(ranges, "deny")


@attrs.frozen
class EgressPolicy:
    """Say which addresses may be connected to; by default, the public internet alone.

    Args:
        allow: networks in CIDR form that may be connected to although the table refuses them (a private receiver,
            a test on 127.0.0.0/8). Plain HTTP is spoken to these only.
        deny: networks in CIDR form that are refused whatever else holds. Stronger than `allow`.

    Raises:
        ValueError: something that is no network, or a network with host bits set.

    Example:
        >>> EgressPolicy(allow=["127.0.0.0/8"]).judge("127.0.0.1")
        >>> EgressPolicy().judge("64:ff9b::a00:1")
        Traceback (most recent call last):
        ...
        webhook_adapter.egress.errors.AddressRefusedError: the address 64:ff9b::a00:1 is refused: \
it carries 10.0.0.1, in 10.0.0.0/8 (private)
    """

    allow: tuple[Network, ...] = attrs.field(default=(), converter=_allowed)
    deny: tuple[Network, ...] = attrs.field(default=(), converter=_denied)

    def judge(self, address: str) -> None:
        """Return if `address` (a literal one, a zone is ignored) may be connected to.

        Raises:
            AddressRefusedError: it may not, or it is no address at all. The error names address and range.
        """
        judged = _parse(address)
        carried = tuple(embedded_ipv4(judged)) if isinstance(judged, ipaddress.IPv6Address) else ()
        for each in (judged, *carried):
            reason = self._reason(each)
            if reason is not None:
                raise AddressRefusedError(address, reason if each is judged else f"it carries {each}, {reason}")

    def judge_plain(self, address: str) -> None:
        """Return if `address` may be spoken to without TLS: it must be in `allow`, and `judge` must pass.

        Raises:
            AddressRefusedError: it may not.
        """
        self.judge(address)
        if not _within(_parse(address), self.allow):
            raise AddressRefusedError(address, "plain HTTP is spoken only to addresses that are allowed by name")

    def _reason(self, address: Address) -> str | None:
        for network in self.deny:
            if address in network:
                return f"in {network} (denied)"
        if _within(address, self.allow):
            return None
        return _refusing_range(address)


def embedded_ipv4(address: ipaddress.IPv6Address) -> Iterator[ipaddress.IPv4Address]:
    """Yield every IPv4 address that a gateway on the way may read out of `address`."""
    value = int(address)
    low = ipaddress.IPv4Address(value & _LOW_32)
    if value <= 1:
        return  # "::" and "::1" carry nothing, although they lie in the IPv4-compatible range
    if address in _MAPPED or address in _COMPATIBLE or address in _TRANSLATED or address in _NAT64:
        yield low
    elif address in _LOCAL_NAT64:
        # The site chooses the prefix length (RFC 6052, section 2.2), and with it where the address lies. What a
        # reading leaves in 0.0.0.0/8 is the padding of another one.
        octets = address.packed
        readings = (octets[6:8] + octets[9:11], octets[7:8] + octets[9:12], octets[9:13], octets[12:16])
        for reading in readings:
            carried = ipaddress.IPv4Address(reading)
            if carried not in _THIS_NETWORK:
                yield carried
    elif address in _6TO4:
        yield ipaddress.IPv4Address((value >> 80) & _LOW_32)
    elif address in _TEREDO:
        yield ipaddress.IPv4Address((value >> 64) & _LOW_32)  # the server
        yield ipaddress.IPv4Address(~value & _LOW_32)  # the client, every bit turned round
    if (value >> 32) & _LOW_32 in _ISATAP:
        yield low


def _parse(address: str) -> Address:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        raise AddressRefusedError(address, "it is no address") from None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped  # the kernel connects to the IPv4 address itself
    return parsed


def _within(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)


def _refusing_range(address: Address) -> str | None:
    if isinstance(address, ipaddress.IPv4Address):
        for network, name in _REFUSED_IPV4:
            if address in network:
                return f"in {network} ({name})"
        return None
    for network6, name in _REFUSED_IPV6:
        if address in network6:
            return f"in {network6} ({name})"
    if address in _PROTOCOL_ASSIGNMENTS and address not in _TEREDO:
        return f"in {_PROTOCOL_ASSIGNMENTS} (IETF protocol assignments)"
    if address not in _GLOBAL_UNICAST and address not in _NAT64:
        return f"not in {_GLOBAL_UNICAST} (global unicast)"
    return None
