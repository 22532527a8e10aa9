"""A program that accepts, claims and records for ever, and tells what has been committed. `test_crash` kills it."""

from __future__ import annotations

import random
import sys
import threading
import time
from typing import TYPE_CHECKING

import anyio

from tests.adapter.store.support import FAILED, OK, a_message, an_endpoint
from webhook_adapter.lifecycle import Dead, Delivered, DueAgain, Judgement
from webhook_adapter.store import Accepted, Settlement, Store, acceptance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from webhook_adapter.store.unit import Unit


def tell(word: str, what: str) -> None:
    """Say what has been committed, in one write."""
    sys.stdout.write(f"{word} {what}\n")
    sys.stdout.flush()


async def accept(store: Store, who: int) -> None:
    """Accept messages, telling each once it is durable."""
    number = 0
    while True:
        number += 1
        accepted = await store.accept(a_message(data=number, key=f"{who}-{number}-{time.time_ns()}"), now=time.time())
        tell("accepted", accepted.message.id)


def tell_too_early() -> None:
    """Break the store: tell what was accepted before it is committed, and never get round to that."""
    real = acceptance.accept

    def early(unit: Unit, offers: Sequence[acceptance.Offer]) -> Sequence[Accepted | Exception]:
        answers = real(unit, offers)
        for answer in answers:
            if isinstance(answer, Accepted):
                tell("accepted", answer.message.id)
        threading.Event().wait()
        return answers

    acceptance.accept = early


async def deliver(store: Store, dice: random.Random) -> None:
    """Claim and record, telling each outcome once it is durable."""
    while True:
        now = time.time()
        for claim in (await store.claim(now=now, limit=10, lease_for=60.0, endpoint_limit=10)).claims:
            judgements: list[Judgement] = [Delivered(), DueAgain(now), Dead("status 500")]
            judgement = dice.choice(judgements)
            outcome = OK if isinstance(judgement, Delivered) else FAILED
            (attempt,) = await store.record([Settlement(claim, outcome, judgement, now)])
            if attempt is not None:
                tell("recorded", attempt.id)


async def main(path: str, seed: int) -> None:
    """Run until killed."""
    store = Store.open(path)
    endpoints = await store.list_endpoints()
    if not endpoints:
        await store.add_endpoint(an_endpoint("ep_1"))
        await store.add_endpoint(an_endpoint("ep_2", ordered=True))
    tell("ready", "")
    async with anyio.create_task_group() as tasks:
        for who in range(5):
            tasks.start_soon(accept, store, who)
        tasks.start_soon(deliver, store, random.Random(seed))


if __name__ == "__main__":
    if sys.argv[3:] == ["too-early"]:
        tell_too_early()
    anyio.run(main, sys.argv[1], int(sys.argv[2]))
