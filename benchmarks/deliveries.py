"""Durable deliveries per second, end to end, beside two loops that only post.

Three ways of getting the same events to one receiver, which runs in a process of its own, 50 in flight at a time:

* the service: every event is accepted in a committed transaction on SQLite on disk, leased, sent under its endpoint's
  guards, and its outcome committed. What is timed is from the first event accepted to the last delivery recorded;
* bare transport: a loop over the same transport, posting bodies that were signed before the time began;
* bare httpx: a loop over `httpx.AsyncClient`, posting the same signed bodies.

They take turns in one run, in short rounds, and the best round of each counts: what slows the machine for a while
slows all three. (It does favour the bare loops: they keep nothing, sign nothing and record nothing.)
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import anyio
import attrs
import httpx

from webhook_adapter import Settings, WebhookService, sign
from webhook_adapter.egress import EgressPolicy, default_transport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from webhook_adapter.model import JsonValue

__all__ = ["IN_FLIGHT", "Contender", "Rate", "contenders", "exceeded", "measure", "receiver_process", "table"]

IN_FLIGHT = 50
LOOPBACK = ("127.0.0.0/8",)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - the specification's example
EVENT_TYPE = "order.paid"

Posting: TypeAlias = "Callable[[int], Awaitable[None]]"
Post: TypeAlias = tuple[bytes, dict[str, str]]
T = TypeVar("T")


@attrs.frozen
class Contender:
    """A way to deliver: `run(count)` delivers so many events; `count` is how many make a round of it."""

    name: str
    run: Posting
    count: int
    at_least: float = 0.0
    """The multiple of this one's rate that the service is to reach; 0 where there is no target."""


@attrs.frozen
class Rate:
    """How a contender did: deliveries a second in its best round, and the service's rate as a multiple of that."""

    name: str
    per_second: float
    service_multiple: float
    at_least: float = 0.0


