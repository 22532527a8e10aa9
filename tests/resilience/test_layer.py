"""Guards as blocks and as calls: permits, refusals, judgements; and what users derive from."""

from __future__ import annotations

import copy
import threading

import anyio
import anyio.lowlevel
import pytest

from resilience import (
    Bulkhead,
    NeverFits,
    NotUntil,
    Permit,
    Policy,
    RejectedError,
    Statistics,
    Verdict,
)
from resilience.counting import Tally
from resilience.testing import ManualClock
from tests.resilience.layers import LAYERS, Callee, Log, Noting, every_layer
from tests.resilience.support import Crew, in_thread, settle

every_loop = pytest.mark.anyio


# -- exceptions -----------------------------------------------------------------------------------------------------


@every_layer
@every_loop
async def test_exception_goes_on_as_it_is(layer: str) -> None:
    """The very object, with no context of the layers' making; so does what is no Exception."""
    around = LAYERS[layer]()
    for error in (LookupError("its own"), KeyboardInterrupt()):

        async def fail(error: BaseException = error) -> None:
            raise error

        def fail_plainly(error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            await around(fail)()
        assert caught.value is error
        with pytest.raises(type(error)) as caught:
            around(fail_plainly)()
        assert caught.value is error


class _Puzzled(Noting):
    """A guard whose judgement raises."""

    def judge_exception(self, exception: BaseException) -> Verdict:
        message = "what is that?"
        raise ZeroDivisionError(message) from exception

    def judge_result(self, result: object) -> Verdict:
        message = f"what is {result}?"
        raise ZeroDivisionError(message)


@every_loop
async def test_judgement_that_raises_keeps_no_permit() -> None:
    """What `is_failure` raises goes on, its permit is settled as ignored, and all the others come back too."""
    for script in (["error"], ["ok"]):
        log: Log = []
        guards = [Noting(log, "outer"), _Puzzled(log, "puzzled"), Noting(log, "inner")]
        with pytest.raises(ZeroDivisionError):
            await Policy(*guards).call(Callee(log, script).call)
        assert [guard.out for guard in guards] == [0, 0, 0]
        assert log[-3:] == [
            ("inner", {"error": "failure", "ok": "success"}[script[0]]),
            ("puzzled", "ignored"),
            ("outer", "failure"),
        ]


@every_loop
async def test_judgement_that_raises_is_heard_of_alone_too() -> None:
    """A single guard behaves as one among others."""
    for script in (["error"], ["ok"]):
        log: Log = []
        with pytest.raises(ZeroDivisionError):
            await _Puzzled(log).call(Callee(log, script).call)
        assert log[-1] == ("guard", "ignored")


# -- guards that wait, and refusals ---------------------------------------------------------------------------------


class _Patient(Noting):
    """A guard that lets those in who wait."""

    waits = True

    async def admit_waiting(self, cost: float = 1) -> Permit:
        """Wait for a moment; admit."""
        await anyio.lowlevel.checkpoint()
        self.log.append((self.name, "waited"))
        return await super().admit_waiting(cost)


@pytest.mark.parametrize("form", ["call", "chain", "stream", "manager", "block"])
@every_loop
async def test_guard_that_waits_is_waited_for(form: str) -> None:
    """What was not admitted at once is admitted later, in calls, streams and blocks alike."""
    log: Log = []
    guard = _Patient(log, refused=[0])
    callee = Callee(log)
    if form == "block":
        async with guard as permit:
            assert not permit.settled
    elif form == "stream":
        assert [item async for item in guard(callee.stream)()] == ["item"]
    elif form == "manager":
        async with guard(callee.manager)():
            pass
    else:
        await Policy(guard, *([Noting([])] if form == "chain" else [])).call(callee.call)
    assert [what for name, what in log if name == "guard" and what != "renewed"] == [
        "refused",
        "waited",
        "admitted",
        "success",
    ]


@every_loop
async def test_guard_that_does_not_wait_refuses() -> None:
    """With a fresh error each time, which names it, in plain code and blocks too; what was asked for never runs."""
    log: Log = []
    guard = Noting(log, "full", refused=range(9))
    callee = Callee(log)
    errors: list[RejectedError] = []
    for attempt in (
        lambda: guard.call(callee.call),
        lambda: Policy(Noting([]), guard).call(callee.call),
        guard.__aenter__,
        guard.admit_waiting,
    ):
        with pytest.raises(RejectedError, match=r"^full refused the call$") as caught:
            await attempt()
        errors.append(caught.value)
    for plain_attempt in (guard(callee.end), guard.__enter__, guard.admit_blocking):
        with pytest.raises(RejectedError) as caught:
            plain_attempt()
        errors.append(caught.value)
    assert len(set(map(id, errors))) == 7
    assert callee.calls == 0
    assert guard.statistics() == Statistics(rejected=7)
    assert {(error.guard, error.retry_after) for error in errors} == {("full", None)}


def test_refusal_says_when_to_come_back() -> None:
    """In seconds from now, never negative; what never fits is a ValueError; a guard without a name has its class's."""
    guard = Noting([], "")
    guard.clock = ManualClock(10.0)
    for at, wait in ((12_500_000_000, 2.5), (9_000_000_000, 0.0)):
        error = guard.refuse(NotUntil(at))
        assert isinstance(error, RejectedError)
        assert (error.guard, error.retry_after) == ("Noting", wait)
    error_of_cost = guard.refuse(NeverFits(3, 2))
    assert repr(error_of_cost) == repr(ValueError("cost must be at most the capacity of 2, not 3"))
    assert guard.statistics().rejected == 2


def test_name_is_a_string() -> None:
    """Anything else is a ValueError."""
    with pytest.raises(ValueError, match=r"^name must be a string, not None$"):
        Noting([], None)  # type: ignore[arg-type]


def test_guards_are_not_copied() -> None:
    """Two copies of a limit would be twice the limit."""
    for copied in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"^Bulkhead is shared, never copied: two copies would each admit what one"):
            copied(Bulkhead(1))


