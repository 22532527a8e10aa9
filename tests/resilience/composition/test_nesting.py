"""PO1: a Policy is its layers, however they are grouped; none at all is nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import Policy, fusing
from tests.resilience.layers import ASYNC_FORMS, Again, Callee, Deaf, Log, Noting, go_through, go_through_plainly
from tests.resilience.support import assert_caught, both_loops, heavy, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from resilience import Guard, Layer, Permit, Strategy, Verdict

every_loop = pytest.mark.anyio
#: What a layer is, and which of its admissions it refuses.
Spec: TypeAlias = tuple[str, frozenset[int]]

SPECS = st.lists(
    st.tuples(st.sampled_from(["guard", "guard", "deaf", "again"]), st.frozensets(st.integers(0, 2), max_size=1)),
    max_size=5,
)
SCRIPTS = st.lists(st.sampled_from(["ok", "error", "rejected"]), max_size=4)
FORMS = st.sampled_from([*ASYNC_FORMS, "def"])
#: Where groups begin and end; two numbers that are equal make an empty Policy.
GROUPS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=4)


def expected(specs: list[Spec], form: str, script: list[str]) -> tuple[Log, str]:
    """Tell what happens if each layer simply stands around the next one."""
    log: Log = []
    outcomes = iter(script)
    asked = [0] * len(specs)
    streams = form in ("stream", "manager", "around")

    def call(at: int) -> str:
        if at == len(specs):
            if streams:
                # The one item passes all the layers before the call goes on.
                log.extend(
                    (f"layer {index}", "renewed")
                    for index, (kind, _) in reversed(tuple(enumerate(specs)))
                    if kind != "again"
                )
            outcome = next(outcomes, "ok")
            log.append(("callee", outcome))
            return outcome
        (kind, refused), name = specs[at], f"layer {at}"
        if kind == "again":
            log.append((name, "begins"))
            outcome = call(at + 1)
            if outcome != "ok" and not streams:
                log.append((name, "again"))
                outcome = call(at + 1)
            log.append((name, "ends"))
            return outcome
        asked[at] += 1
        if asked[at] - 1 in refused:
            log.append((name, "refused"))
            return "rejected"
        log.append((name, "admitted"))
        outcome = call(at + 1)
        verdict = {"ok": "success", "error": "failure", "rejected": "ignored"}[outcome]
        if outcome != "ok" or kind != "deaf":
            log.append((name, verdict))
        return outcome

    return log, call(0)


def build(specs: list[Spec], log: Log, guard: type[Noting]) -> list[Layer]:
    """Make the layers."""

    class Unhearing(guard):  # type: ignore[valid-type, misc]
        hears_success = False

    def make(kind: str, name: str, refused: frozenset[int]) -> Layer:
        if kind == "again":
            return Again(log, name)
        return (Unhearing if kind == "deaf" else guard)(log, name, refused)

    return [make(kind, f"layer {index}", refused) for index, (kind, refused) in enumerate(specs)]


def grouped(layers: list[Layer], groups: list[tuple[int, int]], policy: type[Policy]) -> Policy:
    """Put layers that are neighbours into policies of their own, some into several."""
    nested = list(layers)
    for one, other in groups:
        begin, end = sorted((min(one, len(nested)), min(other, len(nested))))
        nested[begin:end] = [policy(*nested[begin:end])]
    return policy(*nested)


def law_of_nesting(backend: str, policy: type[Policy] = Policy, guard: type[Noting] = Noting) -> Callable[[], None]:
    """However layers are grouped, a call goes through them as if each simply stood around the next (PO1)."""

    @given(SPECS, FORMS, SCRIPTS, GROUPS)
    def law(specs: list[Spec], form: str, script: list[str], groups: list[tuple[int, int]]) -> None:
        trace, outcome = expected(specs, form, script)
        for grouping in ([], groups):
            log: Log = []
            layers = build(specs, log, guard)
            composed = grouped(layers, grouping, policy)
            callee = Callee(log, script)
            if form == "def":
                ended = go_through_plainly(composed, callee)
            else:
                ended = run(backend, lambda composed=composed, callee=callee: go_through(composed, form, callee))  # type: ignore[misc]
            assert (log, ended) == (trace, outcome)
            assert all(
                layer.out == 0
                for layer in layers
                if isinstance(layer, Noting) and not isinstance(layer, Deaf) and layer.hears_success
            )

    return law


@both_loops
def test_grouping_changes_nothing(backend: str) -> None:
    """PO1: a Policy inside a Policy is as if its layers were written where it stands; an empty one is nothing."""
    heavy(law_of_nesting(backend))()


class _InsideOut(Policy):
    """A mutant: the first layer is the innermost."""

    @property
    def parts(self) -> tuple[Guard | Strategy, ...]:
        return super().parts[::-1]


class _Dropping(Policy):
    """A mutant: what is nested twice is lost."""

    @property
    def parts(self) -> tuple[Guard | Strategy, ...]:
        return tuple(part for layer in self.layers if not isinstance(layer, Policy) for part in layer.parts)


class _BlamesTheCallee(Noting):
    """A mutant: another guard's refusal is a failure."""

    def settle_exception(self, permit: Permit, exception: BaseException) -> None:
        (permit.failure if isinstance(exception, Exception) else permit.cancelled)()