@contextlib.contextmanager
def receiver_process() -> Iterator[str]:
    """Run a healthy receiver in another process, and give its URL."""
    program = [sys.executable, "-m", "webhook_adapter.testing.receiver", "--port", "0"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield str(json.loads(process.stdout.readline())["url"])
        finally:
            process.terminate()
            process.communicate()


def data_of(number: int) -> dict[str, JsonValue]:
    """Return the data of an event: small, as most are."""
    return {"order": number, "total": "19.90", "currency": "EUR", "customer": "cus_8831", "lines": [1, 2, 3]}


def signed_posts(count: int) -> list[Post]:
    """Return the bodies and headers of `count` posts, signed now."""
    now = int(time.time())
    posts = []
    for number in range(count):
        event = {"type": EVENT_TYPE, "timestamp": "2026-01-01T00:00:00.000000Z", "data": data_of(number)}
        body = json.dumps(event, separators=(",", ":")).encode()
        headers = {"Content-Type": "application/json", **sign(f"msg_{number:026}", now, body, [SECRET])}
        posts.append((body, headers))
    return posts


POSTS = signed_posts(2_000)


async def in_flight(items: Iterator[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Run `work` on every item, `IN_FLIGHT` at a time, each worker taking the next item as soon as it is free."""

    async def worker() -> None:
        for item in items:
            await work(item)

    async with anyio.create_task_group() as group:
        for _ in range(IN_FLIGHT):
            group.start_soon(worker)


@contextlib.asynccontextmanager
async def bare_transport(url: str) -> AsyncIterator[Posting]:
    """Give the loop over the transport that the service uses by default."""
    target = httpx.URL(url)
    host = target.netloc

    async with default_transport(EgressPolicy(allow=LOOPBACK)) as transport:

        async def post(item: tuple[bytes, list[tuple[bytes, bytes]]]) -> None:
            body, headers = item
            request = httpx.Request(
                "POST",
                target,
                headers=[(b"Host", host), (b"Content-Length", b"%d" % len(body)), *headers],
                stream=httpx.ByteStream(body),
            )
            response = await transport.handle_async_request(request)
            try:
                await response.aread()
            finally:
                await response.aclose()
            assert response.status_code == httpx.codes.OK

        async def run(count: int) -> None:
            prepared = [
                (body, [(name.encode(), value.encode()) for name, value in headers.items()])
                for body, headers in POSTS[:count]
            ]
            await in_flight(iter(prepared), post)

        yield run


@contextlib.asynccontextmanager
async def bare_httpx(url: str) -> AsyncIterator[Posting]:
    """Give the loop over httpx's own client as it comes, kept for the whole run."""
    async with httpx.AsyncClient(trust_env=False) as client:

        async def post(item: Post) -> None:
            body, headers = item
            response = await client.post(url, content=body, headers=headers)
            assert response.status_code == httpx.codes.OK

        async def run(count: int) -> None:
            await in_flight(iter(POSTS[:count]), post)

        yield run


@contextlib.asynccontextmanager
async def service(url: str, data_dir: Path) -> AsyncIterator[Posting]:
    """Give the service on a database in `data_dir`, with one endpoint that takes `IN_FLIGHT` at a time."""
    settings = Settings(
        allow_http=True, egress_allow=LOOPBACK, max_concurrent=2 * IN_FLIGHT, endpoint_max_concurrent=IN_FLIGHT
    )
    async with WebhookService(data_dir, settings=settings) as running:
        await running.register_endpoint(url, secret=SECRET)

        async def send(number: int) -> None:
            await running.send_webhook_notification(EVENT_TYPE, data_of(number))

        async def run(count: int) -> None:
            await in_flight(iter(range(count)), send)
            await running.wait_until_idle()

        yield run


def _scratch() -> Path:
    # In the checkout rather than under /tmp, which may be memory: durability is to cost what it costs.
    scratch = Path(".benchmarks")
    scratch.mkdir(exist_ok=True)
    return Path(tempfile.mkdtemp(dir=scratch))


@contextlib.asynccontextmanager
async def contenders(*, scale: float = 1.0) -> AsyncIterator[list[Contender]]:
    """Start the receiver and give the three, the service first; `scale` makes their rounds shorter or longer."""
    folder = _scratch()
    try:
        with receiver_process() as url:
            async with (
                service(url, folder) as durable,
                bare_transport(url) as transport,
                bare_httpx(url) as client,
            ):
                yield [
                    Contender("service, durable end to end", durable, round(1_000 * scale)),
                    Contender("bare transport", transport, round(1_000 * scale), at_least=0.5),
                    Contender("bare httpx.AsyncClient", client, round(150 * scale), at_least=10.0),
                ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def measure(entrants: list[Contender], *, rounds: int = 5) -> list[Rate]:
    """Let the contenders take turns, and return their best rates, the service's first."""
    best = [0.0] * len(entrants)
    for entrant in entrants:
        # The first round opens the connections.
        await entrant.run(IN_FLIGHT)
    for _ in range(rounds):
        for index, entrant in enumerate(entrants):
            started = time.perf_counter()
            await entrant.run(entrant.count)
            best[index] = max(best[index], entrant.count / (time.perf_counter() - started))
    return [
        Rate(entrant.name, rate, best[0] / rate, entrant.at_least) for entrant, rate in zip(entrants, best, strict=True)
    ]


def exceeded(rates: list[Rate]) -> list[Rate]:
    """Return those against whom the service missed its target."""
    return [rate for rate in rates if rate.service_multiple < rate.at_least]


def table(rates: list[Rate]) -> str:
    """Lay the rates out in columns; a target that was missed is marked."""
    width = max(len(rate.name) for rate in rates)
    lines = [
        f"{'deliveries, ' + str(IN_FLIGHT) + ' in flight':<{width}}  {'per s':>8}  {'service x':>9}  {'target':>6}"
    ]
    for rate in rates:
        target = f"{rate.at_least:g}" if rate.at_least else ""
        mark = "  MISSED" if rate in exceeded(rates) else ""
        row = f"{rate.name:<{width}}  {rate.per_second:>8.0f}  {rate.service_multiple:>9.2f}  {target:>6}{mark}"
        lines.append(row.rstrip())
    return "\n".join(lines)
