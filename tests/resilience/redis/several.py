"""Several real processes that use one guard: what each sent and when, by the clock that the server goes by, too.

The server runs on this machine, so its clock is this machine's: what it decided, it decided between the instants at
which a process asked and was answered. Run as a program, this is one of the processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import attrs

from resilience import RateLimiter, RejectedError, StormGuard
from resilience.redis import RedisRateLimiter, RedisStore, RedisStormGuard

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience import Guard

ROOT = Path(__file__).parent.parent.parent.parent

MAKERS: dict[str, Callable[[RedisStore, dict[str, Any]], Guard]] = {
    "limiter": lambda store, terms: RedisRateLimiter(store, name="guard", **terms),
    "storm guard": lambda store, terms: RedisStormGuard(store, name="guard", **terms),
    # What a process would have without a server: each its own.
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


def run_several(kind: str, url: str, prefix: str, *, terms: dict[str, Any], plan: list[dict[str, Any]]) -> list[Call]:
    """Run a process for each entry of `plan`, let them begin together, and return all that they did."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.resilience.redis.several", entry.get("backend", "asyncio")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for entry in plan
    ]
    try:
        for process, entry in zip(processes, plan, strict=True):
            told = {"kind": kind, "url": url, "prefix": prefix, "terms": terms, **entry}
            _say(process, json.dumps(told))
            _hear(process)
        for process in processes:
            _say(process, "go")
        found = [json.loads(_hear(process)) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [Call(*call) for calls in found for call in calls]


def _say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


async def _one(guard: Guard, work: Callable[[], Any], calls: list[Call]) -> None:
    asked_at = time.time_ns()
    ran = False
    answered_at = 0

    async def measured() -> None:
        nonlocal answered_at, ran
        answered_at, ran = time.time_ns(), True
        await work()

    with suppress(RejectedError, ZeroDivisionError):
        await guard.call(measured)
    calls.append(Call(asked_at, answered_at or time.time_ns(), ran, time.time_ns()))


async def _work(seconds: float, fail: bool) -> None:  # noqa: FBT001 - it comes from JSON
    await anyio.sleep(seconds)
    if fail:
        raise ZeroDivisionError


async def _main() -> None:
    told = json.loads(sys.stdin.readline())
    calls: list[Call] = []
    async with RedisStore(told["url"], prefix=told["prefix"], timeout=20.0) as store:
        guard = MAKERS[told["kind"]](store, told["terms"])
        work = partial(_work, told.get("lasts", 0.0), told.get("fails", False))
        print("ready", flush=True)  # noqa: T201 - this is how processes talk
        sys.stdin.readline()
        end = time.monotonic() + told["for"]

        async def keep_calling() -> None:
            while time.monotonic() < end:
                await _one(guard, work, calls)
                await anyio.sleep(told.get("pause", 0.0))

        async with anyio.create_task_group() as group:
            for _ in range(told["tasks"]):
                group.start_soon(keep_calling)
    print(json.dumps([attrs.astuple(call) for call in calls]), flush=True)  # noqa: T201


if __name__ == "__main__":
    anyio.run(_main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
