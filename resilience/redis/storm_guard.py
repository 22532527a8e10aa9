"""RedisStormGuard: one sliding window for all processes, on the server's time.

Rules of this module: the window and the storm are in `lua/storm_guard.lua`, which obeys the laws of
`machines.sliding_window` and `machines.fairness`. A storm is announced once, by the process whose event began it, or
was the first to come after its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs

from resilience import LayerKind, Permit, RejectedError, StormError, StormGuard
from resilience.clock import nanoseconds, seconds
from resilience.events import StormEnded, StormStarted, calls_for
from resilience.machines.checks import instance, string, whole_number
from resilience.redis.link import Request
from resilience.redis.scripts import script
from resilience.redis.shared import SharedGuard, SharedStatistics
from resilience.redis.store import RedisStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from resilience.redis.link import Reply, Script
    from resilience.redis.shared import OnStoreError

__all__ = ["RedisStormGuard", "SharedStormStatistics"]


@attrs.frozen(kw_only=True)
class SharedStormStatistics(SharedStatistics):
    """A snapshot of what a shared storm guard decided in this process.

    `over_share` counts how often there was room in the window, but the key had had its share. `storms` counts those
    that began with an event of this process; `in_storm` says whether one goes on, as far as this process knows.
    """

    over_share: int = 0
    storms: int = 0
    in_storm: bool = False


class _Take(Request):
    """What asks for an event's place in the window."""

    __slots__ = ("guard", "key", "priority")

    def __init__(self, guard: RedisStormGuard, key: str | None, priority: int) -> None:
        self.key = key
        self.priority = priority
        keys = guard._keys if key is None else guard._keys_with(key)  # noqa: SLF001 - one class in parts
        super().__init__(guard.script, keys, guard._asking(priority), undo=self._take_back)  # noqa: SLF001
        self.guard = guard

    def _take_back(self, reply: Reply | None) -> None:
        if reply is not None and int(reply[0]) == 1:
            self.guard._tell(self.keys, "take_back", 0, int(reply[3]))  # noqa: SLF001 - as above


