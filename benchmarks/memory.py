"""What an idle key takes, in bytes over the key itself: `python -m benchmarks.memory`.

Rules of this module:

* The keys are there before anything is measured: what is told is what a registry takes for having each of them, after
  it was used once and then left alone. What is used once is never as good as new again within the run.
* Each case has a process of its own, so that none lies in the holes that another has left, and is run twice.
* *Resident* is how far a process has grown with a million keys, as its operating system tells it; that is what is paid
  for. *At worst* is what the interpreter's allocator says of as many keys as have just made a dict grow, when it is
  emptiest; tracing that takes memory itself, so it is another process's business.
* Ours is filled as an application would fill it: each key's guard is made, guards a call, and is put to sleep. So is
  what other libraries have, where they are installed; and a dict that is written by hand is what it all comes down to.

With BENCH_ENFORCE=1 a promise that is not kept ends with exit code 1.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import platform
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from resilience import AdaptiveLimiter, CircuitBreaker, Keyed, Layer, Policy, RateLimiter, StormGuard

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CASES", "GOAL", "KEYS", "WORST", "Case", "Taken", "exceeded", "fill", "resident_bytes", "table"]

KEYS = 1_000_000
#: What a dict of 2**17 slots takes, one more, so that it has just grown, and one that is awake and so not in there.
WORST = 2**17 * 2 // 3 + 2
#: The most bytes that a key of ours may take, resident and at worst.
GOAL = 200.0

AN_HOUR = 3_600.0


@attrs.frozen
class Case:
    """Something that has keys: `make(count)` returns what uses a key once, and has room for so many."""

    name: str
    make: Callable[[int], Callable[[str], object]]
    ours: bool = False
    #: The module that it takes, if that may be missing.
    module: str | None = None


@attrs.frozen
class Taken:
    """What a case took: bytes a key in either measure."""

    case: Case
    resident: float | None
    worst: float


def _instants(_: int) -> Callable[[str], object]:
    """Keep one instant a key, and nothing else: the least that a limit can do with, by the algorithm of cells."""
    full_at: dict[str, float] = {}

    def use(key: str) -> bool:
        now = time.monotonic()
        taken = max(full_at.get(key, now), now) + AN_HOUR
        if taken - now > 2 * AN_HOUR:
            return False
        full_at[key] = taken
        return True

    return use


class _Bucket:
    """A token bucket as it is often written by hand."""

    __slots__ = ("at", "tokens")

    def __init__(self, tokens: float, at: float) -> None:
        self.tokens = tokens
        self.at = at


def _buckets(_: int) -> Callable[[str], object]:
    """Keep an object with two slots a key."""
    buckets: dict[str, _Bucket] = {}

    def use(key: str) -> bool:
        now = time.monotonic()
        bucket = buckets.get(key)
        if bucket is None:
            bucket = buckets[key] = _Bucket(2.0, now)
        bucket.tokens = min(2.0, bucket.tokens + (now - bucket.at) / AN_HOUR)
        bucket.at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    return use


async def _succeed() -> None:
    """Stand for a call that succeeds."""


async def _fail() -> None:
    raise ConnectionError


def _keyed(make: Callable[[], Layer], *, fails: bool = False) -> Callable[[int], Callable[[str], object]]:
    work = _fail if fails else _succeed

    def made(count: int) -> Callable[[str], object]:
        guards = Keyed[str, Layer](lambda _: make(), max_keys=count, max_awake=1)

        def use(key: str) -> None:
            call = guards[key].call(work)
            with contextlib.suppress(StopIteration, ConnectionError):
                call.send(None)

        return use

    return made


def _limits(count: int) -> Callable[[str], object]:  # noqa: ARG001 - it has no bound
    from limits import RateLimitItemPerHour
    from limits.storage import MemoryStorage
    from limits.strategies import MovingWindowRateLimiter

    limiter, item = MovingWindowRateLimiter(MemoryStorage()), RateLimitItemPerHour(2)
    return lambda key: limiter.hit(item, key)


def _throttled(count: int) -> Callable[[str], object]:
    from throttled import RateLimiterType, Throttled, rate_limiter, store

    limiter = Throttled(
        using=RateLimiterType.GCRA.value,
        quota=rate_limiter.per_hour(2, burst=2),
        store=store.MemoryStore(options={"MAX_SIZE": count}),
    )
    return limiter.limit  # type: ignore[no-any-return]


def _pyrate(count: int) -> Callable[[str], object]:  # noqa: ARG001 - it has no bound
    from pyrate_limiter import BucketFactory, Duration, InMemoryBucket, Limiter, Rate, RateItem

    rates = [Rate(2, Duration.HOUR)]

    class Buckets(BucketFactory):  # type: ignore[misc]
        """A bucket for each name, as its documentation shows."""

        def __init__(self) -> None:
            self.buckets: dict[str, InMemoryBucket] = {}

        def wrap_item(self, name: str, weight: int = 1) -> RateItem:
            return RateItem(name, time.monotonic_ns() // 1_000_000, weight=weight)

        def get(self, item: RateItem) -> InMemoryBucket:
            bucket = self.buckets.get(item.name)
            if bucket is None:
                bucket = self.buckets[item.name] = InMemoryBucket(rates)
            return bucket

    limiter = Limiter(Buckets())
    return lambda key: limiter.try_acquire(key, blocking=False)


def _limiter() -> RateLimiter:
    return RateLimiter(1 / AN_HOUR, 2)


CASES = (
    Case("a dict of instants, by hand", _instants),
    Case("a dict of objects with two slots, by hand", _buckets),
    Case("Keyed of RateLimiter", _keyed(_limiter), ours=True),
    Case("Keyed of StormGuard", _keyed(lambda: StormGuard(AN_HOUR, 5)), ours=True),
    Case(
        "Keyed of Policy(CircuitBreaker, RateLimiter)", _keyed(lambda: Policy(CircuitBreaker(), _limiter())), ours=True
    ),
    Case("the same, a failure counted", _keyed(lambda: Policy(CircuitBreaker(), _limiter()), fails=True), ours=True),
    Case("Keyed of CircuitBreaker, a failure counted", _keyed(CircuitBreaker, fails=True), ours=True),
    Case("Keyed of AdaptiveLimiter, a latency learnt", _keyed(AdaptiveLimiter), ours=True),
    Case("limits, moving window", _limits, module="limits"),
    Case("throttled-py, GCRA", _throttled, module="throttled"),
    Case("pyrate-limiter, a bucket for each name", _pyrate, module="pyrate_limiter"),
)


def resident_bytes() -> int | None:
    """Return how much of this process is in memory now; None where the system does not tell."""
    told = Path("/proc/self/statm")
    return int(told.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if told.exists() else None


def fill(case: Case, count: int, *, traced: bool) -> float | None:
    """Use so many keys once; return the bytes that each took, or None where the system does not tell."""
    keys = [f"tenant-{number}" for number in range(count)]
    use = case.make(count)
    # What is made once, for the first key, is not a matter of keys.
    use(keys[0])
    gc.collect()
    before = resident_bytes()
    if traced:
        tracemalloc.start(1)
    for key in keys:
        use(key)
    gc.collect()
    if traced:
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return taken / count
    after = resident_bytes()
    return None if before is None or after is None else (after - before) / count


def exceeded(every: list[Taken]) -> list[Taken]:
    """Return those of ours that are above the goal, in either measure."""
    return [taken for taken in every if taken.case.ours and max(taken.resident or 0.0, taken.worst) > GOAL]


def table(every: list[Taken]) -> str:
    """Lay out what was taken in columns; what is above the goal is marked."""
    width = max(len("case"), *(len(taken.case.name) for taken in every))
    missed = exceeded(every)
    lines = [f"{'case':<{width}}  {'resident':>8}  {'at worst':>8}"]
    for taken in every:
        resident = "" if taken.resident is None else f"{taken.resident:.0f}"
        mark = "  MISSED" if taken in missed else ""
        lines.append(f"{taken.case.name:<{width}}  {resident:>8}  {taken.worst:>8.0f}{mark}")
    return "\n".join(lines)


def _in_a_process_of_its_own(index: int, count: int, how: str) -> float | None:
    command = [sys.executable, "-m", "benchmarks.memory", str(index), str(count), how]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    told = done.stdout.strip()
    return None if told == "None" else float(told)


def _measure() -> list[Taken]:
    present = [
        (index, case)
        for index, case in enumerate(CASES)
        if case.module is None or importlib.util.find_spec(case.module) is not None
    ]
    with ThreadPoolExecutor(os.cpu_count()) as processes:
        resident = {index: processes.submit(_in_a_process_of_its_own, index, KEYS, "resident") for index, _ in present}
        worst = {index: processes.submit(_in_a_process_of_its_own, index, WORST, "traced") for index, _ in present}
    return [Taken(case, resident[index].result(), worst[index].result() or 0.0) for index, case in present]


def main(arguments: list[str]) -> int:
    """Measure, print, and judge if asked to; with arguments, fill one case and print what that took."""
    if arguments:
        index, count, how = arguments
        print(fill(CASES[int(index)], int(count), traced=how == "traced"))
        return 0
    print(
        f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} processors; bytes over the key itself: resident, of {KEYS:,} keys used once;\n"
        f"traced, of {WORST:,}, which is where a dict is emptiest; goal for ours: {GOAL:.0f}\n"
    )
    every = _measure()
    print(table(every))
    missed = exceeded(every)
    if missed and os.environ.get("BENCH_ENFORCE") == "1":
        print(f"missed: {', '.join(taken.case.name for taken in missed)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
