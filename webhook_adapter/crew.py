"""A crew: tasks that take one job after the other.

Theory of operation. A task in a task group costs ten times what it costs to wake one that waits. So whoever has done a
job waits for the next, and a new task begins only when none is waiting.

Rules of this module: jobs run at once, as many as there are; how many may is for whoever gives them to say. What a job
raises ends the task group, as it would from a task of its own. It knows nothing of what the jobs are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilience.parking import async_waiter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

    from resilience import Clock
    from resilience.parking import TaskWaiter

    Job = Callable[[], Awaitable[None]]

__all__ = ["Crew"]


class Crew:
    """Tasks of one task group. Used in its event loop only."""

    def __init__(self, tasks: TaskGroup, clock: Clock) -> None:
        self._tasks = tasks
        self._clock = clock
        self._waiting: list[_Hand] = []
        self._dismissed = False

    def start(self, job: Job) -> None:
        """Have a job done, beginning in the next turn of the event loop. Not a checkpoint."""
        if self._waiting:
            hand = self._waiting.pop()
            hand.job = job
            hand.waiter.wake()
        else:
            self._tasks.start_soon(self._work, job)

    def dismiss(self) -> None:
        """End the tasks that have no job, and the others when they have done theirs."""
        self._dismissed = True
        for hand in self._waiting:
            hand.waiter.wake()

    async def _work(self, job: Job) -> None:
        hand = _Hand(async_waiter())
        while True:
            await job()
            self._waiting.append(hand)
            while hand.job is None:
                if self._dismissed:
                    self._waiting.remove(hand)
                    return
                await hand.waiter.wait(self._clock, None)
            job, hand.job = hand.job, None


class _Hand:
    """One task of a crew."""

    __slots__ = ("job", "waiter")

    def __init__(self, waiter: TaskWaiter) -> None:
        self.waiter = waiter
        self.job: Job | None = None
