"""Lookups: one for all who ask, kept for a while, and given up when nobody waits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.resilience.support import assert_caught, settle
from webhook_adapter.egress import AddressRefusedError, DnsError
from webhook_adapter.egress.lookups import KEPT_SECONDS, Lookups, _Asking

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from webhook_adapter.egress.resolving import Judge

pytestmark = pytest.mark.anyio

NAME = "receiver.example"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Only asyncio has these."""
    return "asyncio"


class Asked:
    """A resolver that answers when the test says so."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.cancelled = 0
        self.answers: list[asyncio.Future[Sequence[str]]] = []

    async def resolve(self, host: str, port: int, /) -> Sequence[str]:
        assert port in {443, 444}
        self.names.append(host)
        self.answers.append(asyncio.get_running_loop().create_future())
        try:
            return await self.answers[-1]
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def anywhere(address: str) -> None:
    """Let every address pass."""


def outside(address: str) -> None:
    """Let no private address pass."""
    if address.startswith("10."):
        raise AddressRefusedError(address, "private")


async def test_many_who_ask_at_once_share_a_lookup() -> None:
    """A thousand attempts to one host ask for it once; another port or another judge is another question."""
    asked = Asked()
    lookups = Lookups(asked)
    tasks = [asyncio.ensure_future(lookups.resolve(NAME, 443, anywhere)) for _ in range(1000)]
    others = [asyncio.ensure_future(lookups.resolve(NAME, *other)) for other in ((444, anywhere), (443, outside))]
    await settle()
    assert len(asked.names) == 3
    for answer in asked.answers:
        answer.set_result(["192.0.2.1", "192.0.2.2"])
    assert set(await asyncio.gather(*tasks, *others)) == {("192.0.2.1", "192.0.2.2")}


def leaving(kind: type[Lookups]) -> Callable[[], None]:
    """Return the law, of `kind`: who leaves leaves the lookup to the others, and the last one takes it along."""

    async def main() -> None:
        asked = Asked()
        lookups = kind(asked)
        # The one who asked first leaves.
        first, second = (asyncio.ensure_future(lookups.resolve(NAME, 443, anywhere)) for _ in range(2))
        await settle()
        first.cancel()
        await settle()
        assert (first.cancelled(), second.done(), asked.cancelled) == (True, False, 0)
        asked.answers[0].set_result(["192.0.2.1"])
        assert await second == ("192.0.2.1",)
        # All leave: the next attempt does not wait for what hangs.
        for task in (waiting := [asyncio.ensure_future(lookups.resolve(NAME, 444, anywhere)) for _ in range(2)]):
            await settle()
            task.cancel()
        await asyncio.wait(waiting)
        await settle()
        assert asked.cancelled == 1
        again = asyncio.ensure_future(lookups.resolve(NAME, 444, anywhere))
        await settle()
        asked.answers[-1].set_result(["192.0.2.2"])
        assert await again == ("192.0.2.2",)

    return lambda: asyncio.run(main())


test_leaving = leaving(Lookups)
test_leaving.__doc__ = "F16: a lookup ends with the last who waits for it, and not before."


class Possessive(Lookups):
    """Whoever leaves takes the lookup along."""

    async def resolve(self, host: str, port: int, judge: Judge) -> tuple[str, ...]:
        try:
            return await super().resolve(host, port, judge)
        except asyncio.CancelledError:
            self.close()
            raise


class Stubborn(Lookups):
    """What was begun is brought to its end, if it has one."""

    def _ask(self, key: tuple[str, int, Judge]) -> _Asking:
        asking = super()._ask(key)
        asking.waiting += 1
        return asking


@pytest.mark.parametrize("mutant", [Possessive, Stubborn])
def test_a_lookup_that_ends_too_early_or_never_is_noticed(mutant: type[Lookups]) -> None:
    """The law of leaving sees both."""
    assert_caught(leaving(mutant))


async def test_who_asks_while_a_lookup_is_given_up_starts_another() -> None:
    """One that takes its time to end is no longer anybody's, and its end changes nothing for the next."""
    asked = Asked()
    lookups = Lookups(asked)
    left = asyncio.ensure_future(lookups.resolve(NAME, 443, anywhere))
    await settle()
    left.cancel()
    # Both are scheduled before the lookup that was given up has heard of it.
    await asyncio.sleep(0)
    again = asyncio.ensure_future(lookups.resolve(NAME, 443, anywhere))
    await settle()
    assert (left.cancelled(), len(asked.names), asked.cancelled) == (True, 2, 1)
    third = asyncio.ensure_future(lookups.resolve(NAME, 443, anywhere))
    await settle()
    assert len(asked.names) == 2
    asked.answers[1].set_result(["192.0.2.1"])
    assert await again == await third == ("192.0.2.1",)


