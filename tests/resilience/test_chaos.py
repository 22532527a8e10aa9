"""Chaos: calls that go wrong on purpose. The laws are in files of their own, and listed in `chaotic`."""

from __future__ import annotations

import contextvars
import gc
import random
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import attrs
import pytest

from resilience import Keyed, Policy, Retry, Timeout, telemetry
from resilience.testing import Chaos, ChaosStatistics, ManualClock
from tests.resilience.chaotic import (
    FaultError,
    ends,
    manager,
    other_stream,
    stream,
    work,
    work_plainly,
)
from tests.resilience.support import Crew, assert_refuses, brief, settle

if TYPE_CHECKING:
    from collections.abc import Iterator


every_loop = pytest.mark.anyio
NOT_A_RATE = (-0.1, 1.1, float("nan"), float("inf"), True, "x", 10**400, lambda rate: rate)


# -- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["latency_rate", "fault_rate", "result_rate", "hang_rate"])
@pytest.mark.parametrize("bad", NOT_A_RATE, ids=brief)
def test_refuses_bad_rates(name: str, bad: object) -> None:
    """A rate is a number from 0 to 1, or a function without arguments, when it is made and when it is changed."""
    chaos = Chaos(latency=1.0, latency_rate=0.0, fault=FaultError, fault_rate=0.0, result=None, result_rate=0.0)
    assert_refuses(name, bad, partial(Chaos, latency=1.0, fault=FaultError))
    assert_refuses(name, bad, chaos.update)


def test_hang_rate_cannot_be_left_out() -> None:
    """There is nothing from which it could follow."""
    assert_refuses("hang_rate", None, Chaos)


@pytest.mark.parametrize(
    "bad",
    [
        -1,
        float("nan"),
        float("inf"),
        "x",
        True,
        (1.0,),
        (2.0, 1.0),
        (0.0, 1.0, 2.0),
        (-1.0, 1.0),
        [0.0, 1.0],
        anyio.sleep,
    ],
    ids=brief,
)
def test_refuses_bad_latencies(bad: object) -> None:
    """A latency is seconds, a range of them from the shorter to the longer, or a plain function without arguments."""
    with pytest.raises(ValueError, match=r"^latency must be "):
        Chaos(latency=bad)  # type: ignore[arg-type]


async def _makes_later() -> Exception:
    return FaultError()


@pytest.mark.parametrize(
    "bad",
    [FaultError("one for all"), BaseException, KeyboardInterrupt, UnicodeDecodeError, str, "x", 3, _makes_later, repr],
    ids=brief,
)
def test_refuses_faults_that_are_not_fresh_exceptions(bad: object) -> None:
    """Not an instance, which all calls would share; not what is no Exception, nor a class that needs arguments."""
    assert_refuses("fault", bad, Chaos)


def test_refuses_results_that_serve_only_once() -> None:
    """A coroutine or a stream in place of what makes it, and a function that needs arguments or an event loop."""
    coroutine = work()
    for bad in (coroutine, stream(), work, repr):
        assert_refuses("result", bad, Chaos)
    coroutine.close()


@pytest.mark.parametrize("rate", [0.5, lambda: 0.5], ids=["number", "function"])
def test_refuses_a_rate_without_anything_to_inject(rate: object) -> None:
    """Nothing would be injected, and nobody would notice."""
    with pytest.raises(ValueError, match=r"^latency must be a number, not None$"):
        Chaos(latency_rate=rate)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^fault must be .*, not None$"):
        Chaos(fault_rate=rate)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^result must be .*, if there is a result_rate; it was left out$"):
        Chaos(result_rate=rate)  # type: ignore[arg-type]
    assert Chaos(latency_rate=0.0, fault_rate=0.0, result_rate=0.0).settings() == {
        "latency_rate": 0.0,
        "fault_rate": 0.0,
        "result_rate": 0.0,
    }


def test_refuses_more_endings_than_calls() -> None:
    """A call ends in one way, so that the three rates are at most 1 together; they may be exactly that."""
    Chaos(hang_rate=0.1, fault=FaultError, fault_rate=0.2, result=None, result_rate=0.7)
    with pytest.raises(
        ValueError, match=r"^hang_rate, fault_rate and result_rate must be at most 1 together, not 1.1$"
    ):
        Chaos(fault=FaultError, hang_rate=0.1)


