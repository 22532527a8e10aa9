"""The tree of errors: what each is, says and survives."""

from __future__ import annotations

import copy
import pickle

import pytest

import resilience.errors
from resilience import (
    BulkheadFullError,
    CircuitOpenError,
    LimitExceededError,
    RateLimitedError,
    RejectedError,
    ResilienceError,
    StormError,
    TimeoutExceededError,
)

REJECTIONS = {
    RejectedError: "api refused the call",
    RateLimitedError: "api has no token left",
    CircuitOpenError: "api is open",
    StormError: "api is weathering a storm",
    BulkheadFullError: "api is full",
    LimitExceededError: "api is at its limit",
}


@pytest.mark.parametrize("kind", REJECTIONS)
def test_rejections_say_who_refused_and_when_to_come_back(kind: type[RejectedError]) -> None:
    """The message names the guard and, where it is known, the time; both are attributes too."""
    assert issubclass(kind, RejectedError)
    assert issubclass(kind, ResilienceError)
    assert not issubclass(kind, OSError)
    assert str(kind("api")) == REJECTIONS[kind]
    assert str(kind("api", 1.23456)) == f"{REJECTIONS[kind]}; ask again in 1.23 s"
    error = kind("api", 0.0)
    assert (error.guard, error.retry_after) == ("api", 0.0)
    assert kind("api").retry_after is None


@pytest.mark.parametrize("error", [*(kind("api", 2.5) for kind in REJECTIONS), TimeoutExceededError(1.5)], ids=repr)
def test_errors_survive_pickling_and_copying(error: ResilienceError) -> None:
    """What one process raises another can look at: class, attributes and message stay."""
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_timeout_is_a_builtin_timeout_too() -> None:
    """Whoever catches TimeoutError catches it; it says how long it was."""
    error = TimeoutExceededError(0.25)
    assert isinstance(error, TimeoutError)
    assert isinstance(error, ResilienceError)
    assert not isinstance(error, RejectedError)
    assert (error.seconds, str(error)) == (0.25, "timed out after 0.25 s")


def test_every_error_is_public_and_drawn_in_the_tree() -> None:
    """The drawing at the top of the module has every class, below its parent."""
    drawing = resilience.errors.__doc__
    assert drawing is not None
    classes = [value for value in vars(resilience.errors).values() if isinstance(value, type)]
    assert sorted(kind.__name__ for kind in classes) == resilience.errors.__all__
    for kind in classes:
        assert kind.__name__ in drawing
        assert getattr(resilience, kind.__name__) is kind