class _Forgetful(Noting):
    """A mutant: a refusal further inside keeps its permit."""

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        if verdict.value != "ignored":
            super().settle(permit, verdict)


@pytest.mark.parametrize("mutant", [_InsideOut, _Dropping])
def test_law_of_nesting_catches_policies(mutant: type[Policy]) -> None:
    """An order that is turned round, or a layer that is lost, is seen."""
    assert_caught(law_of_nesting("asyncio", policy=mutant))


@pytest.mark.parametrize("mutant", [_BlamesTheCallee, _Forgetful])
def test_law_of_nesting_catches_guards(mutant: type[Noting]) -> None:
    """A verdict that is wrong or missing is seen."""
    assert_caught(law_of_nesting("asyncio", guard=mutant))


def _outside_in(permits: list[Permit], exception: BaseException) -> None:
    for permit in permits:
        permit.guard.settle_exception(permit, exception)


def _hearing_outside_in(
    guards: tuple[Guard, ...],
) -> Iterator[tuple[int, Callable[[Permit, object], None]]]:
    return tuple((index, guard.settle_result) for index, guard in enumerate(guards) if guard.hears_success)  # type: ignore[return-value]


def _told_everything(guards: tuple[Guard, ...]) -> list[tuple[int, Callable[[Permit, object], None]]]:
    return [(index, guards[index].settle_result) for index in range(len(guards) - 1, -1, -1)]


@pytest.mark.parametrize(
    ("function", "mutant"),
    [
        pytest.param("_settle_exception", _outside_in, id="exceptions-outside-in"),
        pytest.param("_hearing", _hearing_outside_in, id="results-outside-in"),
        pytest.param("_hearing", _told_everything, id="the-deaf-are-told"),
    ],
)
def test_law_of_nesting_catches_the_machinery(
    function: str, mutant: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards that are settled in the wrong order, or told what they do not mind, are seen."""
    monkeypatch.setattr(fusing, function, mutant)
    assert_caught(law_of_nesting("asyncio"))


@every_loop
async def test_no_layers_are_the_identity() -> None:
    """PO1: an empty Policy changes neither result nor exception nor the moment at which a call begins."""
    empty = Policy()
    log: Log = []
    callee = Callee(log, ["ok", "error"])
    coroutine = empty.call(callee.call)
    assert not log
    assert await coroutine == "ok"
    with pytest.raises(LookupError) as caught:
        await empty(callee.call)()
    assert caught.value.args == ("error",)
    assert empty.parts == ()