# -- blocks ---------------------------------------------------------------------------------------------------------


@every_loop
async def test_block_is_a_call() -> None:
    """Its permit is what `as` gives; how the block ends is how the call ends; nothing is swallowed."""
    log: Log = []
    guard = Noting(log)
    async with guard as permit:
        assert isinstance(permit, Permit)
    with guard as permit:
        assert not permit.settled
    assert permit.settled
    for error in (LookupError(), RejectedError("another"), KeyboardInterrupt(), GeneratorExit()):
        with pytest.raises(type(error)) as caught:
            async with guard:
                raise error
        assert caught.value is error
        with pytest.raises(type(error)), guard:
            raise error
    told = [what for _, what in log if what != "admitted"]
    assert told == [each for each in ("success", "failure", "ignored", "cancelled", "cancelled") for _ in range(2)]


@every_loop
async def test_permit_of_a_block_may_be_settled_inside() -> None:
    """The first verdict counts, and the end of the block changes nothing."""
    log: Log = []
    async with Noting(log) as permit:
        permit.renew()
        permit.failure()
    assert log == [("guard", "admitted"), ("guard", "renewed"), ("guard", "failure")]


@every_loop
async def test_blocks_nest_and_interleave() -> None:
    """A guard entered twice is left last in, first out; two guards may be left in any order."""
    log: Log = []
    one, other = Noting(log, "one"), Noting(log, "other")
    async with one as outer:
        async with one as inner:
            pass
        assert (inner.settled, outer.settled) == (True, False)
    first = await one.__aenter__()
    second = await other.__aenter__()
    third = await one.__aenter__()
    await other.__aexit__(None, None, None)
    assert (first.settled, second.settled, third.settled) == (False, True, False)
    await one.__aexit__(None, None, None)
    await one.__aexit__(None, None, None)
    assert (first.settled, third.settled) == (True, True)
    around = await other.__aenter__()
    permits = [await one.__aenter__() for _ in range(3)]
    # What is entered further inside stays in its order.
    await other.__aexit__(None, None, None)
    assert around.settled
    while permits:
        await one.__aexit__(None, None, None)
        assert [permit.settled for permit in permits] == [*[False] * (len(permits) - 1), True]
        permits.pop()
    assert one.out == other.out == 0


