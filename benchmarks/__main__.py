"""Print what the project's promises of speed come to: `python -m benchmarks`.

First what each guard costs, as a multiple of a bare await; then the same beside other libraries, if they are installed;
then durable deliveries a second beside two bare loops.
With BENCH_ENFORCE=1 a promise that is not kept ends with exit code 1. What has no target is shown for orientation.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys

import anyio

from benchmarks import deliveries, guards, peers, ratios


async def _deliver() -> list[deliveries.Rate]:
    async with deliveries.contenders() as entrants:
        return await deliveries.measure(entrants)


def main() -> int:
    """Measure, print, and judge if asked to."""
    print(
        f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} processors; best of many short rounds, taking turns\n"
    )
    costs = anyio.run(ratios.measure, guards.cases())
    print(ratios.table(costs) + "\n")
    entrants = peers.offers()
    rows = []
    if entrants is None:
        print("Other libraries are not installed, so the comparison with them is left out (`make bench` has it).\n")
    else:
        # As applications start it, and the others expect it.
        rows = asyncio.run(peers.compare(entrants))
        print(peers.table(rows))
    rates = anyio.run(_deliver)
    print(deliveries.table(rates))
    missed = [
        *(cost.name for cost in ratios.exceeded(costs)),
        *peers.missed(rows),
        *(f"service beside {rate.name}" for rate in deliveries.exceeded(rates)),
    ]
    if missed and os.environ.get("BENCH_ENFORCE") == "1":
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
