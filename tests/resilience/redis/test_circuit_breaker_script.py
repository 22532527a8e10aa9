"""The circuit on the server beside the machine that states its rules, on a real server in virtual time."""

from __future__ import annotations

import json
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resilience import ConsecutiveFailures, CountWindow, FailureRate, SlowCallRate, TimeWindow
from resilience.machines.breaker import Breaker, CircuitState
from resilience.redis import RedisCircuitBreaker
from resilience.redis.circuit_breaker import _STATES, _condition
from tests.resilience.redis.virtual import HUNT, LAW, LONGER, ServerTime, mutant
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis import settings

    from resilience.machines.tripping import TripCondition
    from resilience.redis.link import Script
    from tests.resilience.redis.unreliable import Client

pytestmark = pytest.mark.redis

SCRIPT = RedisCircuitBreaker.script
RECOVERY, LEASE = 1_000, 300
_fresh = count()

TRIPS: tuple[tuple[TripCondition, ...], ...] = (
    (ConsecutiveFailures(2),),
    (FailureRate(0.5, CountWindow(4), min_calls=2),),
    (FailureRate(0.6, TimeWindow(0.0002), min_calls=3), ConsecutiveFailures(3)),
    (SlowCallRate(0.4, CountWindow(3), min_calls=3), FailureRate(1.0, CountWindow(2), min_calls=2)),
)
TERMS = st.tuples(st.sampled_from(TRIPS), st.sampled_from([1, 2]), st.sampled_from([1, 2]))
#: When a step comes: at once mostly, or about when the circuit or a probe is due.
WHEN = st.sampled_from([0, 0, 0, 0, 1, 7, 60, "before", "due", "due", "after", 3 * RECOVERY])
#: What it is; of permits, mostly the newest is settled.
STEPS = st.lists(
    st.tuples(
        WHEN,
        st.sampled_from(
            ["admit"] * 7 + ["record"] * 7 + ["release", "renew", "renew", "isolate", "lift", "lift", "reset"]
        ),
        st.sampled_from([0, 0, 0, 1, 2]),
        st.booleans(),
        st.booleans(),
    ),
    max_size=40,
)


@pytest.fixture
def time(client: Client, prefix: str) -> ServerTime:
    """Give the virtual time of the server."""
    return ServerTime(client, prefix)


def terms_of(trip: tuple[TripCondition, ...], probes: int, successes: int) -> str:
    """Return terms as the script reads them."""
    return json.dumps(
        {
            "recovery": RECOVERY,
            "probes": probes,
            "successes": successes,
            "lease": LEASE,
            "trip": [_condition(condition) for condition in trip],
            "told": repr(trip),
        }
    )