@every_loop
async def test_each_task_has_its_own_blocks() -> None:
    """Tasks enter and leave one guard in any order; each settles its own permit, its parent's last."""
    guard = Bulkhead(10)
    mine = await guard.__aenter__()
    permits: dict[int, Permit] = {}
    gates = [anyio.Event() for _ in range(3)]

    async def work(number: int) -> None:
        async with guard as permit:
            permits[number] = permit
            await gates[number].wait()

    async with Crew() as crew:
        for number in range(3):
            crew.start(lambda number=number: work(number))  # type: ignore[misc]
        await settle()
        for number in (1, 0, 2):
            gates[number].set()
            await settle()
            assert permits[number].settled
        assert not mine.settled
    await guard.__aexit__(None, None, None)
    assert mine.settled
    assert guard.statistics().in_use == 0


def test_each_thread_has_its_own_blocks() -> None:
    """Threads that are in the same guard at once settle their own permits."""
    guard = Bulkhead(10)
    inside, go_on = threading.Barrier(4), [threading.Event() for _ in range(3)]
    permits: dict[int, Permit] = {}

    def work(number: int) -> None:
        with guard as permit:
            permits[number] = permit
            inside.wait()
            go_on[number].wait()
        assert permit.settled

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    inside.wait()
    for number in (1, 2, 0):
        go_on[number].set()
        threads[number].join()
        assert permits[number].settled
    assert guard.available == 10


@every_loop
async def test_block_is_left_by_the_task_that_entered_it() -> None:
    """Anybody else has no such block: a RuntimeError that names the guard, and the permit stays out."""
    guard = Noting([], "pool")
    errors: list[str] = []

    async def leave() -> None:
        with pytest.raises(RuntimeError) as caught:
            await guard.__aexit__(None, None, None)
        errors.append(str(caught.value))

    def leave_in_thread() -> None:
        with pytest.raises(RuntimeError) as caught:
            guard.__exit__(None, None, None)
        errors.append(str(caught.value))

    async with Crew() as crew:
        job = crew.start(leave)
        entered = crew.start(guard.__aenter__)
        await settle()
        assert job.finished
        assert entered.finished
        await leave()
    in_thread(leave_in_thread)
    assert errors == ["pool was left by another task or context than the one that entered it"] * 3
    assert guard.out == 1


# -- permits, counts and locks --------------------------------------------------------------------------------------


def test_permit_is_settled_once() -> None:
    """By whichever verdict comes first; it tells whose it is, and whether it has been used up."""
    for verdict in ("success", "failure", "ignored", "cancelled"):
        log: Log = []
        permit = Noting(log, "pool").admit()
        assert isinstance(permit, Permit)
        assert repr(permit) == "<Permit of pool, of generation 0>"
        getattr(permit, verdict)()
        assert repr(permit) == "<Permit of pool, settled>"
        for later in ("success", "failure", "ignored", "cancelled"):
            getattr(permit, later)()
        assert log == [("pool", "admitted"), ("pool", verdict)]
        assert not permit.use_up()


class _Plain(Noting):
    """A guard that leaves to the base class what it can."""

    def settle(self, permit: Permit, verdict: Verdict) -> None:  # noqa: ARG002 - any will do
        permit.use_up()

    renew = Bulkhead.renew


def test_base_class_minds_nothing() -> None:
    """Signs of life are heard in silence; what ended well was a success, and what raised a failure."""
    guard = _Plain([])
    permit = guard.admit()
    assert isinstance(permit, Permit)
    permit.renew()
    assert not permit.settled
    assert guard.judge_result(None) is Verdict.SUCCESS
    assert guard.judge_exception(LookupError()) is Verdict.FAILURE
    assert guard.judge_exception(RejectedError("another")) is Verdict.IGNORED
    assert guard.judge_exception(KeyboardInterrupt()) is Verdict.CANCELLED
    assert guard.statistics() == Statistics()


def test_tally_counts_what_threads_add() -> None:
    """Reading it adds nothing, and no addition is lost."""
    tally = Tally()
    assert tally.value == 0

    def add() -> None:
        for _ in range(1_000):
            tally.add()

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tally.value == tally.value == 4_000


def test_lock_that_was_found_taken_is_counted() -> None:
    """The helper of the hottest sections takes the lock, and counts that somebody else had it."""
    guard = Noting([])
    guard._wait_for_lock()
    assert guard._lock.locked()
    guard._unlock()
    assert guard.statistics().contended == 1
