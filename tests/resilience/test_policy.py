"""Policy: what it refuses, what it warns of, and how it tells what it is. What it does is in composition/."""

from __future__ import annotations

import itertools
import re
import warnings
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import (
    AdaptiveLimiter,
    Bulkhead,
    CircuitBreaker,
    ConstantBackoff,
    CountWindow,
    Deadline,
    Description,
    FailureRate,
    Fallback,
    Hedge,
    LayerKind,
    Policy,
    PolicyWarning,
    RateLimiter,
    Retry,
    RetryBudget,
    Sample,
    SlowCallRate,
    StormGuard,
    Strategy,
    Timeout,
    Vegas,
)
from resilience.layer import Layer
from resilience.policy import _doubts
from resilience.testing import Chaos
from tests.resilience.layers import Again, Noting
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.fusing import Runner


class Odd(Strategy):
    """A strategy of a user, whose kind is that of a Timeout, though it has no seconds."""

    kind = LayerKind.TIMEOUT

    def __init__(self, *values: int, hook: object = len, depth: int = 3) -> None:
        self.values = values
        self.hook = hook
        self.depth = depth

    def wrap(self, call_next: Runner) -> Runner:
        """Let calls pass."""
        return call_next


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thing", [None, len, Bulkhead, "retry"], ids=repr)
def test_what_is_no_layer_is_refused(thing: object) -> None:
    """It is a ValueError that shows what was given."""
    with pytest.raises(ValueError, match=r"^layers must be guards, strategies and policies, not ") as caught:
        Policy(Bulkhead(1), thing)  # type: ignore[arg-type]
    assert str(caught.value).endswith(f"not {thing!r}")


def test_same_layer_twice_is_refused() -> None:
    """A bulkhead that stood around itself would wait for itself; also if one of the two is in another policy."""
    bulkhead = Bulkhead(1, name="pool")
    for layers in ((bulkhead, bulkhead), (bulkhead, Policy(Retry(2), Policy(bulkhead)))):
        with pytest.raises(ValueError, match=r"^layers must hold each layer once, but <.*> is there twice$"):
            Policy(*layers)
    assert Policy(bulkhead, Bulkhead(1, name="pool")).parts[0] is bulkhead


def test_name_is_a_string() -> None:
    """Anything else is a ValueError."""
    with pytest.raises(ValueError, match=r"^name must be a string, not 3$"):
        Policy(name=3)  # type: ignore[arg-type]


def test_layer_that_is_neither_guard_nor_strategy_has_to_say_what_it_is_made_of() -> None:
    """A class derived from Layer itself is a TypeError when it is used, unless it has `parts`."""

    class Strange(Layer):
        pass

    with pytest.raises(TypeError, match=r"^Strange must derive from Guard or Strategy, or say of which parts it consi"):
        Policy(Strange())


def test_parts_are_those_of_nested_policies_too() -> None:
    """From the outside inwards; `layers` are as they were written."""
    first, second, third = Bulkhead(1), Retry(2), Noting([])
    inner = Policy(second, third)
    policy = Policy(first, Policy(), inner)
    assert policy.parts == (first, second, third)
    assert policy.layers[2] is inner
    assert repr(Policy(inner, Policy(), name="outer")) == f"Policy(Policy({second!r}, {third!r}), Policy())"


# -- what is warned of ----------------------------------------------------------------------------------------------

TIMEOUT_OUTSIDE_TIMEOUT = (
    "Timeout outside Timeout: the time is over before the inner one can end anything, "
    "so that nothing that took too long is tried again"
)
BREAKER_OUTSIDE_RETRY = (
    "CircuitBreaker 'api' outside Retry: it hears one outcome for all the attempts, "
    "and stops none of them when the callee is down"
)
DOUBTFUL = {
    "breaker-outside-retry": ((CircuitBreaker(name="api"), Bulkhead(1), Retry(2)), [BREAKER_OUTSIDE_RETRY]),
    "adaptive-outside-retry": (
        (AdaptiveLimiter(), Retry(2, name="twice")),
        ["AdaptiveLimiter outside Retry 'twice': it takes the delays between the attempts for the callee's latency"],
    ),
    "retry-outside-fallback": (
        (Retry(2), Fallback(None)),
        ["Retry outside Fallback: it never sees a failure, since the fallback has taken its place"],
    ),
    "breaker-outside-fallback": (
        (CircuitBreaker(), Fallback(None, on=Exception)),
        ["CircuitBreaker outside Fallback: it never sees a failure, since the fallback has taken its place"],
    ),
    "same-timeout-for-all-attempts": (
        (Timeout(2.0), Retry(2), Timeout(2.0)),
        [TIMEOUT_OUTSIDE_TIMEOUT],
    ),
    "longer-timeout-inside": (
        (Timeout(2), Bulkhead(1), Timeout(2.5, name="call")),
        ["Timeout outside Timeout 'call': the time is over before the inner one can end anything"],
    ),
    "longer-timeout-inside-a-deadline": (
        (Deadline(1.0), Timeout(2.0)),
        ["Deadline outside Timeout: the time is over before the inner one can end anything"],
    ),
    "chaos-outside-what-it-is-to-test": (
        (Retry(3), Chaos(name="flaky"), CircuitBreaker(name="api"), Bulkhead(1)),
        ["Chaos 'flaky' outside CircuitBreaker 'api': the inner one never hears of what it injects"],
    ),
    "several": (
        (CircuitBreaker(name="api"), Timeout(1.0), Retry(2), Timeout(3.0)),
        [
            BREAKER_OUTSIDE_RETRY,
            TIMEOUT_OUTSIDE_TIMEOUT,
        ],
    ),
}