@pytest.mark.parametrize("failure", [OSError(-2, "no such name"), RuntimeError("a library's own")], ids=repr)
async def test_a_failure_is_told_to_all_and_not_kept(failure: Exception) -> None:
    """F16: whoever waited gets it, and whoever comes later asks anew."""
    asked = Asked()
    lookups = Lookups(asked)
    tasks = [asyncio.ensure_future(lookups.resolve(NAME, 443, anywhere)) for _ in range(2)]
    await settle()
    asked.answers[0].set_exception(failure)
    for error in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(error, DnsError)
    later = asyncio.ensure_future(lookups.resolve(NAME, 443, anywhere))
    await settle()
    asked.answers[1].set_result(["192.0.2.1"])
    assert await later == ("192.0.2.1",)


async def test_a_refusal_is_not_kept() -> None:
    """F17: what a name has that is refused today may be mended tomorrow."""
    asked = Asked()
    lookups = Lookups(asked)
    refused = asyncio.ensure_future(lookups.resolve(NAME, 443, outside))
    await settle()
    asked.answers[0].set_result(["192.0.2.1", "10.0.0.1"])
    with pytest.raises(AddressRefusedError):
        await refused
    later = asyncio.ensure_future(lookups.resolve(NAME, 443, outside))
    await settle()
    asked.answers[1].set_result(["192.0.2.1"])
    assert await later == ("192.0.2.1",)


async def test_a_failure_that_nobody_waits_for_any_more_is_nobody_s() -> None:
    """The event loop has nothing to complain of, though the resolver answers its cancellation with an error."""

    class Spiteful:
        async def resolve(self, host: str, port: int, /) -> Sequence[str]:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                raise OSError(f"{host}:{port}") from None
            raise AssertionError

    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    task = asyncio.ensure_future(Lookups(Spiteful()).resolve(NAME, 443, anywhere))
    await settle()
    task.cancel()
    await settle()
    assert task.cancelled()
    del task
    assert complaints == []


async def test_an_answer_is_kept_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then nobody is asked again; and answers that nobody wants any more are dropped when others come."""
    asked = Asked()
    lookups = Lookups(asked)
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def ask(name: str, after: float) -> bool:
        monkeypatch.setattr(loop, "time", lambda: began + after)
        before = len(asked.names)
        task = asyncio.ensure_future(lookups.resolve(name, 443, anywhere))
        await settle()
        if len(asked.names) > before:
            asked.answers[-1].set_result(["192.0.2.1"])
        await task
        return len(asked.names) > before

    assert await ask(NAME, 0)
    assert not await ask(NAME, KEPT_SECONDS - 0.001)
    assert await ask("other.example", 1)
    assert await ask(NAME, KEPT_SECONDS)
    assert [key[0] for key in lookups._known] == ["other.example", NAME]
    assert await ask(NAME, 3 * KEPT_SECONDS)
    assert [key[0] for key in lookups._known] == [NAME]
    monkeypatch.undo()


async def test_who_waits_when_all_is_closed_gets_an_error() -> None:
    """Not a cancellation, which nobody has asked for."""
    asked = Asked()
    lookups = Lookups(asked)
    waiting = asyncio.ensure_future(lookups.resolve(NAME, 443, anywhere))
    await settle()
    lookups.close()
    with pytest.raises(DnsError, match="given up"):
        await waiting
    assert asked.cancelled == 1
