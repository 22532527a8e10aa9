"""The default transport: judged connections, on whatever event loop it is used from.

Rules of this module:

* The event loop is asked at each use, never remembered from construction: one transport serves several loops, each
  with connections of its own.
* TLS is always verified; a context that does not verify is refused when it is given.

It is an `Exchange`, too. It knows which transport fits which event loop, and no more of either.
"""

from __future__ import annotations

import contextlib
import ssl
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs
import httpx

from webhook_adapter.egress.addresses import EgressPolicy
from webhook_adapter.egress.exchange import exchange_over
from webhook_adapter.egress.resolving import Resolver, SystemResolver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from webhook_adapter.egress.exchange import Exchange, Header, Received, Target
    from webhook_adapter.egress.httpcore_transport import HttpcoreTransport
    from webhook_adapter.egress.socket_transport import SocketTransport

__all__ = ["EgressTransport", "default_transport"]

Backend: TypeAlias = Literal["asyncio", "trio"]


def default_transport(
    policy: EgressPolicy,
    *,
    resolver: Resolver | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> httpx.AsyncBaseTransport:
    """Return a transport that connects only to where `policy` lets it.

    Args:
        policy: judges every address at the moment of connecting.
        resolver: turns names into addresses; None asks the system.
        ssl_context: for receivers under a private authority; None trusts the public ones. It must verify
            certificates and host names.

    Raises:
        ValueError: `ssl_context` does not verify.
    """
    return EgressTransport(policy, resolver=resolver, ssl_context=ssl_context)


@attrs.frozen(eq=False)
class _Carrier:
    """What carries on one event loop: the same connections, by both seams."""

    transport: httpx.AsyncBaseTransport
    exchange: Exchange


class EgressTransport(httpx.AsyncBaseTransport):
    """Carries requests over sockets of its own on asyncio and over httpcore on trio; see `default_transport`.

    May be shared between event loops and threads. Close it in each loop that used it.
    """

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        resolver: Resolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        if not isinstance(policy, EgressPolicy):
            raise ValueError(f"policy must be an EgressPolicy, not {policy!r}")
        if ssl_context is not None and not (
            ssl_context.check_hostname and ssl_context.verify_mode == ssl.CERT_REQUIRED
        ):
            raise ValueError("ssl_context must verify certificates and host names (check_hostname, CERT_REQUIRED)")
        self._policy = policy
        self._resolver = resolver if resolver is not None else SystemResolver()
        self._ssl_context = ssl_context
        self._lock = threading.Lock()
        self._tls_lock = threading.Lock()
        self._per_loop: weakref.WeakKeyDictionary[object, _Carrier] = weakref.WeakKeyDictionary()
        # The loop that asked last, and what it got: nearly always the one that asks next.
        self._latest: tuple[object, _Carrier] | None = None
        # Importing an HTTP library takes long enough to be felt in the first attempt. So it is done here if it is
        # already known which one it will be.
        with contextlib.suppress(RuntimeError):
            _implementation(_running_loop()[0])

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`; the response comes when its headers are complete, with its body still to be read.

        A checkpoint. A cancellation closes the connection.

        Raises:
            AddressRefusedError: the policy refuses the address, or one of those that the name has.
            httpx.TransportError: whatever else went wrong.
        """
        if request.url.scheme not in {"https", "http"}:
            raise httpx.UnsupportedProtocol(f"webhooks are sent over https or http, not {request.url.scheme!r}")
        return await self._carrier().transport.handle_async_request(request)

    async def post(self, target: Target, headers: Sequence[Header], body: bytes, received: Received) -> None:
        """Send `body` and read the response into `received`; see `Exchange`.

        A checkpoint. A cancellation closes the connection.

        Raises:
            AddressRefusedError: the policy refuses the address, or one of those that the name has.
            httpx.TransportError: whatever else went wrong.
        """
        await self._carrier().exchange.post(target, headers, body, received)

    async def aclose(self) -> None:
        """Close every connection of the running event loop. A checkpoint; may be called again."""
        _, loop = _running_loop()
        with self._lock:
            carrier = self._per_loop.pop(loop, None)
            self._latest = None
        if carrier is not None:
            await carrier.transport.aclose()

    def _carrier(self) -> _Carrier:
        """Return what carries on the running event loop."""
        backend, loop = _running_loop()
        latest = self._latest
        if latest is not None and latest[0] is loop:
            return latest[1]
        with self._lock:
            carrier = self._per_loop.get(loop)
            if carrier is None:
                judges = (self._policy.judge, self._policy.judge_plain)
                transport = _implementation(backend)(*judges, self._resolver, self._tls)
                carrier = _Carrier(transport, exchange_over(transport))
                self._per_loop[loop] = carrier
            self._latest = (loop, carrier)
        return carrier

    def _tls(self) -> ssl.SSLContext:
        # Made at the first use: reading all the authorities takes longer than a hundred requests.
        with self._tls_lock:
            if self._ssl_context is None:
                self._ssl_context = httpx.create_ssl_context()
            return self._ssl_context

    def __repr__(self) -> str:
        return f"EgressTransport({self._policy!r})"


def _implementation(backend: Backend) -> type[SocketTransport | HttpcoreTransport]:
    if backend == "asyncio":
        from webhook_adapter.egress.socket_transport import SocketTransport

        return SocketTransport
    from webhook_adapter.egress.httpcore_transport import HttpcoreTransport

    return HttpcoreTransport


def _running_loop() -> tuple[Backend, object]:
    import asyncio

    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    if task is not None:
        return "asyncio", task.get_loop()
    # In trio's guest mode an asyncio loop is running too, but no task of it.
    trio = sys.modules.get("trio")
    if trio is None:
        raise RuntimeError("a transport is used from within asyncio or trio")
    return "trio", trio.lowlevel.current_trio_token()
