"""Rate limiters that refuse: never more than allowed, never less than promised."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING

from benchmarks.conformance import virtual
from benchmarks.conformance.case import OWN_READING, Failed, case, expect, outcome, prepare
from benchmarks.conformance.library import not_offered
from benchmarks.conformance.plain import in_threads

if TYPE_CHECKING:
    from benchmarks.conformance.library import Library, Limiter, PlainLimiter

__all__: list[str] = []

AN_HOUR = 3600.0
PATIENCE = 1e-3
"""Seconds by which a timer is late."""


async def burst(limiter: Limiter, attempts: int) -> int:
    """Try so often without time passing, and return how many were admitted."""
    return [await limiter.try_acquire(1) for _ in range(attempts)].count(True)


def race(try_acquire: PlainLimiter) -> tuple[int, list[Exception]]:
    """Let eight threads try at the same time, and return how many were admitted, and what was raised."""
    start = threading.Barrier(8)
    answers: list[bool] = []
    errors: list[Exception] = []

    def caller() -> None:
        start.wait()
        for _ in range(1_000):
            try:
                answers.append(try_acquire())
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller would get it
                errors.append(error)

    in_threads(caller, count=8)
    return answers.count(True), errors


@case(
    "limiter",
    "Of many tasks that try at the same time, as many are admitted as are allowed",
    "vutran1710/PyrateLimiter#191",
)
async def tasks_over_admit(library: Library) -> None:
    """Thirty tasks, ten permits."""
    limiter = library.limiter(calls=10, period=60.0)
    answers = await asyncio.gather(*(limiter.try_acquire(1) for _ in range(30)))

    expect(answers.count(True) == 10, f"{answers.count(True)} of 10 admitted")


@case(
    "limiter",
    "Of many threads that try at the same time, no more are admitted than are allowed, and none gets an error",
    OWN_READING,
)
def threads_over_admit(library: Library) -> None:
    """Eight threads that are switched as often as the interpreter can; a race may be missed, so a pass is no proof."""
    sys.setswitchinterval(1e-6)
    for _ in range(20):
        admitted, errors = race(library.plain_limiter(calls=100, period=60.0))

        expect(admitted <= 100, f"{admitted} of 100 admitted")
        expect(not errors, f"a caller gets {errors[:1]!r}")


@case(
    "limiter",
    "There is no instant around which twice as many are admitted",
    "alisaifee/limits#120",
    "Benson-Kim/genesis-sacco-platform#14",
)
async def window_edge(library: Library) -> None:
    """Wherever a window may begin, a full burst is followed by what has accrued since, and not by another burst."""
    limiter = library.limiter(calls=10, period=60.0)
    await asyncio.sleep(59.0 - virtual.now() % 60.0)
    first = await burst(limiter, 30)
    await asyncio.sleep(2.0)
    second = await burst(limiter, 30)

    expect(first + second <= 11, f"{first + second} admitted within 2 s, where 10 are allowed in 60 s")


@case(
    "limiter",
    "After partial use and a long rest there is one full burst, no more and no less",
    "ADSC-Cloud/Waterwheel#37",
)
async def refill_overwrites(library: Library) -> None:
    """Five of ten are used; then nobody comes for a long time."""
    limiter = library.limiter(calls=10, period=60.0)
    prepare(await burst(limiter, 5) == 5, "the first five are not admitted")
    await asyncio.sleep(600.0)
    admitted = await burst(limiter, 30)

    expect(admitted == 10, f"a burst of {admitted}, where 10 are allowed")


@case(
    "limiter",
    "In the long run as many are admitted as the rate says, also when somebody asks all the time",
    "kent8192/reinhardt-web#2246",
    "apache/polaris#3433",
)
async def polling_changes_the_rate(library: Library) -> None:
    """For ten periods, every 50 ms; a fifth too few and one burst too many are let pass."""
    limiter = library.limiter(calls=7, period=60.0)
    await burst(limiter, 30)
    admitted = 0
    for _ in range(12_000):
        await asyncio.sleep(0.05)
        admitted += await limiter.try_acquire(1)

    expect(admitted >= 56, f"{admitted} admitted, where 70 are due")
    expect(admitted <= 77, f"{admitted} admitted, where 70 are due")


@case(
    "limiter",
    "Who waits as long as the refusal says is admitted",
    "vutran1710/PyrateLimiter#185",
    "sandbaseai/sandbase-harness#280",
)
async def told_wait_is_too_short(library: Library) -> None:
    """For rates that no binary fraction expresses exactly, and with a millisecond added, as any timer would."""
    for calls in (3, 7, 11, 13):
        limiter = library.limiter(calls=calls, period=60.0)
        if limiter.retry_after is None:
            not_offered("does not say how long to wait")
        await burst(limiter, 2 * calls)
        for _ in range(20):
            told = await limiter.retry_after()
            await asyncio.sleep(told + PATIENCE)

            expect(await limiter.try_acquire(1), f"refused after the {told:.6f} s that it asked for")


@case(
    "limiter",
    "A wall clock that is set back does not lock callers out",
    "xapi-project/sm#578",
    "openSUSE/xinetd#48",
)
async def limiter_s_wall_clock_set_back(library: Library) -> None:
    """By an hour, when the limit is used up."""
    limiter = library.limiter(calls=10, period=60.0)
    await burst(limiter, 30)
    virtual.jump_wall(-AN_HOUR)
    await asyncio.sleep(61.0)

    expect(await burst(limiter, 10) >= 10, "not admitted once the period is over")


@case(
    "limiter",
    "A wall clock that is set forward admits nobody early",
    "axiomhq/axiom-py#80",
    OWN_READING,
)
async def limiter_s_wall_clock_set_forward(library: Library) -> None:
    """By an hour, when the limit is used up."""
    limiter = library.limiter(calls=10, period=60.0)
    await burst(limiter, 30)
    virtual.jump_wall(AN_HOUR)
    admitted = await burst(limiter, 10)

    expect(admitted == 0, f"{admitted} admitted at once")


@case(
    "limiter",
    "A limiter can be made at import time, and serves one event loop after another",
    "mjpieters/aiolimiter#292",
    "agronholm/anyio#651",
)
def limiter_is_bound_to_a_loop(library: Library) -> None:
    """It is made where no loop is running."""
    try:
        limiter = library.limiter(calls=10, period=60.0)
    except RuntimeError as error:
        raise Failed(f"cannot be made outside a loop: {error}") from error
    for loop in ("first", "second"):
        expect(virtual.run(burst(limiter, 5)) == 5, f"refused in the {loop} loop")


@case(
    "limiter",
    "However many keys there are, none gets its quota anew before the period is over",
    "PrefectHQ/fastmcp#4057",
    "ELares/IronTraffic#217",
)
async def eviction_resets_the_quota(library: Library) -> None:
    """More keys than are kept come by while one of them has used up its limit."""
    try_acquire = library.keyed_limiter(calls=3, period=60.0, keys=4)
    for _ in range(6):
        await outcome(try_acquire("greedy"))
    prepare(not await try_acquire("greedy"), "the limit is not reached")
    for number in range(20):
        await outcome(try_acquire(f"other {number}"))

    expect(not await try_acquire("greedy"), "the key that has used up its limit is admitted again")
