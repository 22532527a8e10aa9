"""Trio in one thread among several under a schedule: a scheduler that waits for the other threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import trio._core._run as trio_run

from resilience.testing.runs import AbandonedError, let_in
from resilience.testing.seeded_trio import Scheduler, in_charge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from resilience.testing.runs import Recorder
    from resilience.testing.virtual_time import VirtualTime

    Park: TypeAlias = Callable[[Callable[[], bool], int | None, Callable[[], str]], bool]

__all__ = ["in_charge", "run"]


def run(main: Callable[[], Awaitable[object]], recorder: Recorder, time: VirtualTime, park: Park) -> None:
    """Run an async function to its end in the calling thread. Whoever starts such threads is `in_charge`."""
    # Trio needs a socket to be woken by; once it has that, the scheduler shuts the doors again.
    with let_in():
        ThreadScheduler(recorder, time, park).run(main)


class ThreadScheduler(Scheduler):
    """A scheduler that waits for other threads, where one that is alone would be in a deadlock."""

    def __init__(self, recorder: Recorder, time: VirtualTime, park: Park) -> None:
        super().__init__(recorder, time, starving=False)
        self._park = park

    def _wait(self, due_ns: int | None) -> None:
        queue = trio_run.GLOBAL_RUN_CONTEXT.runner.entry_queue
        try:
            # Calls from other threads are queued there; they wake trio through its own pipe, which it looks at next.
            self._park(lambda: bool(queue.queue or queue.idempotent_queue), due_ns, self.who_waits)
        except AbandonedError as abandoned:
            self._give_up(abandoned)
