"""Which URLs an endpoint may have, and the one spelling that is kept of each.

Rules of this module:

* A URL is taken apart once, here, and what comes out is the canonical spelling: everything later reads that one, so
  that no two parsers can disagree on where it leads.
* A host that any resolver might read as a number is a literal address: 0x7f.1, 2130706433, 0177.0.0.1, fullwidth
  digits. It is spelt out as an address and judged at once. A name is judged by what it resolves to, when connecting.
* No error shows more of a URL than its scheme, host and port: paths and queries hold tokens.

It resolves nothing and connects to nothing.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from urllib.parse import unquote_to_bytes

import httpx
import idna

from webhook_adapter.egress.addresses import EgressPolicy
from webhook_adapter.egress.errors import AddressRefusedError

__all__ = ["check_url", "parse_url"]

_MAX_URL = 2048
_MAX_HOST = 253
_MAX_PORT = 65535
_PORTS = {"https": 443, "http": 80}
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?]*)(?P<rest>.*)")
_AUTHORITY = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?P<port>:[0-9]*)?", re.ASCII)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)", re.ASCII)
_MAX_PARTS = 4


def check_url(url: str, *, policy: EgressPolicy | None = None, allow_http: bool = False) -> httpx.URL:
    """Return the canonical form of an endpoint's URL, or say why it cannot be one.

    Args:
        url: an absolute https URL (or http, with `allow_http`), without credentials and without a fragment.
        policy: judges a host that is a literal address, or localhost; None is `EgressPolicy()`.
        allow_http: let plain http pass here. When connecting, it is still spoken only to what the policy allows.

    Raises:
        ValueError: what is wrong with it. The error shows no path, query or credentials.
    """
    parsed = parse_url(url, allow_http=allow_http)
    judging = policy or EgressPolicy()
    judge = judging.judge_plain if parsed.scheme == "http" else judging.judge
    try:
        host = parsed.host
        if host == "localhost" or host.endswith(".localhost"):
            judge("127.0.0.1")
        elif _is_address(host):
            judge(host)
    except AddressRefusedError as exc:
        raise ValueError(f"url must not lead to a refused address: {exc}") from exc
    return parsed


def parse_url(url: str, *, allow_http: bool = False) -> httpx.URL:
    """Return the canonical form of `url` without judging where it leads; raise ValueError if it has none."""
    _check_characters(url)
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError("url must be absolute: https://host/path")
    scheme = match["scheme"].lower()
    if scheme not in _PORTS or (scheme == "http" and not allow_http):
        raise ValueError(f"url must begin with https://{' or http://' if allow_http else ''}, not {scheme}://")
    authority = match["authority"]
    if "@" in authority:
        raise ValueError("url must not hold credentials")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise ValueError(f"url must have a host and at most one port, not {authority!r}")
    host = _canonical_host(parts["host"])
    port = _port(parts["port"])
    suffix = "" if port in {None, _PORTS[scheme]} else f":{port}"
    rest = match["rest"]
    spelt = f"{scheme}://{host}{suffix}{rest if rest.startswith('/') else '/' + rest}"
    try:
        canonical = httpx.URL(spelt)
    except httpx.InvalidURL as exc:
        raise ValueError(f"url cannot be read beyond its host {host}") from exc
    if canonical.raw_host != host.strip("[]").encode("ascii") or canonical.userinfo:
        raise ValueError(f"url must have a host that all parsers read alike, not {host}")
    return canonical


def _check_characters(url: str) -> None:
    if not 0 < len(url) <= _MAX_URL:
        raise ValueError(f"url must be a string of 1 to {_MAX_URL} characters")
    if any(character.isspace() or unicodedata.category(character) in {"Cc", "Cf", "Cs"} for character in url):
        raise ValueError("url must not hold white space, control or invisible characters")
    if "\\" in url:
        raise ValueError("url must not hold a backslash: parsers disagree on what it means")
    if "#" in url:
        raise ValueError("url must not have a fragment")


def _port(text: str | None) -> int | None:
    if text is None or text == ":":
        return None
    digits = text[1:].lstrip("0")
    if not 0 < len(digits) <= len(str(_MAX_PORT)) or int(digits) > _MAX_PORT:
        raise ValueError(f"url must have a port from 1 to {_MAX_PORT}, not {text[1:12]}")
    return int(digits)


def _canonical_host(given: str) -> str:
    if given.startswith("["):
        return _canonical_ipv6(given)
    try:
        host = unquote_to_bytes(given).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"url must have a host in UTF-8, not {given!r}") from None
    if not host.isascii():
        host = _ascii_host(host, given)
    host = host.lower()
    # "example.com." is the same name without the search list; it is kept without its dot, as certificates are.
    labels = host.removesuffix(".").split(".")
    if len(host) > _MAX_HOST or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"url must have a valid host name, not {given!r}")
    if _NUMBER.fullmatch(labels[-1]):
        return _canonical_ipv4(labels, given)
    for label in labels:
        if label.startswith("xn--"):
            _check_punycode(label, given)
    return ".".join(labels)


def _ascii_host(host: str, given: str) -> str:
    try:
        # The mapping comes first and alone: what it turns into plain digits is an address, which is no name to encode.
        mapped = idna.uts46_remap(host, std3_rules=False, transitional=False)
        if mapped.isascii():
            return mapped
        return idna.encode(mapped, uts46=True).decode("ascii")
    except UnicodeError:
        raise ValueError(f"url must have a valid host name, not {given!r}") from None


def _check_punycode(label: str, given: str) -> None:
    try:
        idna.decode(label)
    except UnicodeError:
        raise ValueError(f"url must have a valid host name, not {given!r}") from None


def _canonical_ipv4(labels: list[str], given: str) -> str:
    """Read a dotted number as inet_aton and browsers do: parts in hex, octal or decimal, the last one filling up."""
    try:
        numbers = [_number(label) for label in labels]
    except ValueError:
        raise ValueError(f"url must have a valid host, not {given!r}: it ends in a number but is no address") from None
    *leading, last = numbers
    if len(numbers) > _MAX_PARTS or any(number > 0xFF for number in leading) or last >= 256 ** (5 - len(numbers)):  # noqa: PLR2004
        raise ValueError(f"url must have a valid host, not {given!r}: it ends in a number but is no address")
    value = last
    for position, number in enumerate(leading):
        value += number << (8 * (3 - position))
    return str(ipaddress.IPv4Address(value))


def _number(label: str) -> int:
    if not _NUMBER.fullmatch(label):
        raise ValueError(label)
    if label.startswith("0x"):
        return int(label[2:] or "0", 16)
    if len(label) > 1 and label.startswith("0"):
        return int(label[1:], 8)
    return int(label)


def _canonical_ipv6(given: str) -> str:
    try:
        address = ipaddress.IPv6Address(given[1:-1])
    except ValueError:
        raise ValueError(f"url must have a valid IPv6 address between brackets, not {given!r}") from None
    if address.scope_id is not None:
        raise ValueError(f"url must not name a zone of an IPv6 address: {given!r}")
    return f"[{address.compressed}]"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
