"""The demonstration from its beginning to its end.

Rules of this module: it only arranges. The application's part is what an application would write: a service, a bus and
a handler; the rest starts and ends processes and asks the receivers what they have seen. It ends by itself: what has
not been delivered within `give_up_after` is accounted for as it is, and counts as lost.
"""

from __future__ import annotations

import collections
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread
import attrs
import httpx

from webhook_adapter import Delivery, DeliveryState, Endpoint, EventBus, WebhookEventHandler, WebhookService, new_secret
from webhook_adapter.demo.accounts import Account, draw_up, read_records
from webhook_adapter.demo.children import Child, ChildError, running
from webhook_adapter.demo.events import Event, SourcedEvents, real_events, storm
from webhook_adapter.demo.scene import PARTS, RATE, delivery_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from webhook_adapter import Message
    from webhook_adapter.demo.display import Display

__all__ = ["DemoError", "run_demo"]

_PUBLISHERS = 64
_PAGE = 2_000
_LOOK_EVERY = 0.1
_ASK_WITHIN = 10.0

_Record = TypeVar("_Record", "Message", Delivery)


class DemoError(Exception):
    """The demonstration could not be held; the message says why."""


async def run_demo(
    *, events: int = 10_000, display: Display, give_up_after: float = 60.0, root: Path | None = None
) -> Account:
    """Hold the demonstration and return its account. A checkpoint; a cancellation ends every process of it.

    Args:
        events: how many the storm has.
        display: told of what happens.
        give_up_after: seconds after which whatever is still on its way is accounted for as lost. Far more than it
            takes, so that only a hang or a very slow machine gets there.
        root: the folder whose history the real events are read from; None is that of the package.

    Raises:
        ValueError: `events` is no whole number of at least 1, or `give_up_after` is no positive number.
        DemoError: one of its processes ended by itself.
    """
    if isinstance(events, bool) or not isinstance(events, int) or events < 1:
        raise ValueError(f"events must be a whole number of at least 1, not {events!r}")
    if isinstance(give_up_after, bool) or not 0 < give_up_after < float("inf"):
        raise ValueError(f"give_up_after must be a positive number of seconds, not {give_up_after!r}")
    began = time.monotonic()
    sourced = await anyio.to_thread.run_sync(lambda: real_events(root=root))
    try:
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="webhook-adapter-demo-"))
            stack.enter_context(display)
            secret = new_secret()
            receivers = await stack.enter_async_context(_receivers(secret))
            service = await stack.enter_async_context(
                WebhookService(folder, settings=delivery_settings(), dispatch=False)
            )
            run = _Run(folder, service, receivers, display, secret, sourced, began + give_up_after)
            # Every wait inside ends at the deadline; this one ends what cannot be waited for.
            with anyio.fail_after(2 * give_up_after):
                return await run.play(events, began=began)
    except* ChildError as group:
        raise DemoError(str(_first(group))) from None
    except* TimeoutError:
        raise DemoError(f"the demonstration did not come to its end within {2 * give_up_after:g} s") from None
    except* httpx.HTTPError as group:
        raise DemoError(f"the receivers' process cannot be asked: {_first(group)}") from None


@attrs.define(eq=False)
class _Receivers:
    """The receivers' process, and what it can be asked."""

    child: Child
    client: httpx.AsyncClient
    url: str = ""

    async def ready(self) -> None:
        """Wait until they listen, and note where. A checkpoint."""
        self.url = str((await self.child.line())["url"])

    async def records(self, *, messages: bool) -> Mapping[str, object]:
        response = await self.client.get(f"{self.url}__records__", params={} if messages else {"messages": "0"})
        described: Mapping[str, object] = response.raise_for_status().json()
        return described

    async def accepted(self) -> dict[str, int]:
        """Return how many messages each receiver has answered with 2xx."""
        paths = (await self.records(messages=False))["paths"]
        if not isinstance(paths, dict):
            raise ChildError("the receivers' process keeps records that cannot be read")
        return {part.name: int(paths.get(part.path, {}).get("accepted", 0)) for part in PARTS}

    async def switch(self, path: str, mode: str) -> None:
        response = await self.client.post(f"{self.url}__mode__", json={"path": path, "mode": mode})
        response.raise_for_status()


@asynccontextmanager
async def _receivers(secret: str) -> AsyncIterator[_Receivers]:
    modes = [argument for part in PARTS for argument in ("--mode", f"{part.path}={part.mode}")]
    module = "webhook_adapter.demo.receiving"
    async with (
        running("receivers'", module, "--port", "0", "--secret", secret, *modes) as child,
        # A proxy of the environment has no business between two processes of one machine.
        httpx.AsyncClient(trust_env=False, timeout=_ASK_WITHIN) as client,
    ):
        yield _Receivers(child, client)