def test_refuses_other_bad_arguments() -> None:
    """A name is a string, a seed a whole number, and it is enabled or not."""
    assert_refuses("name", 3, Chaos)
    assert_refuses("enabled", 1, Chaos)
    for bad in (1.5, True, "seed"):
        assert_refuses("random", bad, Chaos)
    with pytest.raises(TypeError, match="unexpected keyword argument 'rate'"):
        Chaos().update(rate=0.5)  # type: ignore[call-arg]


# -- what is injected -----------------------------------------------------------------------------------------------


@every_loop
async def test_what_is_given_without_a_rate_meets_every_call() -> None:
    """A rate that is left out is 1; where there is nothing to inject nothing is."""
    assert await Chaos().call(work) == "own"
    assert await Chaos(result=None).call(work) is None
    with pytest.raises(FaultError):
        await Chaos(fault=FaultError).call(work)
    clock = ManualClock()
    async with Crew() as crew:
        job = crew.start(partial(Chaos(latency=2.0, clock=clock).call, work))
        await settle()
        assert clock.next_deadline() == 2.0
        clock.advance(2.0)
        await settle()
        assert job.result == "own"


@every_loop
async def test_a_result_is_a_value_or_what_a_function_gives() -> None:
    """A function is called at each call, for a fresh object each time; built-in ones that tell no signature too."""

    async def items() -> object:
        return None

    value: list[str] = []
    assert await Chaos(result=value).call(items) is value
    for kind in (list, dict):
        fresh = Chaos(result=kind)
        assert await fresh.call(items) == kind()
        assert await fresh.call(items) is not await fresh.call(items)
    assert Chaos(result=lambda: "none")(work_plainly)() == "none"


@every_loop
async def test_a_result_takes_the_place_of_a_stream() -> None:
    """It is an async generator function, and what it makes is driven like any other; the stream's own never begins."""
    heard: list[object] = []

    async def echo() -> Any:  # noqa: ANN401 - an async generator to which anything may be sent
        try:
            heard.append((yield 1))
            try:
                yield 2
            except KeyError as thrown:
                heard.append(thrown.args)
            yield 3
        finally:
            heard.append("closed")

    @Chaos(result=echo)
    async def never() -> Any:  # noqa: ANN401 - as above
        heard.append("begun")
        yield 0

    driven = never()
    assert await anext(driven) == 1
    assert await driven.asend("sent") == 2
    assert await driven.athrow(KeyError("thrown")) == 3
    await driven.aclose()
    assert heard == ["sent", ("thrown",), "closed"]


@every_loop
async def test_what_does_not_fit_is_refused_at_decoration() -> None:
    """A hang in plain code could not be stopped, and a result is a stream if and only if the callable is one."""
    for rate in (0.1, lambda: 0.0):
        with pytest.raises(TypeError, match=r"^hang_rate must be 0 around plain functions, which could not be stopped"):
            Chaos(hang_rate=rate)(work_plainly)
    for layer in (Chaos(result=[]), Policy(Retry(2), Chaos(result=list))):
        for func in (stream, manager):
            with pytest.raises(TypeError, match=r"^result must be an async generator function around async generators"):
                layer(func)
    layer = Chaos(result=other_stream)
    with pytest.raises(TypeError, match=r"^result must be no async generator function around async functions"):
        await layer.call(work)
    with pytest.raises(TypeError, match=r"^result must be no async generator function around plain functions"):
        layer(work_plainly)


class _Promise:
    """Something to be awaited that is no coroutine."""

    def __await__(self) -> Iterator[None]:
        yield


@every_loop
@pytest.mark.parametrize("name", ["latency", "latency_rate", "fault_rate", "result_rate", "hang_rate"])
async def test_numbers_of_users_functions_are_checked_at_each_call(name: str) -> None:
    """A bad one is a ValueError that names the argument, and not taken for the fault that was meant."""
    given_: dict[str, Any] = {
        "latency": 0.0,
        "fault": FaultError,
        "fault_rate": 0.0,
        "result": None,
        "result_rate": 0.0,
    }
    with pytest.raises(ValueError, match=rf"^{name} must be a .*, not -1$"):
        await Chaos(**{**given_, name: lambda: -1}).call(work)


