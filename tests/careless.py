"""Three libraries as one writes them in an afternoon: between them they fail every case of the conformance board.

`LOOSE` lets through what it should not, `STIFF` keeps what it should give back, `GREEDY` takes more than its turn. A
case that none of them fails could not fail at all.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from benchmarks.conformance.library import Breaker, Library, Limiter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from benchmarks.conformance.library import Circuit, Decorator, Function, PlainFunction

__all__ = ["GREEDY", "LOOSE", "STIFF"]


class RefusedError(Exception):
    """No admission."""


class ExpiredError(Exception):
    """The time is over."""


class LooseBreaker:
    """Believes every outcome, whoever brings it and whenever, and the wall clock."""

    def __init__(self, circuit: Circuit) -> None:
        self.circuit = circuit
        self.failures = 0
        self.opened_at: float | None = None
        self.refusal = RefusedError("open")

    def admit(self) -> None:
        if self.opened_at is not None and time.time() < self.opened_at + self.circuit.recovery:
            raise self.refusal

    def succeeded(self) -> None:
        self.failures, self.opened_at = 0, None

    def failed(self) -> None:
        self.failures += 1
        if self.failures >= self.circuit.failures:
            self.circuit.tell()
            if self.failures >= self.circuit.failures:
                self.opened_at = time.time()

    async def call(self, function: Function) -> object:
        self.admit()
        try:
            result = await function()
        except Exception:
            self.failed()
            raise
        except BaseException:
            self.succeeded()
            raise
        self.succeeded()
        return result

    def call_plainly(self, function: PlainFunction) -> object:
        self.admit()
        try:
            result = function()
        except Exception:
            self.failed()
            raise
        self.succeeded()
        return result


class StiffBreaker:
    """Takes one trial at a time, and waits for its outcome for ever."""

    def __init__(self, circuit: Circuit) -> None:
        self.circuit = circuit
        self.failures = 0
        self.until: float | None = None
        self.trying = False
        self.loop: asyncio.AbstractEventLoop | None = None

    def admit(self) -> None:
        loop = asyncio.get_running_loop()
        self.loop = self.loop or loop
        if self.loop is not loop:
            raise RuntimeError("bound to a different event loop")
        if self.until is None:
            return
        now = time.monotonic()
        if now < self.until:
            self.until = now + self.circuit.recovery
            raise RefusedError
        if self.trying:
            raise RefusedError
        self.trying = True

    def settle(self, error: BaseException | None) -> None:
        if error is None:
            if self.trying or self.until is None:
                self.failures, self.until, self.trying = 0, None, False
        elif not self.circuit.ignores(error):
            self.failures += 1
            if self.until is None and self.failures >= self.circuit.failures:
                self.until = time.monotonic() + self.circuit.recovery
            elif self.trying and isinstance(error, Exception):
                self.until, self.trying = time.monotonic() + self.circuit.recovery, False

    async def call(self, function: Function) -> object:
        self.admit()
        try:
            result = await function()
        except BaseException as error:
            self.settle(error)
            raise
        self.settle(None)
        return result

    def decorate(self, function: Callable[..., object]) -> Callable[..., object]:
        async def stream() -> AsyncIterator[object]:
            self.admit()
            items: Any = function()
            try:
                async for item in items:
                    yield item
            except Exception as error:
                self.settle(error)
                raise
            self.settle(None)

        return stream


class Bucket:
    """A token bucket without a bottom, and mostly without a brim, by the wall clock."""

    def __init__(self, calls: int, period: float, *, brim: float = math.inf) -> None:
        self.brim = brim
        self.tokens = float(calls)
        self.rate = calls / period
        self.at = time.time()

    def take(self, cost: int) -> bool:
        self.refill()
        if self.tokens < cost:
            return False
        self.tokens -= cost
        return True

    def refill(self) -> None:
        now = time.time()
        self.tokens = min(self.brim, self.tokens + (now - self.at) * self.rate)
        self.at = now


class TruncatingBucket(Bucket):
    """Counts whole tokens, and forgets the rest at every question."""

    def refill(self) -> None:
        now = time.time()
        self.tokens += int((now - self.at) * self.rate)
        self.at = now


def least_recent(make: Callable[[], Any], keys: int) -> Callable[[str], Any]:
    """Keep what is made for each key, until others have come."""
    made: OrderedDict[str, Any] = OrderedDict()

    def get(key: str) -> object:
        if key not in made:
            made[key] = make()
        made.move_to_end(key)
        if len(made) > keys:
            made.popitem(last=False)
        return made[key]

    return get


class StiffBulkhead:
    """Hands permits from one to the next, and does not look back."""

    def __init__(self, limit: int, queue: int, max_wait: float | None) -> None:
        self.free = limit
        self.room = queue
        self.max_wait = max_wait
        self.waiters: list[asyncio.Future[None]] = []
        self.loop: asyncio.AbstractEventLoop | None = None

    async def acquire(self) -> None:
        self.loop = self.loop or asyncio.get_running_loop()
        if self.free:
            self.free -= 1
            return
        if not self.room:
            raise RefusedError
        self.room -= 1
        waiter = self.loop.create_future()
        self.waiters.append(waiter)
        if self.max_wait is not None:
            self.loop.call_later(self.max_wait, waiter.cancel)
        await waiter
        self.room += 1

    def release(self) -> None:
        if not self.waiters:
            self.free += 1
        elif not (waiter := self.waiters.pop(0)).done():
            waiter.set_result(None)

    async def call(self, function: Function) -> object:
        try:
            await self.acquire()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise RefusedError from None
        try:
            result = await function()
        except Exception:
            self.release()
            raise
        self.release()
        return result


class LooseRetry:
    """One counter and one delay for everybody, and any reason will do."""

    def __init__(self, attempts: int, delay: float) -> None:
        self.left = attempts
        self.delay = delay
        self.retries = 0

    def once_more(self) -> bool:
        self.left -= 1
        return self.left > 0

    def __call__(self, function: Callable[..., object]) -> Callable[..., object]:
        return self.asynchronous(function) if inspect.iscoroutinefunction(function) else function

    def asynchronous(self, function: Callable[..., Awaitable[object]]) -> Callable[..., object]:
        async def retried(**kwargs: object) -> object:
            while True:
                try:
                    return await function(**kwargs)
                except BaseException:
                    if not self.once_more():
                        raise
                try:
                    self.retries += 1
                    await asyncio.sleep(min(60.0, self.delay * 2.0**self.retries))
                except asyncio.CancelledError:
                    continue

        return retried

    def plain(self, function: PlainFunction) -> PlainFunction:
        def retried() -> object:
            while True:
                try:
                    return function()
                except Exception:
                    if not self.once_more():
                        raise

        return retried


class Loose(Library):
    """Lets through what it should not."""

    def breaker(self, circuit: Circuit) -> Breaker:
        return Breaker(LooseBreaker(circuit).call, lambda function: function)

    def plain_breaker(self, circuit: Circuit) -> Callable[[PlainFunction], object]:
        return LooseBreaker(circuit).call_plainly

    def keyed_breaker(self, circuit: Circuit, *, keys: int) -> Callable[[str], Breaker]:
        get = least_recent(lambda: LooseBreaker(circuit), keys)
        return lambda key: Breaker(get(key).call)

    def limiter(self, *, calls: int, period: float) -> Limiter:
        bucket = Bucket(calls, period)

        async def try_acquire(cost: int) -> bool:
            bucket.refill()
            enough = bucket.tokens >= cost
            await asyncio.sleep(0)
            bucket.tokens -= cost if enough else 0
            return enough

        async def retry_after() -> float:
            return 0.5 / bucket.rate

        return Limiter(try_acquire, retry_after)

    def waiting_limiter(self, *, calls: int, period: float) -> Callable[[int], Awaitable[object]]:
        bucket = Bucket(calls, period)

        async def acquire(cost: int) -> None:
            if not bucket.take(cost):
                await asyncio.sleep(1.0)

        return acquire

    def plain_limiter(self, *, calls: int, period: float) -> Callable[[], bool]:
        return lambda: True

    def keyed_limiter(self, *, calls: int, period: float, keys: int) -> Callable[[str], Awaitable[bool]]:
        get = least_recent(lambda: Bucket(calls, period), keys)

        async def try_acquire(key: str) -> bool:
            return bool(get(key).take(1))

        return try_acquire

    def bulkhead(self, *, limit: int, queue: int = 0, max_wait: float | None = None) -> Breaker:
        return Breaker(lambda function: function(), lambda function: function)

    def retry(self, *, attempts: int) -> Decorator:
        return LooseRetry(attempts, 0.5)

    def plain_retry(self, *, attempts: int) -> Callable[[PlainFunction], PlainFunction]:
        return LooseRetry(attempts, 0.0).plain

    def timeout(self, *, seconds: float) -> Decorator:
        def decorate(function: Callable[..., Any]) -> Callable[..., object]:
            if not inspect.iscoroutinefunction(function):
                return function

            async def bounded() -> object:
                task = asyncio.ensure_future(function())
                try:
                    await asyncio.wait([task], timeout=seconds)
                except asyncio.CancelledError:
                    if not task.done():
                        raise ExpiredError from None
                if not task.done():
                    task.cancel()
                    raise ExpiredError
                try:
                    return task.result()
                except TimeoutError:
                    raise ExpiredError from None

            return bounded

        return decorate

    def hedge(self, *, delay: float) -> Decorator:
        def decorate(function: Callable[..., Any]) -> Callable[..., object]:
            async def hedged() -> object:
                attempts = [asyncio.ensure_future(function())]
                done, _ = await asyncio.wait(attempts, timeout=delay)
                if not done:
                    attempts.append(asyncio.ensure_future(function()))
                    done, _ = await asyncio.wait(attempts, return_when=asyncio.FIRST_COMPLETED)
                return done.pop().result()

            return hedged

        return decorate

    def fallback(self, *, answer: object) -> Decorator:
        def decorate(function: Callable[..., Any]) -> Callable[..., object]:
            async def answered() -> object:
                try:
                    return await function()
                except BaseException:  # noqa: BLE001 - that is its fault
                    return answer

            return answered

        return decorate


class Stiff(Library):
    """Keeps what it should give back."""

    def breaker(self, circuit: Circuit) -> Breaker:
        breaker = StiffBreaker(circuit)
        return Breaker(breaker.call, breaker.decorate)

    def plain_breaker(self, circuit: Circuit) -> Callable[[PlainFunction], object]:
        lock = threading.Lock()

        def call(function: PlainFunction) -> object:
            with lock:
                return function()

        return call

    def limiter(self, *, calls: int, period: float) -> Limiter:
        asyncio.get_running_loop()
        bucket = TruncatingBucket(calls, period)

        async def try_acquire(cost: int) -> bool:
            return bucket.take(cost)

        return Limiter(try_acquire)

    def waiting_limiter(self, *, calls: int, period: float) -> Callable[[int], Awaitable[object]]:
        bucket = Bucket(calls, period, brim=calls)
        waiting: list[object] = []

        async def acquire(cost: int) -> None:
            ticket = object()
            waiting.append(ticket)
            # The last to come is the first to be served.
            while waiting[-1] is not ticket or not bucket.take(cost):  # noqa: ASYNC110 - polling is its fault
                await asyncio.sleep(0.05)
            waiting.remove(ticket)

        return acquire

    def bulkhead(self, *, limit: int, queue: int = 0, max_wait: float | None = None) -> Breaker:
        return Breaker(StiffBulkhead(limit, queue, max_wait).call)

    def timeout(self, *, seconds: float) -> Decorator:
        ends_at: list[float] = []

        def decorate(function: Callable[..., Any]) -> Callable[..., object]:
            async def bounded() -> object:
                loop, task = asyncio.get_running_loop(), asyncio.current_task()
                assert task is not None
                ends_at.append(loop.time() + seconds)
                timer = loop.call_at(ends_at[0], task.cancel)
                try:
                    return await function()
                except asyncio.CancelledError:
                    raise ExpiredError from None
                finally:
                    timer.cancel()

            return bounded

        return decorate


class Greedy(Library):
    """Takes its turn, and keeps it."""

    def waiting_limiter(self, *, calls: int, period: float) -> Callable[[int], Awaitable[object]]:
        bucket = Bucket(calls, period)

        async def acquire(cost: int) -> None:
            bucket.refill()
            bucket.tokens -= cost
            await asyncio.sleep(max(0.0, -bucket.tokens / bucket.rate))

        return acquire


LOOSE = Loose()
STIFF = Stiff()
GREEDY = Greedy()
