"""The recorder: outcomes of attempts on their way into the store, together.

Theory of operation. Answers of receivers come in bursts, since an event loop reads all sockets that are ready in one
turn. What has ended in one turn is handed to the store in the next, as one operation: one task, one ticket and one
wake-up for all of it.

Rules of this module:

* An outcome that the database does not take is offered again, as long as its lease lasts; then the delivery is
  whoever's has it next, and the loss is logged.
* Nothing is sent blindly: `in_trouble` says that outcomes wait for the database.

It judges nothing and sends nothing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import attrs

from webhook_adapter.store import StoreClosedError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience import Clock
    from webhook_adapter.store import Settlement, Store

__all__ = ["Recorder"]

logger = logging.getLogger("webhook_adapter")


class Recorder:
    """Records settlements. Used in one event loop.

    Args:
        store: where they go.
        clock: waits for the database.
        wall: Unix time for the store.
        recovered: called when outcomes that the database had refused are over, whichever way.
        done: called with how many outcomes are over, whichever way.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock,
        wall: Callable[[], float],
        recovered: Callable[[], object],
        done: Callable[[int], object],
    ) -> None:
        self._store = store
        self._clock = clock
        self._wall = wall
        self._recovered = recovered
        self._done = done
        self._waiting: list[Settlement] = []
        self._refused = 0
        self.stale = 0
        """How many outcomes came after their lease was lost, and did not count."""

    @property
    def in_trouble(self) -> bool:
        """Whether the database has refused outcomes that it has not taken since."""
        return self._refused > 0

    def add(self, settlement: Settlement) -> bool:
        """Put an outcome beside those that wait; return whether it is the first, and `flush` is to be called."""
        self._waiting.append(settlement)
        return len(self._waiting) == 1

    async def flush(self) -> None:
        """Record what waits. A checkpoint if there is something; cancelled, it may or may not be recorded, whole."""
        settlements, self._waiting = self._waiting, []
        if not settlements:
            return
        count = len(settlements)
        refused = False
        try:
            while settlements:
                try:
                    attempts = await self._store.record(settlements)
                except StoreUnavailableError as error:
                    if not refused:
                        refused = True
                        self._refused += 1
                        logger.warning("outcomes cannot be recorded, nothing is claimed until they are: %s", error)
                    settlements = self._still_leased(settlements)
                    if settlements:
                        await self._clock.sleep(error.retry_after)
                else:
                    self.stale += attempts.count(None)
                    break
        except StoreClosedError:
            logger.warning("%d attempts ended after the store had been closed", len(settlements))
        finally:
            if refused:
                self._refused -= 1
                self._recovered()
            self._done(count)

    def _still_leased(self, settlements: list[Settlement]) -> list[Settlement]:
        """Return those that may still be recorded, as of now."""
        now = self._wall()
        left = []
        for each in settlements:
            delivery = each.claim.delivery
            if delivery.lease_until is None or now >= delivery.lease_until:
                logger.warning("delivery %s lost its lease before its outcome was recorded", delivery.id)
            else:
                left.append(attrs.evolve(each, now=now))
        return left