@every_loop
async def test_objects_of_users_functions_are_checked_at_each_call() -> None:
    """What is no exception, or would have to be awaited, is a TypeError."""
    with pytest.raises(TypeError, match=r"^fault must be a function that makes an exception; .* returned 'text'$"):
        await Chaos(fault=lambda: "text").call(work)  # type: ignore[arg-type]
    for later in (work, _Promise):
        with pytest.raises(TypeError, match=r"^result must be a function that gives the result itself; .* returned <"):
            await Chaos(result=lambda later=later: later()).call(work)


@every_loop
async def test_a_rate_may_ask_whose_call_it_is() -> None:
    """A function is asked at each call, in the caller's own context; where functions go beyond 1, hangs come first."""
    tenant = contextvars.ContextVar("tenant", default="paying")
    chaos = Chaos(fault=FaultError, fault_rate=lambda: float(tenant.get() == "testing"))
    assert await chaos.call(work) == "own"
    tenant.set("testing")
    with pytest.raises(FaultError):
        await chaos.call(work)
    everything = Chaos(
        hang_rate=lambda: 1.0, fault=FaultError, fault_rate=lambda: 1.0, result=None, result_rate=lambda: 1.0
    )
    async with Crew() as crew:
        job = crew.start(partial(everything.call, work))
        await settle()
        assert not job.ended
    everything.update(hang_rate=0.0)
    with pytest.raises(FaultError):
        await everything.call(work)
    everything.update(fault_rate=0.0)
    assert await everything.call(work) is None


# -- at run time ----------------------------------------------------------------------------------------------------


@every_loop
async def test_blocks_switch_it_and_bring_back_what_was() -> None:
    """Called plainly, `enable` and `disable` last; as context managers, until the block is left, however it is."""
    chaos = Chaos(fault=FaultError, enabled=False)
    guarded = chaos(work)
    assert await guarded() == "own"
    chaos.enable()
    with pytest.raises(FaultError):
        await guarded()
    with chaos.disable():
        assert not chaos.enabled
        with chaos.enable(), pytest.raises(FaultError):
            await guarded()
        assert await guarded() == "own"
    with pytest.raises(FaultError), chaos.enable():
        await guarded()
    assert chaos.enabled
    chaos.disable()
    assert await guarded() == "own"


@every_loop
async def test_what_hangs_already_goes_on_hanging() -> None:
    """Neither `disable` nor `update` ends what was injected: only a cancellation does."""
    chaos = Chaos(hang_rate=1.0)
    async with Crew() as crew:
        job = crew.start(partial(chaos.call, work))
        await settle()
        chaos.update(hang_rate=0.0)
        chaos.disable()
        await settle()
        assert not job.ended
        assert await chaos.call(work) == "own"


@every_loop
async def test_what_counts_is_when_a_call_begins() -> None:
    """A coroutine, a stream or a context manager that is made earlier is a call only once it is run."""
    chaos = Chaos(result="result")
    streams = Chaos(result=other_stream)
    early, early_block = chaos.call(work), streams.around(manager)
    with chaos.disable(), streams.disable():
        assert await early == "own"
        async with early_block as item:
            assert item == "own"
        late, late_block = chaos.call(work), streams.around(manager)
    assert await late == "result"
    async with late_block as item:
        assert item == "result"
    assert chaos.statistics() == streams.statistics() == ChaosStatistics(calls=1, results=1)


def test_an_update_has_to_fit_what_is_decorated() -> None:
    """As long as there is a function that could not be guarded with the new settings, they are refused."""
    chaos = Chaos(fault=FaultError, fault_rate=0.0)
    guarded: list[Any] = [chaos(work_plainly)]
    assert_refuses("hang_rate", 0.5, chaos.update)
    guarded.append(chaos(stream))
    assert_refuses("result", [], chaos.update)
    assert_refuses("result", other_stream, chaos.update)
    assert guarded[0]() == "own"
    guarded.clear()
    gc.collect()
    chaos.update(hang_rate=0.5, result=other_stream, result_rate=0.5)


