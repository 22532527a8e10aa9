"""asyncio in one thread among several under a schedule: a loop that waits for the other threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from resilience.testing.runs import AbandonedError
from resilience.testing.seeded_asyncio import SeededLoop

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from resilience.testing.runs import Recorder
    from resilience.testing.virtual_time import VirtualTime

    Park: TypeAlias = Callable[[Callable[[], bool], int | None, Callable[[], str]], bool]

__all__ = ["run"]


def run(main: Callable[[], Awaitable[object]], recorder: Recorder, time: VirtualTime, park: Park) -> None:
    """Run an async function to its end in the calling thread."""
    ThreadLoop(recorder, time, park).run(main)


class ThreadLoop(SeededLoop):
    """A seeded loop that waits for other threads, where one that is alone would be in a deadlock.

    Only `call_soon_threadsafe` may be called by these: to what else they call a real loop that sleeps would not wake.
    """

    def __init__(self, recorder: Recorder, time: VirtualTime, park: Park) -> None:
        super().__init__(recorder, time, starving=False)
        self._park = park

    def call_soon(self, callback: Callable[..., object], *args: object, context: object = None) -> asyncio.Handle:
        """Call back soon; RuntimeError in another thread."""
        self._check_thread()  # type: ignore[attr-defined]
        return super().call_soon(callback, *args, context=context)  # type: ignore[arg-type]

    def call_at(
        self, when: float, callback: Callable[..., object], *args: object, context: object = None
    ) -> asyncio.TimerHandle:
        """Call back then; RuntimeError in another thread."""
        self._check_thread()  # type: ignore[attr-defined]
        return super().call_at(when, callback, *args, context=context)  # type: ignore[arg-type]

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: object, context: object = None
    ) -> asyncio.Handle:
        """Call back soon, whoever asks."""
        return super().call_soon(callback, *args, context=context)  # type: ignore[arg-type]

    def call_exception_handler(self, context: dict[str, object]) -> None:
        """Tell what was raised in a callback, unless the run is over."""
        if not isinstance(context.get("exception"), AbandonedError):
            super().call_exception_handler(context)

    def _wait(self, due_ns: int | None) -> None:
        self._park(lambda: bool(self._ready), due_ns, self.who_waits)  # type: ignore[attr-defined]