@pytest.mark.parametrize("order", DOUBTFUL)
def test_order_that_is_rarely_meant_is_warned_of(order: str) -> None:
    """Each doubtful pair is a PolicyWarning at the line that composes, and a line of the description."""
    layers, doubts = DOUBTFUL[order]
    with pytest.warns(PolicyWarning) as caught:
        policy = Policy(*layers)
    assert [str(warning.message) for warning in caught] == [
        f"{doubt}; nest policies if that is meant" for doubt in doubts
    ]
    assert {warning.filename for warning in caught} == {__file__}
    assert policy.describe().warnings == tuple(doubts)
    assert str(policy.describe()).splitlines()[-len(doubts) :] == [f"  ! {doubt}" for doubt in doubts]


@pytest.mark.parametrize("order", DOUBTFUL)
def test_order_that_is_meant_is_nested(order: str) -> None:
    """Whoever puts layers into policies of their own has said what they mean, and hears nothing."""
    layers, _ = DOUBTFUL[order]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy = Policy(*(Policy(layer) for layer in layers))
    assert policy.parts == layers
    assert policy.describe().warnings == ()


SENSIBLE: dict[str, tuple[Layer, ...]] = {
    "all-five-and-a-timeout-each": (
        Timeout(10.0),
        Retry(3),
        CircuitBreaker(),
        RateLimiter(1.0, 1),
        Bulkhead(1),
        Timeout(2.0),
    ),
    "timeout-for-each-attempt": (Retry(3), Timeout(10.0), CircuitBreaker()),
    "breakers-on-both-sides": (CircuitBreaker(name="gateway"), Retry(3), CircuitBreaker(name="node")),
    "fallback-outermost": (Fallback(None), CircuitBreaker(), Retry(3), CircuitBreaker()),
    "fallback-from-some": (Retry(3), Fallback(None, on=ConnectionError), CircuitBreaker()),
    "fallback-from-what-a-predicate-says": (
        Retry(3),
        Fallback(None, on=lambda error: bool(error.args)),
        CircuitBreaker(),
    ),
    "guards-alone": (RateLimiter(1.0, 1), Bulkhead(1), StormGuard(), AdaptiveLimiter(), CircuitBreaker()),
    "guards-outside-retry": (Bulkhead(1), RateLimiter(1.0, 1), Retry(3), AdaptiveLimiter()),
    "deadline-that-began-earlier": (Timeout(2.0), Deadline(2.0)),
    "timeout-without-seconds-inside": (Timeout(2.0), Odd()),
    "timeout-without-seconds-outside": (Odd(), Timeout(2.0)),
    "chaos-innermost": (Timeout(1.0), Retry(3), CircuitBreaker(), Chaos(hang_rate=0.1), Chaos(latency=1.0)),
    "chaos-outside-layers-of-users": (Chaos(), Again([]), Policy(Retry(3))),
    "nothing": (),
}


