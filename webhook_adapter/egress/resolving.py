"""From a host name to addresses that were judged, every one of them.

Rules of this module:

* One refused address refuses the whole answer: a name that points both outside and inside is an attack, or a mistake.
* A literal address is judged like a resolved one.
* Whatever goes wrong while resolving is a `DnsError`.

It knows no policy beyond the function that judges one address.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx

from webhook_adapter.egress.errors import DnsError

__all__ = ["Judge", "Resolver", "SystemResolver", "resolve_judged"]

Judge: TypeAlias = Callable[[str], None]

# A name server that hangs holds a thread for as long as libc waits. These are kept apart from anyio's own threads, so
# that a few such names delay other names at worst, and never the store.
_MAX_THREADS = 64
_threads: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("webhook_adapter.egress.threads")


@runtime_checkable
class Resolver(Protocol):
    """Turns host names into addresses; write your own to use another name service than the system's."""

    async def resolve(self, host: str, port: int, /) -> Sequence[str]:
        """Return every address of `host`, the preferred one first. May be called concurrently."""
        ...


class SystemResolver:
    """The name service of the machine: `getaddrinfo`, in a thread that a cancellation leaves behind."""

    async def resolve(self, host: str, port: int, /) -> Sequence[str]:
        """Return the addresses of `host` in the order that the system prefers.

        A checkpoint. A cancellation is honoured at once; the thread ends by itself.

        Raises:
            OSError: `socket.gaierror` where the name does not exist or no server answers.
        """
        try:
            limiter = _threads.get()
        except LookupError:
            limiter = anyio.CapacityLimiter(_MAX_THREADS)
            _threads.set(limiter)
        answers = await anyio.to_thread.run_sync(_getaddrinfo, host, port, abandon_on_cancel=True, limiter=limiter)
        return tuple(dict.fromkeys(answers))

    def __repr__(self) -> str:
        return "SystemResolver()"


async def resolve_judged(resolver: Resolver, host: str, port: int, judge: Judge) -> tuple[str, ...]:
    """Return the addresses of `host`, each of which `judge` has let pass. A checkpoint unless `host` is an address.

    Raises:
        AddressRefusedError: at least one address may not be connected to.
        DnsError: there is no address.
    """
    try:
        ipaddress.ip_address(host)
    except ValueError:
        addresses = await _resolve(resolver, host, port)
    else:
        addresses = (host,)
    for address in addresses:
        judge(address)
    return addresses


async def _resolve(resolver: Resolver, host: str, port: int) -> tuple[str, ...]:
    try:
        addresses = tuple(await resolver.resolve(host, port))
    except httpx.TransportError:
        raise
    except Exception as exc:
        # Resolvers bring their own families of errors; to a sender they all mean that the name did not resolve.
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else type(exc).__name__
        raise DnsError(f"the host {host} could not be resolved: {reason}") from exc
    if not addresses:
        raise DnsError(f"the host {host} could not be resolved: it has no address")
    return addresses


def _getaddrinfo(host: str, port: int) -> list[str]:
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(address[0]) for _, _, _, _, address in answers]
