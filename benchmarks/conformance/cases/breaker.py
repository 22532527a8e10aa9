"""Circuit breakers: trials, late outcomes, and what is neither success nor failure."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

import attrs

from benchmarks.conformance.case import (
    Gate,
    Killed,
    Service,
    ServiceError,
    case,
    expect,
    open_circuit,
    outcome,
    prepare,
    settle,
)
from benchmarks.conformance.library import Circuit
from benchmarks.conformance.plain import break_circuit, failure, pass_time

if TYPE_CHECKING:
    from benchmarks.conformance.library import Breaker, Library

__all__: list[str] = []

FAILURES = 2
RECOVERY = 10.0
CIRCUIT = Circuit(failures=FAILURES, recovery=RECOVERY)
AFTER_RECOVERY = RECOVERY + 1.5
"""Clear of the instant itself, and of libraries that count whole seconds."""
CALLERS = 10


async def opened(library: Library, circuit: Circuit = CIRCUIT) -> Breaker:
    """Return a breaker whose circuit has just opened."""
    breaker = library.breaker(circuit)
    await open_circuit(breaker, failures=FAILURES)
    return breaker


async def opened_and_due(library: Library, circuit: Circuit = CIRCUIT) -> Breaker:
    """Return a breaker whose circuit was open and is due for a trial."""
    breaker = await opened(library, circuit)
    await asyncio.sleep(AFTER_RECOVERY)
    return breaker


async def most_at_once(breaker: Breaker) -> int:
    """Let many call at the same time, and return how many of them were running together."""
    service, gate = Service(), Gate()
    calls = [asyncio.create_task(outcome(breaker.call(service.function(gate=gate)))) for _ in range(CALLERS)]
    await settle()
    gate.open()
    await asyncio.gather(*calls)
    return service.peak


async def begin_call(
    breaker: Breaker, gate: Gate, error: type[Exception] | None = None
) -> asyncio.Future[Exception | None]:
    """Begin a call that runs until the gate is open, and see that it runs."""
    service = Service()
    task = asyncio.ensure_future(outcome(breaker.call(service.function(error, gate=gate))))
    await settle()
    prepare(service.running == 1, "the call is not admitted")
    return task


async def begin_and_cancel(breaker: Breaker) -> None:
    """Begin a call, see that it runs, and cancel it."""
    call = await begin_call(breaker, Gate())
    call.cancel()
    await asyncio.wait([call])


async def comes_back(breaker: Breaker) -> bool:
    """Tell whether calls come through again, once there has been time for two more trials."""
    for _ in range(2):
        await asyncio.sleep(AFTER_RECOVERY)
        if await Service().reached_through(breaker):
            return True
    return False


@case(
    "breaker",
    "After the recovery time one trial is admitted at a time, however many tasks call",
    "Skyscanner/pyfailsafe#31",
    "Llucs/backon#26",
    "browser-use/browser-use#4879",
)
async def half_open_flood(library: Library) -> None:
    """Many tasks call a circuit that is due."""
    peak = await most_at_once(await opened_and_due(library))

    expect(peak <= 1, f"{peak} trials at once")


@case(
    "breaker",
    "After the recovery time one trial is admitted at a time, however many threads call",
    "fabfuel/circuitbreaker#61",
    "walmartlabs/strati-functional#8",
)
def half_open_flood_of_threads(library: Library) -> None:
    """Several threads call a circuit that is due; each stays inside until all have had time to come."""
    call = library.plain_breaker(CIRCUIT)
    break_circuit(call, failures=FAILURES)
    pass_time(AFTER_RECOVERY)
    inside = 0
    release = threading.Event()

    def trial() -> None:
        nonlocal inside
        inside += 1
        release.wait()

    def caller() -> None:
        failure(lambda: call(trial))

    threads = [threading.Thread(target=caller, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
        # Until it is inside, or has been refused, or waits for a lock.
        thread.join(0.1)
    together = inside
    release.set()
    for thread in threads:
        thread.join()

    expect(together <= 1, f"{together} trials at once")


@case(
    "breaker",
    "A trial that is cancelled does not close the circuit",
    "monix/monix#1101",
    "tsouza/cerberus#738",
)
async def cancelled_trial_closes(library: Library) -> None:
    """The next failure is still that of a trial, after which nobody is admitted."""
    breaker = await opened_and_due(library)
    await begin_and_cancel(breaker)
    await asyncio.sleep(AFTER_RECOVERY)
    await outcome(breaker.call(Service().function(ServiceError)))

    expect(not await Service().reached_through(breaker), "one failure does not open the circuit again: it is closed")


@case(
    "breaker",
    "A trial that is cancelled does not keep the circuit shut for ever",
    "tsouza/cerberus#738",
    "monix/monix#1101",
)
async def cancelled_trial_wedges(library: Library) -> None:
    """After it, there is another trial in good time."""
    breaker = await opened_and_due(library)
    await begin_and_cancel(breaker)

    expect(await comes_back(breaker), "no call is admitted any more")


@case(
    "breaker",
    "A trial that ends with a BaseException does not keep the circuit shut for ever",
    "afreidah/s3-orchestrator#424",
)
async def killed_trial_wedges(library: Library) -> None:
    """As KeyboardInterrupt and SystemExit would."""
    breaker = await opened_and_due(library)
    trial = Service()
    with contextlib.suppress(Killed):
        await outcome(breaker.call(trial.function(Killed)))
    prepare(trial.calls == 1, "the trial is not admitted")

    expect(await comes_back(breaker), "no call is admitted any more")


@case(
    "breaker",
    "A trial whose coroutine is dropped half way does not keep the circuit shut for ever",
    "decocms/studio#5322",
    "getnora-io/nora#607",
)
async def abandoned_trial_wedges(library: Library) -> None:
    """The coroutine is closed, as happens to one whose event loop has ended."""
    breaker = await opened_and_due(library)
    trial = Service()

    async def abandoned() -> None:
        await breaker.call(trial.function(gate=Gate()))

    running = abandoned()
    running.send(None)
    prepare(trial.running == 1, "the trial is not admitted")
    running.close()

    expect(await comes_back(breaker), "no call is admitted any more")


@case(
    "breaker",
    "A trial that never ends does not keep the circuit shut for ever",
    "diegosouzapw/OmniRoute#13836",
    "getnora-io/nora#607",
)
async def hung_trial_wedges(library: Library) -> None:
    """It hangs, and nobody cancels it; once there has been time for two more trials, one of them is admitted."""
    breaker = await opened_and_due(library)
    trial = await begin_call(breaker, Gate())

    admitted = await comes_back(breaker)
    trial.cancel()

    expect(admitted, "no call is admitted any more")


@case(
    "breaker",
    "A trial that ends with an exception that is said to mean nothing does not keep the circuit shut for ever",
    "decocms/studio#5322",
    "JeffOtano/roni#323",
)
async def ignored_trial_wedges(library: Library) -> None:
    """The trial gets, for example, a 404: no verdict on the service."""
    breaker = await opened_and_due(library, attrs.evolve(CIRCUIT, ignored=LookupError))
    trial = Service()
    await outcome(breaker.call(trial.function(LookupError)))
    prepare(trial.calls == 1, "the trial is not admitted")

    expect(await comes_back(breaker), "no call is admitted any more")


@case(
    "breaker",
    "Calls that are cancelled do not open the circuit",
    "tsouza/cerberus#738",
    "resilience4j/resilience4j#682",
)
async def cancellation_counts_as_failure(library: Library) -> None:
    """Callers who lose patience say nothing about the service."""
    breaker = library.breaker(CIRCUIT)
    for _ in range(2 * FAILURES):
        service = Service()
        call = asyncio.ensure_future(breaker.call(service.function(gate=Gate())))
        await settle()
        expect(service.calls == 1, "the circuit is open")
        call.cancel()
        await asyncio.wait([call])

    expect(await Service().reached_through(breaker), "the circuit is open")


@case(
    "breaker",
    "A call that is cancelled does not count as a success either",
    "tsouza/cerberus#738",
)
async def cancellation_counts_as_success(library: Library) -> None:
    """It leaves the run of failures as it was."""
    breaker = library.breaker(CIRCUIT)
    for _ in range(FAILURES - 1):
        await outcome(breaker.call(Service().function(ServiceError)))
    await begin_and_cancel(breaker)
    await outcome(breaker.call(Service().function(ServiceError)))

    expect(not await Service().reached_through(breaker), "the circuit is still closed")


async def late_call(
    library: Library, error: type[Exception] | None
) -> tuple[Breaker, Gate, asyncio.Future[Exception | None]]:
    """Begin a call, open the circuit beside it, and return both, and the gate that ends the call."""
    breaker, gate = library.breaker(CIRCUIT), Gate()
    task = await begin_call(breaker, gate, error)
    await open_circuit(breaker, failures=FAILURES)
    return breaker, gate, task


@case(
    "breaker",
    "A success of a call from before the circuit opened does not close it",
    "jaseci-labs/jac#8064",
)
async def late_success_closes(library: Library) -> None:
    """It was slow, and began when all was well."""
    breaker, gate, task = await late_call(library, None)
    gate.open()
    await task

    expect(not await Service().reached_through(breaker), "the circuit is closed")


@case(
    "breaker",
    "A success of a call from before the circuit opened does not decide the trial",
    "App-vNext/Polly#217",
    "thomhurst/Kevlar#227",
)
async def late_success_decides_the_trial(library: Library) -> None:
    """The trial fails after it, so the circuit is open."""
    breaker, gate, task = await late_call(library, None)
    await asyncio.sleep(AFTER_RECOVERY)
    trial_gate = Gate()
    trial = await begin_call(breaker, trial_gate, ServiceError)
    gate.open()
    await task
    trial_gate.open()
    await asyncio.wait([trial])

    expect(not await Service().reached_through(breaker), "the circuit is closed after a trial that failed")


@case(
    "breaker",
    "A failure of a call from before the circuit opened does not decide the trial",
    "App-vNext/Polly#223",
    "gofiber/contrib#2350",
)
async def late_failure_decides_the_trial(library: Library) -> None:
    """The trial succeeds after it, so the circuit is closed."""
    breaker, gate, task = await late_call(library, ServiceError)
    await asyncio.sleep(AFTER_RECOVERY)
    trial_gate = Gate()
    trial = await begin_call(breaker, trial_gate)
    gate.open()
    await task
    trial_gate.open()
    await trial

    expect(await Service().reached_through(breaker), "the circuit is open after a successful trial")


@case(
    "breaker",
    "A failure of a call from before the circuit opened does not keep it open for longer",
    "nodeshift/opossum#385",
    "gofiber/contrib#2350",
)
async def late_failure_prolongs(library: Library) -> None:
    """The recovery time is counted from when the circuit opened."""
    breaker, gate, task = await late_call(library, ServiceError)
    await asyncio.sleep(RECOVERY - 2)
    gate.open()
    await task
    await asyncio.sleep(AFTER_RECOVERY - RECOVERY + 2)

    expect(await Service().reached_through(breaker), "no trial once the recovery time is over")


@case(
    "breaker",
    "Calls that are refused do not keep the circuit open for longer",
    "alisaifee/limits#28",
    "peterkhayes/rolling-rate-limiter#36",
)
async def refusals_prolong(library: Library) -> None:
    """Callers who keep asking get their trial all the same."""
    breaker = await opened(library)
    for _ in range(int(RECOVERY) - 1):
        await asyncio.sleep(1)
        prepare(not await Service().reached_through(breaker), "a call is admitted too early")
    await asyncio.sleep(AFTER_RECOVERY - RECOVERY + 1)

    expect(await Service().reached_through(breaker), "no trial once the recovery time is over")
