"""What an offer keeps to besides its speed, tried out: a layer that does less may well be faster.

Rules of this module:

* `does_its_work` is asked of every offer, ours included, before anything is timed: each layer must refuse, open,
  repeat, give up or stand in, with one of its terms made tight. An adapter that does nothing is found here.
* *One for all event loops* means that what was used up in one is used up in another, in another thread.
* *Cancel safe* means that a cancellation goes on, counts as no failure and no answer, and leaves nothing taken.
* Whether several threads may share it cannot be tried out with confidence (a race shows itself rarely): offers say it.

These are observations of real time, with margins, and no measurements: what does not answer within PATIENCE waits.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from typing import TYPE_CHECKING, TypeAlias

import attrs

from benchmarks.offers import HOUR, SECOND, Kind, Offer, Terms

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.offers import Work

    Place: TypeAlias = Callable[[Work], Awaitable[object]]

__all__ = ["Guarantees", "verify"]

PATIENCE = 0.1
SHORT = 0.03


@attrs.frozen
class Guarantees:
    """What holds when an offer is shared, and when a call is cancelled."""

    threads: bool
    loops: bool
    cancels: bool

    def covers(self, other: Guarantees) -> bool:
        """Tell whether everything that holds for the other one holds for this."""
        pairs = zip(attrs.astuple(self), attrs.astuple(other), strict=True)
        return all(own or not its for own, its in pairs)


class _Act(enum.Enum):
    ANSWER = "answer"
    FAIL = "fail"
    HANG = "hang"


class _WorkError(Exception):
    """What the work fails with."""


@attrs.define
class _Script:
    """The callable that is guarded: its calls follow the acts, and the last act is repeated."""

    acts: list[_Act]
    begun: int = 0
    cancelled: int = 0

    def work(self) -> Work:
        async def work() -> bool:
            act = self.acts[min(self.begun, len(self.acts) - 1)]
            self.begun += 1
            if act is _Act.FAIL:
                raise _WorkError
            if act is _Act.HANG:
                try:
                    await asyncio.Event().wait()
                finally:
                    self.cancelled += 1
            return True

        return work


def _script(*acts: _Act) -> _Script:
    return _Script(list(acts))


class _Waits(enum.Enum):
    """The outcome of a call that did not end in time, and was cancelled then."""

    WAITS = "waits"


def _begin(call: Work) -> asyncio.Task[object]:
    async def run() -> object:
        return await call()

    return asyncio.create_task(run())


async def _cancel(task: asyncio.Task[object]) -> bool:
    """Cancel a call; tell whether that is how it ends."""
    await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=PATIENCE)
    return bool(done) and task.cancelled()


async def _outcome(call: Work) -> object:
    """Return a call's answer, or its exception, or that it waits."""
    task = _begin(call)
    done, _ = await asyncio.wait([task], timeout=PATIENCE)
    if not done:
        await _cancel(task)
        return _Waits.WAITS
    return task.exception() or task.result()


def _passed(offer: Offer, outcome: object) -> bool:
    """Tell whether a call was let through and answered."""
    return not isinstance(outcome, BaseException | _Waits) and not offer.is_refusal(outcome)


async def _elsewhere(call: Work) -> object:
    """Return the outcome of a call in another event loop, in another thread."""
    return await asyncio.to_thread(lambda: asyncio.run(_outcome(call)))


# -- does it do its work? `at` is here, `_outcome`, or in another event loop, `_elsewhere` ----------------------------


async def _limits_the_rate(offer: Offer, at: Place) -> bool:
    script = _script(_Act.ANSWER)
    call = offer.make(script.work(), Terms(rate=1, per=HOUR))
    first = await _outcome(call)
    outcome = await at(call)
    return _passed(offer, first) and not _passed(offer, outcome) and not _is_broken(outcome) and script.begun <= 1


async def _opens(offer: Offer, at: Place) -> bool:
    script = _script(_Act.FAIL)
    call = offer.make(script.work(), Terms(failures=1))
    await _outcome(call)
    outcome = await at(call)
    return not _passed(offer, outcome) and not _is_broken(outcome) and script.begun == 1


async def _bounds(offer: Offer, at: Place) -> bool:
    script = _script(_Act.HANG, _Act.ANSWER)
    call = offer.make(script.work(), Terms(concurrent=1))
    holder = _begin(call)
    await asyncio.sleep(SHORT)
    outcome = await at(call)
    begun = script.begun
    await _cancel(holder)
    return not _passed(offer, outcome) and not _is_broken(outcome) and begun == 1


async def _repeats(offer: Offer, at: Place) -> bool:
    succeeding, failing = _script(_Act.FAIL, _Act.FAIL, _Act.ANSWER), _script(_Act.FAIL)
    answer = await at(offer.make(succeeding.work(), Terms()))
    await at(offer.make(failing.work(), Terms(failures=10)))
    return answer is True and (succeeding.begun, failing.begun) == (3, 3)


async def _ends_in_time(offer: Offer, at: Place) -> bool:
    script = _script(_Act.HANG)
    outcome = await at(offer.make(script.work(), Terms(seconds=SHORT)))
    ended = isinstance(outcome, Exception) and not _is_broken(outcome)
    return ended and (script.begun, script.cancelled) == (1, 1)


async def _stands_in(offer: Offer, at: Place) -> bool:
    return await at(offer.make(_script(_Act.FAIL).work(), Terms())) is True