@pytest.mark.parametrize("order", SENSIBLE)
def test_sensible_order_is_not_warned_of(order: str) -> None:
    """Nothing is said about an order that has its uses."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Policy(*SENSIBLE[order]).describe().warnings == ()


BUILDERS: dict[str, Callable[[str], Layer]] = {
    "breaker": lambda name: CircuitBreaker(name=name),
    "retry": lambda name: Retry(2, name=name),
    "adaptive": lambda name: AdaptiveLimiter(name=name),
    "from all": lambda name: Fallback(None, name=name),
    "from some": lambda name: Fallback(None, on=KeyError, name=name),
    "short": lambda name: Timeout(1.0, name=name),
    "long": lambda name: Timeout(2.0, name=name),
    "deadline": lambda name: Deadline(1.0, name=name),
    "chaos": lambda name: Chaos(name=name),
    "bulkhead": lambda name: Bulkhead(1, name=name),
    "policy": lambda name: Policy(Retry(2), name=name),
}


def is_doubtful(kinds: list[str], outer: int, inner: int) -> bool:
    """Tell whether a pair is in the table of docs/policy.md."""
    match kinds[outer], kinds[inner]:
        case "breaker", "retry":
            return "breaker" not in kinds[inner:]
        case ("adaptive", "retry") | (("breaker" | "retry"), "from all"):
            return True
        case (("short" | "deadline"), ("short" | "long")) | ("long", "long"):
            return True
        case "chaos", other:
            return inner == outer + 1 and other not in {"chaos", "policy"}
        case _:
            return False


def law_of_doubts(kind: type[Policy]) -> Callable[[], None]:
    """PO1: what is said of an order is what the page says of it, pair by pair, and the same in all three places."""
    orders = st.lists(st.sampled_from(sorted(BUILDERS)), max_size=6).filter(lambda kinds: kinds.count("retry") < 2)

    @given(orders)
    def law(kinds: list[str]) -> None:
        layers = [BUILDERS[each](f"{place}") for place, each in enumerate(kinds)]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            policy = kind(*layers)
        description = policy.describe()
        told = [re.findall(r" '(\d)'", doubt.partition(":")[0]) for doubt in description.warnings]
        assert [(int(outer), int(inner)) for outer, inner in told] == [
            pair for pair in itertools.combinations(range(len(kinds)), 2) if is_doubtful(kinds, *pair)
        ]
        assert [str(each.message).partition(";")[0] for each in caught] == list(description.warnings)
        text = str(description).splitlines()
        assert [line.removeprefix("  ! ") for line in text if line.startswith("  !")] == list(description.warnings)
        assert [each.name for each in description.layers] == [str(place) for place in range(len(kinds))]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert kind(*(Policy(layer) for layer in layers)).describe().warnings == ()

    return law


def test_doubts_are_those_of_the_page() -> None:
    """PO1: in whatever order any of the layers stand."""
    law_of_doubts(Policy)()


class _Neighbours(Policy):
    """A mutant: judges only layers that stand next to each other."""

    def __init__(self, *layers: Layer) -> None:
        super().__init__(*layers)
        self._warnings = tuple(doubt for pair in itertools.pairwise(layers) for doubt in _doubts(pair))


class _Nosy(Policy):
    """A mutant: judges what is nested as well."""

    def __init__(self, *layers: Layer) -> None:
        super().__init__(*layers)
        self._warnings = tuple(_doubts(self.parts))


class _Silent(Policy):
    """A mutant: does not say in the description what it said when it was made."""

    def describe(self) -> Description:
        return attrs.evolve(super().describe(), warnings=())


@pytest.mark.parametrize("mutant", [_Neighbours, _Nosy, _Silent])
def test_law_of_doubts_catches_mutants(mutant: type[Policy]) -> None:
    """Doubts that are missing, that nobody asked for, or that are told in one place alone, are seen."""
    assert_caught(law_of_doubts(mutant))


# -- how it tells what it is ----------------------------------------------------------------------------------------


def test_description_is_data() -> None:
    """A frozen tree of kinds, names and settings."""
    breaker = CircuitBreaker(3, 30.0, name="billing")
    policy = Policy(Retry(4, backoff=ConstantBackoff(1.0)), Policy(breaker, name="inner"), name="outer")
    description = policy.describe()
    assert description == Description(
        type="Policy",
        kind=LayerKind.POLICY,
        name="outer",
        layers=(
            Description(type="Retry", kind=LayerKind.RETRY, settings={"attempts": 4, "backoff": ConstantBackoff(1.0)}),
            Description(
                type="Policy",
                kind=LayerKind.POLICY,
                name="inner",
                layers=(
                    Description(
                        type="CircuitBreaker",
                        kind=LayerKind.CIRCUIT_BREAKER,
                        name="billing",
                        settings={"failure_threshold": 3, "recovery_timeout": 30.0},
                    ),
                ),
            ),
        ),
    )
    assert description != Policy(name="outer").describe()
    assert {description: "found"}[policy.describe()] == "found"
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        description.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError, match="does not support item assignment"):
        description.layers[0].settings["attempts"] = 5  # type: ignore[index]


def test_description_is_text() -> None:
    """A line for each layer, indented by one step for each policy around it."""
    policy = Policy(
        Timeout(10.0),
        Retry(3, backoff=ConstantBackoff(1.0), on_result=bool),
        Policy(CircuitBreaker(name="billing"), RateLimiter(50.0, 50, max_wait=1.0), name="guards"),
        Bulkhead(20, name="pool"),
        name="billing",
    )
    assert str(policy.describe()) == (
        "Policy 'billing'\n"
        "  Timeout(seconds=10.0)\n"
        "  Retry(attempts=3, on_result=bool, backoff=ConstantBackoff(delay=1.0))\n"
        "  Policy 'guards'\n"
        "    CircuitBreaker(failure_threshold=5, recovery_timeout=60.0) 'billing'\n"
        "    RateLimiter(rate=50.0, capacity=50, max_wait=1.0)\n"
        "  Bulkhead(max_concurrent=20) 'pool'"
    )


def test_description_is_a_snapshot() -> None:
    """It tells what is set when it is asked for, and does not follow."""
    limiter = RateLimiter(1.0, 10)
    before = limiter.describe()
    limiter.update(rate=2.0)
    assert before.settings == {"rate": 1.0, "capacity": 10}
    assert limiter.describe().settings == {"rate": 2.0, "capacity": 10}


def test_breaker_tells_what_opens_it() -> None:
    """Its conditions, where they are not a number of failures in a row."""
    trip = FailureRate(0.5, CountWindow(10), 5)
    assert CircuitBreaker(trip=trip).describe().settings == {"trip": (trip,), "recovery_timeout": 60.0}


DIFFERING: dict[str, tuple[type[Layer], tuple[object, ...], dict[str, object]]] = {
    "breaker": (
        CircuitBreaker,
        (4, 2.5),
        {
            "half_open_max_calls": 2,
            "success_threshold": 3,
            "is_failure": bool,
            "is_failure_result": bool,
            "probe_timeout": 4.5,
            "recovery_backoff": ConstantBackoff(4.0),
        },
    ),
    "storm-guard": (
        StormGuard,
        (5.0, 100),
        {"calm_ratio": 0.25, "hold_for": 2.0, "key_share": 0.5, "reserve": (0.1,), "surplus": Sample(10)},
    ),
    "adaptive-limiter": (AdaptiveLimiter, (Vegas(),), {"max_queue": 2, "max_wait": 1.5}),
    "retry": (
        Retry,
        (None,),
        {
            "on": KeyError,
            "on_result": bool,
            "backoff": ConstantBackoff(1.0),
            "max_elapsed": 9.0,
            "budget": RetryBudget(),
            "honor_retry_after": False,
            "retry_after": float,
        },
    ),
    "timeout": (Timeout, (3.0,), {"first_item": 0.5}),
    "fallback": (Fallback, (None,), {"on": KeyError, "on_result": bool}),
    "hedge": (
        Hedge,
        (1.0,),
        {
            "quantile": 0.75,
            "max_hedges": 2,
            "budget": RetryBudget(),
            "min_delay": 0.5,
            "window": 50,
            "on": KeyError,
            "on_result": bool,
        },
    ),
}


@pytest.mark.parametrize("layer", DIFFERING)
def test_description_tells_every_argument_that_differs(layer: str) -> None:
    """What was given by name is told under that name, unless it is the default."""
    kind, positional, named = DIFFERING[layer]
    settings = kind(*positional, **named).describe().settings
    assert {name: settings[name] for name in settings if name in named} == named
    names = list(settings)[: len(positional)]
    assert list(settings) == [*names, *(name for name in settings if name in named)]
    assert kind(*positional).describe().settings == dict(zip(names, positional, strict=True))


def test_breaker_tells_which_calls_are_slow() -> None:
    """As the seconds that were given."""
    breaker = CircuitBreaker(trip=SlowCallRate(0.5, CountWindow(10)), slow_call_duration=1.5)
    assert breaker.describe().settings["slow_call_duration"] == 1.5


def test_layers_of_users_describe_themselves() -> None:
    """By what they show under the names of their arguments; a function is told by its name."""
    assert str(Odd(1, 2, hook=max).describe()) == "Odd(values=(1, 2), hook=max)"
    assert str(Noting([], "mine").describe()) == "Noting(log=[], refused=frozenset()) 'mine'"
    assert str(Policy(Odd(depth=4)).describe()) == "Policy\n  Odd(values=(), depth=4)"
