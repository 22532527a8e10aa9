"""Several real processes that use one guard: what each sent and when, by the clock that the server goes by, too.

The server runs on this machine, so its clock is this machine's: what it decided, it decided between the instants at
which a process asked and was answered. Run as a program, this is one of the processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import attrs

from resilience import CircuitBreaker, RateLimiter, RejectedError, StormGuard
from resilience.redis import RedisCircuitBreaker, RedisRateLimiter, RedisStore, RedisStormGuard
from tests.resilience.redis.virtual import mutant

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from resilience import Guard

ROOT = Path(__file__).parent.parent.parent.parent


class CarelessBreaker(RedisCircuitBreaker):
    """A mutant that counts an outcome whatever has happened since its call was admitted."""

    script = mutant(
        RedisCircuitBreaker.script,
        "  if generation ~= c.generation then\n    return 0",
        "  if false then\n    return 0",
    )


MAKERS: dict[str, Callable[[RedisStore, dict[str, Any]], Guard]] = {
    "limiter": lambda store, terms: RedisRateLimiter(store, name="guard", **terms),
    "storm guard": lambda store, terms: RedisStormGuard(store, name="guard", **terms),
    "breaker": lambda store, terms: RedisCircuitBreaker(store, name="guard", **terms),
    "careless breaker": lambda store, terms: CarelessBreaker(store, name="guard", **terms),
    # What a process would have without a server: each its own.
    "local breaker": lambda _, terms: CircuitBreaker(**terms),
    "local storm guard": lambda _, terms: StormGuard(**terms),
    "local limiter": lambda _, terms: RateLimiter(**terms),
}


@attrs.frozen
class Call:
    """One call of one process, in nanoseconds of Unix time."""

    asked_at: int
    answered_at: int
    ran: bool
    ended_at: int = 0


class Process:
    """One process with one guard, which begins when it is told to."""

    def __init__(self, kind: str, url: str, prefix: str, **plan: Any) -> None:  # noqa: ANN401 - what JSON holds
        command = [sys.executable, "-m", "tests.resilience.redis.several", plan.pop("backend", "asyncio")]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.say(json.dumps({"kind": kind, "url": url, "prefix": prefix, **plan}))

    def say(self, line: str = "go") -> None:
        """Tell it something: first to begin, then, if its calls wait for that, to end a call."""
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)

    def hear(self) -> str:
        """Return its next line: that it is ready, that a call has begun, or all its calls."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def calls(self) -> list[Call]:
        """Wait until it is through, and return what it did."""
        return [Call(*call) for call in json.loads(self.hear())]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def run_several(kind: str, url: str, prefix: str, *, terms: dict[str, Any], plan: list[dict[str, Any]]) -> list[Call]:
    """Run a process for each entry of `plan`, let them begin together, and return all that they did."""
    with ExitStack() as stack:
        processes = [stack.enter_context(Process(kind, url, prefix, terms=terms, **entry)) for entry in plan]
        for process in processes:
            assert process.hear() == "ready"
        for process in processes:
            process.say()
        return [call for process in processes for call in process.calls()]


class Worker:
    """What such a process does: tasks that call a guard, for so long or so often."""

    def __init__(self, guard: Guard, plan: dict[str, Any]) -> None:
        self.guard = guard
        self.plan = plan
        self.calls: list[Call] = []
        self._failures = plan.get("fails", 0)

    async def run(self) -> None:
        """Call until the time is over, or until a call has succeeded."""
        end = time.monotonic() + self.plan.get("for", 0.0)

        async def keep_calling() -> None:
            while True:
                ended_well = await self._one()
                if time.monotonic() >= end or (ended_well and self.plan.get("until_good", False)):
                    return
                await anyio.sleep(self.plan.get("pause", 0.0))

        async with anyio.create_task_group() as group:
            for _ in range(self.plan.get("tasks", 1)):
                group.start_soon(keep_calling)

    async def _one(self) -> bool:
        asked_at = time.time_ns()
        answered_at: int | None = None
        ended_well = False

        async def measured() -> None:
            nonlocal answered_at
            answered_at = time.time_ns()
            await self._work()

        with suppress(RejectedError, ZeroDivisionError):
            await self.guard.call(measured)
            ended_well = True
        ended_at = time.time_ns()
        self.calls.append(Call(asked_at, answered_at or ended_at, ran=answered_at is not None, ended_at=ended_at))
        return ended_well

    async def _work(self) -> None:
        if self.plan.get("waits", False):
            _say("begun")
            await anyio.to_thread.run_sync(sys.stdin.readline)
        await anyio.sleep(self.plan.get("lasts", 0.0))
        if self._failures:
            self._failures -= 1
            raise ZeroDivisionError


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - this is how processes talk


async def _main() -> None:
    plan = json.loads(sys.stdin.readline())
    async with RedisStore(plan["url"], prefix=plan["prefix"], timeout=20.0) as store:
        worker = Worker(MAKERS[plan["kind"]](store, plan["terms"]), plan)
        _say("ready")
        sys.stdin.readline()
        await worker.run()
    # The store has told the server everything by now.
    _say(json.dumps([attrs.astuple(call) for call in worker.calls]))


if __name__ == "__main__":
    anyio.run(_main, backend=sys.argv[1])