@attrs.define(eq=False)
class _Run:
    """One demonstration."""

    folder: str
    service: WebhookService
    receivers: _Receivers
    display: Display
    secret: str
    sourced: SourcedEvents
    deadline: float
    published: list[Event] = attrs.field(factory=list)
    endpoints: dict[str, Endpoint] = attrs.field(factory=dict)
    transitions: collections.Counter[str] = attrs.field(factory=collections.Counter)
    kills: int = 0

    async def play(self, events: int, *, began: float) -> Account:
        bus = EventBus()
        handler = WebhookEventHandler(self.service, bus, rate=RATE)
        # Most of a start is importing libraries, so both processes do it at the same time.
        async with self._delivery(meanwhile=self._register):
            self._tell(f"{len(self.sourced.events)} real events: {self.sourced.source}")
            await self._publish(bus, self.sourced.events)
            self._tell(f"a storm of {events:,} events")
            storming = tuple(storm(events, first=len(self.sourced.events)))
            self._expect((*self.sourced.events, *storming))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._publish, bus, storming)
                # The real events went to every receiver; half of what the storm adds is half way.
                await self._until(lambda accepted: accepted["healthy"] >= len(self.sourced.events) + events // 2)
        self.kills += 1
        async with self._delivery():
            self._tell("the delivery process is running again, on the same data directory")
            await self._until(self._all_but_dead)
            died = await self._wait_for_the_dead()
            await self.receivers.switch("/dead", "healthy")
            self._tell(f"{len(died)} deliveries are dead; their receiver is healthy again, and they are retried")
            revived = await self.service.retry_failed_deliveries()
            await self._until(lambda accepted: all(accepted[name] >= wanted for name, wanted in self._wanted().items()))
            await self._settled()
        return await self._account(handler, died=died, revived=revived, elapsed=time.monotonic() - began)

    async def _register(self) -> None:
        await self.receivers.ready()
        for part in PARTS:
            self.endpoints[part.name] = await self.service.register_endpoint(
                self.receivers.url + part.name, event_types=part.event_types, secret=self.secret
            )

    def _tell(self, sentence: str) -> None:
        self.display.say(sentence)

    def _expect(self, events: Sequence[Event]) -> None:
        self.display.expect(
            {name: sum(endpoint.wants(event.type) for event in events) for name, endpoint in self.endpoints.items()}
        )

    def _wanted(self) -> dict[str, int]:
        """Return how many of the events published so far each endpoint subscribes to."""
        kinds = collections.Counter(event.type for event in self.published)
        return {
            name: sum(count for kind, count in kinds.items() if endpoint.wants(kind))
            for name, endpoint in self.endpoints.items()
        }

    # -- the delivery process ---------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _delivery(self, *, meanwhile: Callable[[], Awaitable[None]] | None = None) -> AsyncIterator[None]:
        """Run a delivery process; the first is killed on leaving, the second is asked to end."""
        async with running("delivery", "webhook_adapter.demo.delivering", self.folder) as child:
            if meanwhile is not None:
                await meanwhile()
            await child.line()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._hear, child)
                yield
                tasks.cancel_scope.cancel()
            if not self.kills:
                await child.kill()
                self._tell("half way: the delivery process is killed with SIGKILL")

    async def _hear(self, child: Child) -> None:
        while True:
            told = await child.line()
            self.transitions[f"{told['old']} -> {told['new']}"] += 1

    # -- publishing and waiting -------------------------------------------------------------------------------------

    async def _publish(self, bus: EventBus, events: Sequence[Event]) -> None:
        """Publish events as many tasks of an application would; each is durable when its `publish` returns."""
        remaining = iter(events)

        async def publisher() -> None:
            for event in remaining:
                await bus.publish(event.type, event.payload)
                self.published.append(event)

        async with anyio.create_task_group() as tasks:
            for _ in range(_PUBLISHERS):
                tasks.start_soon(publisher)

    async def _until(self, done: Callable[[Mapping[str, int]], bool]) -> None:
        """Wait until the receivers' records say so, or the time is up."""
        while True:
            accepted = await self.receivers.accepted()
            self.display.progress(accepted)
            if done(accepted) or time.monotonic() >= self.deadline:
                return
            await anyio.sleep(_LOOK_EVERY)

    def _all_but_dead(self, accepted: Mapping[str, int]) -> bool:
        wanted = self._wanted()
        return accepted["healthy"] >= wanted["healthy"] and accepted["slow"] >= wanted["slow"]

    async def _wait_for_the_dead(self) -> frozenset[str]:
        """Wait until nothing is on its way any more, and return the ids of what is dead."""
        await self._settled()
        dead = await self._pages(
            lambda after: self.service.list_deliveries(state=DeliveryState.DEAD, limit=_PAGE, after=after)
        )
        return frozenset(delivery.id for delivery in dead)

    async def _settled(self) -> None:
        """Wait until the store has nothing pending or leased, or the time is up."""
        while time.monotonic() < self.deadline:
            counted = await self.service.store_statistics()
            if not counted.pending and not counted.leased:
                break
            self.display.progress(await self.receivers.accepted())
            await anyio.sleep(_LOOK_EVERY)

    # -- the account ------------------------------------------------------------------------------------------------

    async def _account(
        self, handler: WebhookEventHandler, *, died: frozenset[str], revived: int, elapsed: float
    ) -> Account:
        described = await self.receivers.records(messages=True)
        unverified = described["unverified"]
        messages: list[Message] = await self._pages(lambda after: self.service.list_messages(limit=_PAGE, after=after))
        deliveries: list[Delivery] = await self._pages(
            lambda after: self.service.list_deliveries(limit=_PAGE, after=after)
        )
        return draw_up(
            source=self.sourced.source,
            published=self.published,
            messages=messages,
            endpoints=self.endpoints,
            deliveries=deliveries,
            died=died,
            seen={part.name: read_records(described, part.path) for part in PARTS},
            unverified=unverified if isinstance(unverified, int) else 0,
            breaker_transitions=dict(sorted(self.transitions.items())),
            limiter_hits=handler.limiter.statistics().rejected,
            storm_hits=handler.storm.statistics().rejected,
            revived=revived,
            kills=self.kills,
            elapsed=elapsed,
        )

    async def _pages(self, fetch: Callable[[str | None], Awaitable[list[_Record]]]) -> list[_Record]:
        """Return everything that a listing has, page by page."""
        found: list[_Record] = []
        while page := await fetch(found[-1].id if found else None):
            found += page
        return found


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error in a group, however deep."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
