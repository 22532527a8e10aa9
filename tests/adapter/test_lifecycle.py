"""The verdict table, row by row and as laws; and broken tables that the laws catch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import attrs
import pytest
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st

from resilience import Verdict
from webhook_adapter import lifecycle
from webhook_adapter.lifecycle import EXPIRED, Dead, Delivered, DueAgain, Judgement, breaker_verdict, delay_before
from webhook_adapter.model import AttemptOutcome, FailureKind

NOW = 1_700_000_000.0
SCHEDULE = (0.0, 5.0, 300.0, 1800.0)
Judge: TypeAlias = Callable[..., Judgement]


def outcome(
    status: int | None = None, failure: FailureKind | None = None, *, after: float | None = None
) -> AttemptOutcome:
    """Return how an attempt ended."""
    return AttemptOutcome(started_at=NOW, duration=1.0, status_code=status, failure=failure, retry_after=after)


def judge(
    ended: AttemptOutcome,
    *,
    round_attempt: int = 1,
    u: float = 0.5,
    jitter: float = 0.2,
    retry_after_max: float = 86_400.0,
    expires_at: float | None = None,
    now: float = NOW,
) -> Judgement:
    """Judge with ordinary settings."""
    return lifecycle.judge(
        ended,
        round_attempt=round_attempt,
        schedule=SCHEDULE,
        jitter=jitter,
        retry_after_max=retry_after_max,
        now=now,
        u=u,
        expires_at=expires_at,
    )


@pytest.mark.parametrize(
    ("ended", "breaker", "first", "last"),
    [
        (outcome(200), Verdict.SUCCESS, Delivered(), Delivered()),
        (outcome(299), Verdict.SUCCESS, Delivered(), Delivered()),
        (outcome(429), Verdict.IGNORED, DueAgain(NOW + 5), Dead("status 429")),
        (outcome(429, after=60.0), Verdict.IGNORED, DueAgain(NOW + 60), Dead("status 429")),
        (
            outcome(410),
            Verdict.IGNORED,
            Dead("status 410", disable_endpoint=True),
            Dead("status 410", disable_endpoint=True),
        ),
        (outcome(301), Verdict.FAILURE, DueAgain(NOW + 5), Dead("status 301")),
        (outcome(404, after=60.0), Verdict.FAILURE, DueAgain(NOW + 5), Dead("status 404")),
        (outcome(500), Verdict.FAILURE, DueAgain(NOW + 5), Dead("status 500")),
        (outcome(503), Verdict.FAILURE, DueAgain(NOW + 5), Dead("status 503")),
        (outcome(503, after=60.0), Verdict.FAILURE, DueAgain(NOW + 60), Dead("status 503")),
        (outcome(503, after=1.0), Verdict.FAILURE, DueAgain(NOW + 5), Dead("status 503")),
        (outcome(failure=FailureKind.TIMEOUT), Verdict.FAILURE, DueAgain(NOW + 5), Dead("timeout")),
        (outcome(failure=FailureKind.CONNECTION), Verdict.FAILURE, DueAgain(NOW + 5), Dead("connection")),
        (outcome(failure=FailureKind.TLS), Verdict.FAILURE, DueAgain(NOW + 5), Dead("tls")),
        (outcome(failure=FailureKind.DNS), Verdict.FAILURE, DueAgain(NOW + 5), Dead("dns")),
        (outcome(failure=FailureKind.PROTOCOL), Verdict.FAILURE, DueAgain(NOW + 5), Dead("protocol")),
        (outcome(failure=FailureKind.REFUSED), Verdict.IGNORED, DueAgain(NOW + 5), Dead("refused")),
    ],
    ids=str,
)
def test_the_table(ended: AttemptOutcome, breaker: Verdict, first: Judgement, last: Judgement) -> None:
    """Each row of the table: what the breaker hears, and what becomes of a first and of a last attempt."""
    assert breaker_verdict(ended) is breaker
    assert judge(ended) == first
    assert judge(ended, round_attempt=len(SCHEDULE)) == last


@pytest.mark.parametrize(("after", "delay"), [(1e18, 3600.0), (math.inf, 3600.0), (0.0, 5.0), (3599.5, 3599.5)])
def test_retry_after_is_clamped(after: float, delay: float) -> None:
    """F26: what a receiver asks for is honoured up to the longest wait, and never shortens the schedule's."""
    assert judge(outcome(429, after=after), retry_after_max=3600.0) == DueAgain(NOW + delay)


def test_what_would_start_too_late_expires() -> None:
    """A delivery whose next attempt would not start before its expiry is dead at once, and says why."""
    assert judge(outcome(500), expires_at=NOW + 5.0) == Dead(EXPIRED)
    assert judge(outcome(500), expires_at=NOW + 5.001) == DueAgain(NOW + 5.0)
    assert judge(outcome(200), expires_at=NOW - 1.0) == Delivered()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("round_attempt", 0),
        ("round_attempt", True),
        ("round_attempt", 1.0),
        ("jitter", math.nan),
        ("jitter", 1.1),
        ("jitter", -0.1),
        ("retry_after_max", math.nan),
        ("retry_after_max", math.inf),
        ("retry_after_max", -1.0),
        ("now", math.nan),
        ("now", math.inf),
        ("u", 1.0),
        ("u", -0.1),
        ("u", math.nan),
    ],
)
def test_arguments_must_mean_something(name: str, value: float) -> None:
    """An argument that means nothing is refused, by name."""
    with pytest.raises(ValueError, match=name):
        judge(outcome(500), **{name: value})  # type: ignore[arg-type]


