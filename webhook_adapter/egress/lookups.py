"""Judged answers of a resolver, shared by all who ask at the same time and kept for a while after.

Theory of operation. A thousand attempts to one host ask for its name once. Whoever asks first starts a task, and all
others wait for the same one; each may leave when it likes, and the last one to leave takes the task with it, so that a
lookup that hangs is not what the next one waits for.

Rules of this module: only answers are kept, never errors. It knows asyncio alone, and no socket.
"""

from __future__ import annotations

import asyncio
from typing import TypeAlias

import attrs

from webhook_adapter.egress.errors import DnsError
from webhook_adapter.egress.resolving import Judge, Resolver, resolve_judged

__all__ = ["KEPT_SECONDS", "Lookups"]

_Key: TypeAlias = "tuple[str, int, Judge]"

# Short enough that a receiver which moves is followed, even where its name server says less.
KEPT_SECONDS = 10.0


@attrs.frozen
class _Known:
    addresses: tuple[str, ...]
    until: float


@attrs.define(eq=False)
class _Asking:
    task: asyncio.Task[tuple[str, ...]]
    waiting: int = 0


class Lookups:
    """What one event loop knows of names."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._loop = asyncio.get_running_loop()
        self._known: dict[_Key, _Known] = {}
        self._asking: dict[_Key, _Asking] = {}

    async def resolve(self, host: str, port: int, judge: Judge) -> tuple[str, ...]:
        """Return the addresses of `host`, each of which `judge` has let pass.

        A checkpoint unless they are known. A cancellation leaves the lookup to the others who wait for it.

        Raises:
            AddressRefusedError: at least one address may not be connected to.
            DnsError: there is no address, or `close` was called.
        """
        key = host, port, judge
        known = self._known.get(key)
        if known is not None and self._loop.time() < known.until:
            return known.addresses
        asking = self._asking.get(key) or self._ask(key)
        asking.waiting += 1
        try:
            await asyncio.wait((asking.task,))
        finally:
            asking.waiting -= 1
            if not asking.waiting and not asking.task.done():
                asking.task.cancel()
                self._forget(key, asking)
        if asking.task.cancelled():
            raise DnsError(f"the host {host} could not be resolved: the lookup was given up")
        return asking.task.result()

    def close(self) -> None:
        """Forget everything, and ask no more: who waits gets an error."""
        self._known.clear()
        for asking in self._asking.values():
            asking.task.cancel()

    def _ask(self, key: _Key) -> _Asking:
        asking = _Asking(self._loop.create_task(resolve_judged(self._resolver, *key)))
        asking.task.add_done_callback(lambda _: self._answered(key, asking))
        self._asking[key] = asking
        return asking

    def _answered(self, key: _Key, asking: _Asking) -> None:
        self._forget(key, asking)
        task = asking.task
        if not task.cancelled() and task.exception() is None:
            now = self._loop.time()
            self._known = {each: known for each, known in self._known.items() if now < known.until}
            self._known[key] = _Known(task.result(), now + KEPT_SECONDS)

    def _forget(self, key: _Key, asking: _Asking) -> None:
        # By now somebody may have asked anew.
        if self._asking.get(key) is asking:
            del self._asking[key]