def test_an_update_may_begin_the_lots_anew() -> None:
    """By the same seed the same calls go wrong again."""
    chaos = Chaos(fault=FaultError, fault_rate=0.5, random=random.Random(3))
    assert chaos.seed is None
    guarded = chaos(work_plainly)
    traces = []
    for _ in range(2):
        chaos.update(random=7)
        traces.append([ends(guarded) for _ in range(20)])
    assert traces[0] == traces[1]
    assert chaos.seed == 7
    assert_refuses("random", "x", chaos.update)


def test_one_without_a_seed_can_be_repeated() -> None:
    """It tells the seed that it has chosen; two of them differ."""
    chaos, other = (Chaos(fault=FaultError, fault_rate=0.5) for _ in range(2))
    guarded = chaos(work_plainly)
    again = Chaos(fault=FaultError, fault_rate=0.5, random=chaos.seed)(work_plainly)
    assert [ends(guarded) for _ in range(20)] == [ends(again) for _ in range(20)]
    assert chaos.seed != other.seed


def test_updates_from_two_sides_both_count() -> None:
    """One that comes while another is being checked is not lost."""
    chaos = Chaos()

    class MeddlingError(Exception):
        def __init__(self) -> None:
            if "latency" not in chaos.settings():
                chaos.update(latency=1.0)

    chaos.update(fault=MeddlingError)
    assert chaos.settings() == {"latency": 1.0, "fault": MeddlingError}


# -- what it tells --------------------------------------------------------------------------------------------------


def test_a_description_tells_what_is_injected_now() -> None:
    """Its settings are those that differ from the defaults, and whether it is off."""
    chaos = Chaos(fault=ConnectionError, fault_rate=0.1, latency=(0.5, 2.0), hang_rate=0.0, name="flaky", random=7)
    described = "Chaos(latency=(0.5, 2.0), fault=ConnectionError, fault_rate=0.1{}) 'flaky'"
    assert str(chaos.describe()) == described.format("")
    assert str(Policy(Timeout(1.0), chaos, name="api").describe()) == (
        f"Policy 'api'\n  Timeout(seconds=1.0)\n  {described.format('')}"
    )
    assert repr(chaos) == "<Chaos 'flaky', enabled, seed 7>"
    chaos.disable()
    assert str(chaos.describe()) == described.format(", enabled=False")
    assert repr(chaos) == "<Chaos 'flaky', disabled, seed 7>"
    assert Chaos(result=None, result_rate=1.0).settings() == {"result": None, "result_rate": 1.0}


@every_loop
async def test_each_injection_is_an_event(events: list[telemetry.Event]) -> None:
    """ChaosInjected tells by whom and what, in order; never the text of an exception, nor a result."""
    clock = ManualClock()
    chaos = Chaos(fault=lambda: FaultError("secret"), latency=0.0, name="flaky", clock=clock)
    with pytest.raises(FaultError):
        await chaos.call(work)
    chaos.update(latency_rate=0.0, fault_rate=0.0, hang_rate=1.0)
    async with Crew() as crew:
        crew.start(partial(chaos.call, work))
        await settle()
    assert await Chaos(result="secret").call(work) == "secret"
    assert events == [
        telemetry.ChaosInjected(name="flaky", kind="latency", delay=0.0),
        telemetry.ChaosInjected(name="flaky", kind="fault", error="FaultError"),
        telemetry.ChaosInjected(name="flaky", kind="hang"),
        telemetry.ChaosInjected(name="Chaos", kind="result"),
    ]
    assert chaos.statistics() == ChaosStatistics(calls=2, latencies=1, faults=1, hangs=1)


def test_statistics_are_frozen() -> None:
    """A snapshot stays what it was."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Chaos().statistics().calls = 1  # type: ignore[misc]


def test_a_keyed_keeps_what_was_used() -> None:
    """Only one that nobody has used or changed may be dropped and made anew: its lots would begin again."""
    for use in (lambda chaos: chaos(work_plainly)(), Chaos.disable, lambda chaos: chaos.update(fault=FaultError)):
        chaos = Chaos()
        assert chaos.is_fresh()
        use(chaos)
        assert not chaos.is_fresh()
    keyed: Keyed[str, Chaos] = Keyed(lambda _: Chaos(), max_keys=1)
    keyed["a"](work_plainly)
    assert "a" in keyed
    keyed["b"](work_plainly)()
    assert "a" not in keyed