class RedisStormGuard(SharedGuard[StormGuard]):
    """Admit at most `max_events` in any closed interval of `window_size` seconds, in all processes together.

    Guards of one name and store share their window; all of them should have the same terms. Time is the server's, in
    microseconds.

    Args:
        store: where the window is.
        window_size: the length of the window in seconds, closed at both ends: an event exactly that old still counts.
        max_events: events admitted in any such window.
        name: what the guards have in common that share this window, and what errors and events call it.
        calm_ratio: the share of `max_events`, or of what `reserve` leaves of it to everybody, below which the window
            is calm.
        hold_for: for how many seconds it must have been calm until a storm is over.
        key_share: the most of the window that one key may take, above 0 and at most 1.
        reserve: shares of the window that are kept for events of a priority above 0, above 1, and so on.
        on_store_error: "local": without the server, a guard of the same terms in each process takes over; "admit":
            every event passes; "reject": none does.

    Example:
        >>> from resilience.redis import RedisStormGuard, RedisStore
        >>> guard = RedisStormGuard(RedisStore("redis://localhost"), window_size=60.0, max_events=1000, name="imports")
        >>> guard.in_storm
        False

    """

    __slots__ = ("_bounds", "_known", "_over_share", "_quota", "_storms", "_terms")

    kind = LayerKind.STORM_GUARD
    hears_success = False
    error: ClassVar[type[RejectedError]] = StormError
    script: ClassVar[Script] = script("storm_guard")

    def __init__(
        self,
        store: RedisStore,
        window_size: float = 60.0,
        max_events: int = 1000,
        *,
        name: str,
        calm_ratio: float = 0.5,
        hold_for: float = 0.0,
        key_share: float = 1.0,
        reserve: Iterable[float] = (),
        on_store_error: OnStoreError = "local",
    ) -> None:
        instance("store", store, RedisStore)
        local = StormGuard(
            window_size,
            max_events,
            name=name,
            calm_ratio=calm_ratio,
            hold_for=hold_for,
            key_share=key_share,
            reserve=reserve,
            clock=store.clock,
        )
        super().__init__(store, name, on_store_error, "storm", local)
        self._keys = (*self._keys, f"{self._keys[0]}:storm")
        # The local guard has checked and worked out all of this.
        window, shares = local._window, local._shares  # noqa: SLF001
        self._terms = (window.window_ns // 1_000, max_events, window.calm, nanoseconds(hold_for) // 1_000)
        self._bounds = tuple(bound or max_events for bound in local._bounds)  # noqa: SLF001
        self._quota = max_events if shares is None else shares.quota
        self._over_share = self._storms = 0
        now_ns = self.clock.monotonic_ns()
        # By this process's clock: when an event of no key is admitted again, and when the storm is over.
        self._known = (now_ns, now_ns)

    @property
    def window_size(self) -> float:
        """The length of the window in seconds."""
        return self._local.window_size

    @property
    def max_events(self) -> int:
        """Events admitted in any window."""
        return self._local.max_events

    @property
    def calm_ratio(self) -> float:
        """The share below which the window is calm."""
        return self._local.calm_ratio

    @property
    def hold_for(self) -> float:
        """For how many seconds it must have been calm."""
        return self._local.hold_for

    @property
    def key_share(self) -> float:
        """The most of the window that one key may take."""
        return self._local.key_share

    @property
    def reserve(self) -> tuple[float, ...]:
        """The shares that are kept for events of higher priority."""
        return self._local.reserve

    @property
    def in_storm(self) -> bool:
        """Whether there is a storm now, as far as this process knows."""
        return self.clock.monotonic_ns() < self._known[1]

    def retry_after(self) -> float:
        """Return in how many seconds an event of no key and of priority 0 is admitted, as far as this process knows."""
        return seconds(max(0, self._known[0] - self.clock.monotonic_ns()))

    async def should_process_event(self, key: str | None = None, priority: int = 0) -> bool:
        """Return whether to process the event that has just come; it counts if so. A checkpoint: one round trip.

        `key` says whose event it is; without one it takes its place in the window and nobody's share. `priority` is a
        whole number of at least 0. A cancellation meanwhile takes the event back, and goes on.
        """
        try:
            await self._ask(_Take(self, key, priority))
        except StormError:
            return False
        return True

    def statistics(self) -> SharedStormStatistics:
        """Return a frozen snapshot of what was decided in this process. Not a checkpoint; any thread."""
        local = self._local.statistics()
        return SharedStormStatistics(
            **attrs.asdict(super().statistics()),
            over_share=self._over_share + local.over_share,
            storms=self._storms + local.storms,
            in_storm=self.in_storm,
        )

    # -- what is asked, and what the answer says ----------------------------------------------------------------------

    def _keys_with(self, key: str) -> tuple[str, ...]:
        """Return the keys for an event of a key; it needs its own only where no key may take all of the window."""
        string("key", key)
        return self._keys if self._quota == self.max_events else (*self._keys, f"{self._keys[0]}:of:{key}")

    def _asking(self, priority: int) -> tuple[str | int, ...]:
        level = min(whole_number("priority", priority), len(self._bounds) - 1)
        return ("take", *self._terms, self._bounds[level], self._quota)

    def _request(self, cost: float) -> Request:  # noqa: ARG002 - every event weighs the same
        return _Take(self, None, 0)

    def _read(self, request: Request, reply: Reply) -> Permit:
        verdict, ready_us, over_us, now_us, began, ended, ago_us, refused = map(int, reply)
        now_ns = self.clock.monotonic_ns()
        of_all = isinstance(request, _Take) and request.key is None and not request.priority
        ready_ns = now_ns + ready_us * 1_000 if of_all else self._known[0]
        with self._section:
            # Less than no time for a storm that there is not.
            self._known = (ready_ns, now_ns + over_us * 1_000)
            self._admitted += verdict == 1
            self._over_share += verdict < 0
            self._storms += began
            if ended:
                event = StormEnded(guard=self.label, at_ns=(now_us - ago_us) * 1_000, refused=refused)
                self._announce(*calls_for(event))
            if began:
                self._announce(*calls_for(StormStarted(guard=self.label, at_ns=now_us * 1_000)))
        if verdict == 1:
            return Permit(self)
        raise self._refusal_in(ready_us * 1_000)

    def _announce(self, *calls: Callable[[], object]) -> None:
        if calls:
            self._events.put(*calls)

    def _admit_locally(self, request: Request) -> Permit:
        assert isinstance(request, _Take)  # noqa: S101 - a storm guard asks for nothing else
        permit = self._local.try_admit(request.key, request.priority)
        if permit is not None:
            return permit
        raise self.error(self.label, self._local.retry_after(request.key, request.priority))

    def __repr__(self) -> str:
        return f"<RedisStormGuard {self.name!r} on {self.store!r}>"