_ENDED = st.one_of(
    st.builds(
        outcome,
        st.integers(100, 599),
        after=st.none() | st.floats(0, allow_nan=False) | st.floats(0, 2 * 86_400),
    ),
    st.builds(outcome, st.none(), st.sampled_from(FailureKind)),
)


def law(check: Judge, *, phases: tuple[Phase, ...] = tuple(Phase)) -> None:
    """WH5 as a law of `check`, over a whole round."""

    @settings(phases=phases, max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @example(ended=outcome(503, after=1e18), round_attempt=1, jitter=0.2, u=0.0, expires_after=None)
    @example(ended=outcome(500), round_attempt=4, jitter=0.2, u=0.0, expires_after=None)
    @given(
        ended=_ENDED,
        round_attempt=st.integers(1, 6),
        jitter=st.floats(0, 1),
        u=st.floats(0, 1, exclude_max=True),
        expires_after=st.none() | st.floats(0.001, 4000),
    )
    def holds(ended: AttemptOutcome, round_attempt: int, jitter: float, u: float, expires_after: float | None) -> None:
        expires_at = None if expires_after is None else NOW + expires_after
        answer = check(
            ended,
            round_attempt=round_attempt,
            schedule=SCHEDULE,
            jitter=jitter,
            retry_after_max=3600.0,
            now=NOW,
            u=u,
            expires_at=expires_at,
        )
        assert (answer == Delivered()) == ended.succeeded
        assert (isinstance(answer, Dead) and answer.disable_endpoint) == (ended.status_code == 410)
        if isinstance(answer, DueAgain):
            assert round_attempt < len(SCHEDULE)
            base = SCHEDULE[round_attempt]
            least, most = NOW + base * (1 - jitter), NOW + base * (1 + jitter)
            asked = ended.retry_after if ended.status_code in {429, 503} else None
            earliest = least if asked is None else max(least, NOW + min(asked, 3600.0))
            latest = most if asked is None else max(most, NOW + min(asked, 3600.0))
            # A millionth: what is left of a sum at this instant.
            assert earliest - 1e-6 <= answer.at <= latest + 1e-6
            assert expires_at is None or answer.at < expires_at
        elif not ended.succeeded and ended.status_code != 410 and round_attempt < len(SCHEDULE):
            assert answer == Dead(EXPIRED)
            assert expires_at is not None

    holds()


def test_attempts_start_when_they_may() -> None:
    """WH5: within the jitter of the schedule or later if asked, at most as many as it has, never past the expiry."""
    law(lifecycle.judge)


def test_jitter_spreads_to_both_sides() -> None:
    """The earliest and the latest delay are those of the jitter, and the middle is the schedule's."""
    assert [delay_before(3, schedule=SCHEDULE, jitter=0.2, u=u) for u in (0.0, 0.5)] == [240.0, 300.0]
    assert delay_before(3, schedule=SCHEDULE, jitter=0.2, u=1 - 2**-53) == pytest.approx(360.0)
    assert delay_before(1, schedule=SCHEDULE, jitter=1.0, u=0.9) == 0.0


def _changed(ended: AttemptOutcome, **changes: object) -> Judgement:
    arguments = {"schedule": SCHEDULE, "retry_after_max": 3600.0, "now": NOW, **changes}
    return lifecycle.judge(ended, **arguments)  # type: ignore[arg-type]


def _one_too_many(ended: AttemptOutcome, **named: object) -> Judgement:
    return _changed(ended, **{**named, "schedule": (*SCHEDULE, 1800.0)})


def _one_late(ended: AttemptOutcome, **named: object) -> Judgement:
    return _changed(ended, **{**named, "schedule": SCHEDULE[1:]})


def _twice_the_jitter(ended: AttemptOutcome, **named: object) -> Judgement:
    jitter = named["jitter"]
    assert isinstance(jitter, float)
    assume(jitter <= 0.5)
    return _changed(ended, **{**named, "jitter": jitter * 2})


def _deaf(ended: AttemptOutcome, **named: object) -> Judgement:
    return _changed(attrs.evolve(ended, retry_after=None), **named)


def _gullible(ended: AttemptOutcome, **named: object) -> Judgement:
    return _changed(ended, **{**named, "retry_after_max": 1e9})


def _eternal(ended: AttemptOutcome, **named: object) -> Judgement:
    return _changed(ended, **{**named, "expires_at": None})


def _easily_pleased(ended: AttemptOutcome, **named: object) -> Judgement:
    return Delivered() if ended.status_code == 302 else _changed(ended, **named)


def _stubborn(ended: AttemptOutcome, **named: object) -> Judgement:
    return _changed(attrs.evolve(ended, status_code=500) if ended.status_code == 410 else ended, **named)


@pytest.mark.parametrize(
    "mutant",
    [_one_too_many, _one_late, _twice_the_jitter, _deaf, _gullible, _eternal, _easily_pleased, _stubborn],
    ids=lambda mutant: mutant.__name__.strip("_"),
)
def test_a_broken_table_is_caught(mutant: Judge) -> None:
    """Each of these mutants breaks the law."""
    if mutant in {_easily_pleased, _stubborn}:
        # One status among five hundred is for the table's rows, not for dice.
        ended = outcome(302 if mutant is _easily_pleased else 410)
        assert mutant(ended, round_attempt=1, jitter=0.2, u=0.5, expires_at=None) != judge(
            ended, retry_after_max=3600.0
        )
        return
    with pytest.raises((AssertionError, IndexError)):
        law(mutant, phases=(Phase.explicit, Phase.generate))
