"""A crew does the jobs that it is given, each in a task that goes on to the next."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from resilience import SystemClock
from webhook_adapter.crew import Crew

pytestmark = pytest.mark.anyio


async def test_jobs_run_at_once_and_their_tasks_are_used_again() -> None:
    """As many run as there are; what comes after they have ended is done by the tasks that wait."""
    names: list[set[int]] = []
    async with anyio.create_task_group() as tasks:
        crew = Crew(tasks, SystemClock())
        for _ in range(2):
            here: set[int] = set()
            gate, ended = anyio.Event(), anyio.Event()

            async def job(here: set[int] = here, gate: anyio.Event = gate, ended: anyio.Event = ended) -> None:
                here.add(anyio.get_current_task().id)
                if len(here) == 3:
                    gate.set()
                await gate.wait()
                ended.set()

            for _ in range(3):
                crew.start(job)
            with anyio.fail_after(10):
                await ended.wait()
            await anyio.lowlevel.checkpoint()
            await anyio.wait_all_tasks_blocked()
            names.append(here)
        crew.dismiss()
    assert len(names[0]) == 3
    assert names[0] == names[1]


async def test_a_dismissed_crew_ends_with_its_last_job() -> None:
    """Who waits goes at once, who works goes when that is done, and nobody is left."""
    done: list[str] = []
    async with anyio.create_task_group() as tasks:
        crew = Crew(tasks, SystemClock())
        go = anyio.Event()

        async def quick() -> None:
            done.append("quick")
            await anyio.lowlevel.checkpoint()

        async def slow() -> None:
            await go.wait()
            done.append("slow")

        crew.start(slow)
        crew.start(quick)
        await anyio.wait_all_tasks_blocked()
        crew.dismiss()
        await anyio.wait_all_tasks_blocked()
        assert done == ["quick"]
        go.set()
    assert done == ["quick", "slow"]


async def test_what_a_job_raises_ends_the_task_group() -> None:
    """As from a task of its own, in a task that has done other jobs before."""

    async def fail() -> None:
        await anyio.lowlevel.checkpoint()
        raise LookupError("no more")

    async def nothing() -> None:
        await anyio.lowlevel.checkpoint()

    with pytest.RaisesGroup(LookupError):
        async with anyio.create_task_group() as tasks:
            crew = Crew(tasks, SystemClock())
            crew.start(nothing)
            await anyio.wait_all_tasks_blocked()
            crew.start(fail)