class Pair:
    """The machine, and the script that is to do the same."""

    def __init__(self, time: ServerTime, script: Script, trip: tuple[TripCondition, ...], *limits: int) -> None:
        probes, successes = limits
        self.machine = Breaker(
            conditions=trip,
            recovery_ns=RECOVERY * 1_000,
            probe_limit=probes,
            success_threshold=successes,
            probe_for_ns=LEASE * 1_000,
        )
        self.time = time
        self.key = f"{time._key}:{next(_fresh)}"
        self._ask = partial(time.run, script, self.key)
        self._terms = terms_of(trip, probes, successes)
        # For each permit: the generation and the probe there, and here.
        self._permits: list[tuple[int, int, int, int]] = []
        self._changes: list[tuple[CircuitState, CircuitState, int]] = []
        self._isolations = 0
        self._failed_at = 0

    @property
    def now_ns(self) -> int:
        """This instant, as the machine counts."""
        return self.time.now * 1_000

    def wait(self, when: int | str) -> None:
        """Let time pass: so much, or until something is due, but for a microsecond."""
        if isinstance(when, int):
            self.time.advance(when)
            return
        machine = self.machine
        due = [machine.ready_at(), *machine._probes.values()]
        instant = min((each for each in due if each is not None), default=self.now_ns) // 1_000
        instant += {"before": -1, "due": 0, "after": 1}[when]
        self.time.set(max(self.time.now, instant))

    def do(self, what: str, which: int, *, failed: bool, slow: bool) -> None:
        """Do the same on both sides, and compare all that they say."""
        if what != "lift":
            self.machine.tick(self.now_ns)
        if what == "admit":
            self._admit()
        elif what in {"record", "release", "renew"} and self._permits:
            generation, probe, here, own = self._permits[-1 - which % len(self._permits)]
            if what == "record":
                counted = self.machine.record(here, own, self.now_ns, failed=failed, slow=slow)
                self._failed_at = self.time.now if counted and failed else self._failed_at
                answer = self._compare(what, generation, probe, int(failed), int(slow), 0)
                assert answer[0] == int(counted)
            elif what == "release":
                self.machine.release(here, own)
                self._compare(what, generation, probe)
            else:
                self.machine.renew(here, own, self.now_ns)
                self._compare(what, generation, probe)
        elif what in {"isolate", "lift", "reset"}:
            self._by_hand(what)

    def _admit(self) -> None:
        probe = self.machine.admit(self.now_ns)
        answer, _, _, generation, *_ = self._compare("admit")
        # Each side numbers its probes itself.
        assert (answer > 0, answer < 0) == (bool(probe), probe is None)
        if probe is not None:
            self._permits.append((generation, answer, self.machine.generation, probe))

    def _by_hand(self, what: str) -> None:
        if what == "isolate":
            self._isolations += 1
            self.machine.isolate(self.now_ns)
        elif what == "reset":
            self.machine.reset(self.now_ns)
        elif self._isolations:
            self._isolations -= 1
            self.machine.lift(self.now_ns)
            self.machine.tick(self.now_ns)
        else:
            self.machine.tick(self.now_ns)
        self._compare(what)

    def _compare(self, what: str, *args: int) -> list[int]:
        answer = self._ask(what, self._terms, *args)
        _, _, _, _, state, reopens, _, _, failures, failed_at, under_way, *log = answer
        machine = self.machine
        self._changes += machine.changes
        machine.changes.clear()
        machine.tripwire.age(self.now_ns)
        ready_at = machine.ready_at()
        assert _STATES[state] is machine.state
        assert reopens == (-1 if ready_at is None else ready_at // 1_000 - self.time.now)
        assert (failures, failed_at, under_way) == (machine.tripwire.failures, self._failed_at, machine.probes)
        told = [(_STATES[log[at + 1]], _STATES[log[at + 2]], log[at + 3] * 1_000) for at in range(0, len(log), 4)]
        assert told == self._changes[-8:]
        return answer

    def check_expiry(self) -> None:
        """Assert that the key stays for as long as it should: for ever while isolated."""
        life = self.time.client.pttl(self.key)
        if self._isolations:
            assert life == -1
        else:
            assert life == -2 or life > 1_800_000


Step: TypeAlias = "tuple[int | str, str, int, bool, bool]"


def then(what: str, when: int | str = 0, *, failed: bool = False) -> Step:
    """Return a step, by default at once."""
    return when, what, 0, failed, False


WELL = [then("admit"), then("record")]
FAILS = [then("admit"), then("record", failed=True)]
PROBE = [then("admit", "due")]

#: Courses that show faults which chance finds late: conditions, probes at a time, successes that close, and steps.
TELLING: list[tuple[tuple[TripCondition, ...], int, int, list[Step]]] = [
    # Nothing is isolated when somebody lifts, and a break is just over.
    ((ConsecutiveFailures(1),), 1, 1, [*FAILS, then("lift", "due")]),
    # One probe at a time; a circuit that opens knows no probe any more.
    ((ConsecutiveFailures(1),), 1, 1, [*FAILS, *PROBE, then("admit")]),
    ((ConsecutiveFailures(1),), 2, 1, [*FAILS, *PROBE, *FAILS]),
    # One success is not two, be it told twice, or another one before the circuit opened again.
    ((ConsecutiveFailures(1),), 1, 2, [*FAILS, *PROBE, then("record"), then("record")]),
    ((ConsecutiveFailures(1),), 1, 2, [*FAILS, *PROBE, then("record"), *FAILS, *PROBE, then("record")]),
    # A probe that was slow has failed.
    ((ConsecutiveFailures(1),), 1, 1, [*FAILS, *PROBE, (0, "record", 0, False, True)]),
    # A success ends a row of failures; so does a circuit that closes.
    ((ConsecutiveFailures(2),), 1, 1, [*FAILS, *WELL, *FAILS]),
    ((ConsecutiveFailures(2),), 1, 1, [*FAILS, *FAILS, *PROBE, then("record"), *FAILS]),
    # A probe that is renewed may take longer.
    ((ConsecutiveFailures(1),), 1, 1, [*FAILS, *PROBE, then("renew", 60), then("record", 250)]),
    # What has left a window, of calls or of time.
    ((FailureRate(1.0, CountWindow(2), min_calls=2),), 1, 1, [*WELL, *FAILS, *FAILS]),
    (
        (FailureRate(0.6, TimeWindow(0.0002), min_calls=3),),
        1,
        1,
        [*FAILS, *FAILS, then("admit", 200), then("record", failed=True)],
    ),
    # Isolated twice, and lifted once; isolated over a probe.
    ((ConsecutiveFailures(1),), 1, 1, [then("isolate"), then("isolate"), then("lift")]),
    ((ConsecutiveFailures(1),), 1, 1, [*FAILS, *PROBE, then("isolate"), then("lift")]),
]


def told(law: Callable[..., None]) -> Callable[..., None]:
    """Try a law on the telling courses first."""
    for *terms, steps in reversed(TELLING):
        law = example(tuple(terms), steps)(law)
    return law


def law_of_the_model(time: ServerTime, script: Script, effort: settings = LAW) -> None:
    """Script and machine are in the same state at every step, came there at the same instants, and answer alike."""

    @effort
    @given(TERMS, STEPS)
    @told
    def law(
        terms: tuple[tuple[TripCondition, ...], int, int], steps: list[tuple[int | str, str, int, bool, bool]]
    ) -> None:
        trip, *limits = terms
        pair = Pair(time, script, trip, *limits)
        for when, what, which, failed, slow in steps:
            pair.wait(when)
            pair.do(what, which, failed=failed, slow=slow)
        pair.check_expiry()

    law()


def test_the_script_obeys_the_machine(time: ServerTime) -> None:
    """CB1-CB5, CB7: the circuit on the server is the one that `machines.breaker` describes, step by step."""
    law_of_the_model(time, time.virtual(SCRIPT))


MUTANTS = {
    "a probe too many": ("#c.probes < terms.probes", "#c.probes <= terms.probes"),
    "any generation": ("  if generation ~= c.generation then\n    return 0", "  if false then\n    return 0"),
    "a probe that is settled twice": ("if not place then", "if false then"),
    "probes for ever": ("if now < ends then", "if now then"),
    "too early": ("now >= c.reopen then", "now >= c.reopen - 1 then"),
    "too late": ("now >= c.reopen then", "now > c.reopen then"),
    "one success is enough": ("c.successes >= terms.successes", "c.successes >= 1"),
    "successes that stay": ("changed = state, {}, 0, true", "changed = state, {}, c.successes, true"),
    "probes that stay": ("changed = state, {}, 0, true", "changed = state, c.probes, 0, true"),
    "failures that stay": ("c.openings, c.wires = 0, fresh_wires()\n  become", "c.openings = 0\n  become"),
    "failures that add up": ("failed == 1 and wire.failed + 1 or 0", "wire.failed + failed"),
    "a window too long": ("#wire.seen >= condition.calls", "#wire.seen > condition.calls"),
    "slices that stay": ("wire.seen[1][1] <= oldest", "wire.seen[1][1] < oldest"),
    "slow is not failed": ("if failed == 1 or slow == 1 then", "if failed == 1 then"),
    "isolated for once": ("if c.isolations == 0 then", "if true then"),
    "half-open beneath": ("c.state == HALF_OPEN and OPEN or c.state", "c.state"),
    "a reset of counts alone": ("c.generation = math.max(c.generation + 1, now)\n  else", "changed = true\n  else"),
    "a renewal that is none": ("c.probes[place][2] = now + terms.lease", "c.probes[place][2] = c.probes[place][2]"),
    "the instant of looking": ("open(ends, c.previous)", "open(now, c.previous)"),
    "a key that goes early": ("local KEPT_FOR = 3600000", "local KEPT_FOR = 1000000"),
    "an isolation that expires": ("if c.state == ISOLATED then\n    -- Until", "if false then\n    -- Until"),
}  # fmt: skip


@pytest.mark.parametrize("fault", MUTANTS)
def test_a_faulty_script_is_seen(time: ServerTime, fault: str) -> None:
    """CB1-CB5, CB7: the machine catches each of the classic mistakes."""
    assert_caught(partial(law_of_the_model, time, mutant(time.virtual(SCRIPT), *MUTANTS[fault]), HUNT))


def answer_of(time: ServerTime, script: Script, key: str, what: str, *args: object) -> dict[str, int]:
    """Run an operation, and return what it says by name."""
    names = ("answer", "born", "before", "generation", "state", "reopens", "openings", "previous", "failures")
    told = terms_of((ConsecutiveFailures(1),), 1, 1)
    return dict(zip(names, time.run(script, key, what, told, *args), strict=False))


def test_a_permit_of_before_a_loss_changes_nothing(time: ServerTime) -> None:
    """CB3: after a failover to a server that knows nothing, a generation is not one that there was before."""
    script = time.virtual(SCRIPT)
    ask: Any = partial(answer_of, time, script, f"{time._key}:{next(_fresh)}")
    permit = ask("admit")
    assert ask("record", permit["generation"], 0, 1, 0, 0)["state"] == 1
    time.client.delete(ask.args[2])
    time.advance(1)
    assert ask("admit")["answer"] == 0
    assert ask("record", permit["generation"], 0, 1, 0, 0) | {"answer": 0, "state": 0} == ask("admit") | {
        "before": ask("admit")["before"]
    }
    assert ask("admit")["failures"] == 0


def test_a_break_grows_when_probes_fail_again(time: ServerTime) -> None:
    """What a process says for how long to open holds from the second opening on, and is never shorter than was said."""
    script = time.virtual(SCRIPT)
    ask: Any = partial(answer_of, time, script, f"{time._key}:{next(_fresh)}")
    ask("record", ask("admit")["generation"], 0, 1, 0, 5_000)
    assert ask("admit")["reopens"] == RECOVERY
    for open_for, expected in ((5_000, 5_000), (10, RECOVERY)):
        time.advance(10_000)
        probe = ask("admit")
        opened = ask("record", probe["generation"], probe["answer"], 1, 0, open_for)
        assert (opened["answer"], opened["reopens"], opened["previous"]) == (1, expected, expected)
    time.advance(10_000)
    ask("admit")
    # Nobody tells of this probe: it opens for as long as the last time.
    time.advance(LEASE)
    assert ask("admit")["openings"] == 4
    assert ask("admit")["reopens"] == RECOVERY


def test_a_clock_that_falls_back_keeps_nothing_open(time: ServerTime) -> None:
    """CB8: a circuit is open for as long as was said, whatever the clock shows meanwhile."""
    script = time.virtual(SCRIPT)
    ask: Any = partial(answer_of, time, script, f"{time._key}:{next(_fresh)}")
    ask("record", ask("admit")["generation"], 0, 1, 0, 0)
    time.advance(-3_600_000_000)
    assert ask("admit")["reopens"] == RECOVERY
    time.advance(RECOVERY - 1)
    assert (ask("admit")["answer"], ask("admit")["reopens"]) == (-1, 1)
    time.advance(1)
    assert ask("admit")["answer"] == 1
    assert ask("admit")["answer"] == -1


def test_other_conditions_begin_anew(time: ServerTime) -> None:
    """While a new version is rolled out, what was counted for other conditions says nothing, and breaks nothing."""
    script = time.virtual(SCRIPT)
    key = f"{time._key}:{next(_fresh)}"
    for trip in (TRIPS[0], TRIPS[1], TRIPS[2], TRIPS[0]):
        told = terms_of(trip, 1, 1)
        generation = time.run(script, key, "admit", told)[3]
        counted, *_, failures, _, _ = time.run(script, key, "record", told, generation, 0, 1, 0, 0)
        assert (counted, failures) == (1, 1)


def test_a_circuit_that_is_used_is_remembered(time: ServerTime) -> None:
    """Calls that change nothing keep the circuit, too, without writing it each time."""
    script = time.virtual(SCRIPT)
    key = f"{time._key}:{next(_fresh)}"
    ask: Any = partial(answer_of, time, script, key)
    generation = ask("admit")["generation"]
    time.client.pexpire(key, 1_000)
    assert ask("admit")["generation"] == generation
    assert time.client.pttl(key) > LONGER / 2