async def _hedges(offer: Offer, at: Place) -> bool:
    script = _script(_Act.HANG, _Act.ANSWER)
    answer = await at(offer.make(script.work(), Terms(hedge_after=SHORT)))
    return answer is True and (script.begun, script.cancelled) == (2, 1)


def _is_broken(outcome: object) -> bool:
    """Tell whether the refusal is that of asyncio, which says that this belongs to another event loop."""
    return isinstance(outcome, RuntimeError) and "loop" in str(outcome)


# -- what does a cancellation leave behind? ---------------------------------------------------------------------------


async def _goes_on(offer: Offer) -> bool:
    """Cancel a call that is under way, with everything else that could end it out of reach."""
    script = _script(_Act.HANG)
    task = _begin(offer.make(script.work(), Terms()))
    await asyncio.sleep(SHORT)
    return await _cancel(task) and (script.begun, script.cancelled) == (1, 1)


async def _gives_back(offer: Offer) -> bool:
    call = offer.make(_script(_Act.HANG, _Act.ANSWER).work(), Terms(concurrent=1))
    holder = _begin(call)
    await asyncio.sleep(SHORT)
    return await _cancel(holder) and _passed(offer, await _outcome(call))


async def _takes_nothing(offer: Offer) -> bool:
    """A limiter's waiter that is cancelled; the next is let through when that one would have been."""
    call = offer.make(_script(_Act.ANSWER).work(), Terms(rate=1, per=SECOND))
    await _outcome(call)
    refused = await _outcome(call)
    # Since the clock of an `_outcome` that waits has run for PATIENCE already.
    await asyncio.sleep(SECOND + SHORT - PATIENCE if refused is _Waits.WAITS else SECOND + SHORT)
    return _passed(offer, await _outcome(call))


async def _is_no_failure(offer: Offer) -> bool:
    call = offer.make(_script(_Act.HANG, _Act.ANSWER).work(), Terms(failures=1))
    task = _begin(call)
    await asyncio.sleep(SHORT)
    return await _cancel(task) and _passed(offer, await _outcome(call))


async def _is_no_answer(offer: Offer) -> bool:
    """A probe that is cancelled neither closes the circuit nor keeps others from probing for ever."""
    fails = [_Act.FAIL, _Act.FAIL]
    script = _script(*fails, _Act.HANG, _Act.FAIL)
    call = offer.make(script.work(), Terms(failures=2, recovery=PATIENCE, attempts=1))
    for _ in fails:
        await _outcome(call)
    await asyncio.sleep(PATIENCE + SHORT)
    probe = _begin(call)
    await asyncio.sleep(SHORT)
    went_on = await _cancel(probe)
    await asyncio.sleep(PATIENCE + SHORT)
    await _outcome(call)
    begun = script.begun
    # Of two failures that it takes to open a closed circuit this is the first; it is enough for one that is half-open.
    await _outcome(call)
    return went_on and begun == len(fails) + 2 and script.begun == begun


_WORK: dict[Kind, tuple[Callable[[Offer, Place], Awaitable[bool]], ...]] = {
    Kind.FIVE: (_limits_the_rate, _opens, _bounds, _repeats, _ends_in_time),
    Kind.ACQUIRE: (_limits_the_rate,),
    Kind.LIMITED: (_limits_the_rate,),
    Kind.BREAKER: (_opens,),
    Kind.RETRY: (_repeats,),
    Kind.TIMEOUT: (_ends_in_time,),
    Kind.BULKHEAD: (_bounds,),
    Kind.ADAPTIVE: (_bounds,),
    Kind.STORM: (_limits_the_rate,),
    Kind.KEYED: (_limits_the_rate,),
    Kind.FALLBACK: (_stands_in,),
    Kind.HEDGE: (_hedges,),
}
_CANCELLATION: dict[Kind, tuple[Callable[[Offer], Awaitable[bool]], ...]] = {
    Kind.FIVE: (_goes_on, _gives_back, _is_no_failure, _is_no_answer),
    Kind.ACQUIRE: (_takes_nothing,),
    Kind.LIMITED: (_goes_on, _takes_nothing),
    Kind.BREAKER: (_goes_on, _is_no_failure, _is_no_answer),
    Kind.RETRY: (_goes_on,),
    Kind.TIMEOUT: (_goes_on,),
    Kind.BULKHEAD: (_goes_on, _gives_back),
    Kind.ADAPTIVE: (_goes_on, _gives_back),
    Kind.STORM: (_takes_nothing,),
    Kind.KEYED: (_goes_on, _takes_nothing),
    Kind.FALLBACK: (_goes_on,),
    Kind.HEDGE: (_goes_on,),
}


async def verify(offer: Offer) -> Guarantees:
    """Return what the offer guarantees; raise AssertionError if it does not do its work at all."""
    # Some of them log what they do about a failure, and failures are what this is about.
    logging.disable()
    try:
        for works in _WORK[offer.kind]:
            if not await works(offer, _outcome):
                msg = f"{offer.library} does not do its work: {offer.kind.value}: {works.__name__}"
                raise AssertionError(msg)
        loops = [await works(offer, _elsewhere) for works in _WORK[offer.kind]]
        cancels = [await safe(offer) for safe in _CANCELLATION[offer.kind]]
    finally:
        logging.disable(logging.NOTSET)
    return Guarantees(offer.threads, all(loops), all(cancels))
