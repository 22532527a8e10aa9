"""The race for the first address that answers: who wins, who is closed, and what is raised if nobody does."""

from __future__ import annotations

import anyio
import pytest

from webhook_adapter.egress import racing

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each address longer than a test may take."""
    monkeypatch.setattr(racing, "_NEXT_ADDRESS_SECONDS", 3600)


@pytest.fixture
def _impatience(_patience: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next address have its turn at once."""
    monkeypatch.setattr(racing, "_NEXT_ADDRESS_SECONDS", 0)


class Race:
    """Connections as names, made and closed as the test says."""

    def __init__(self) -> None:
        self.tried: list[str] = []
        self.made: list[str] = []
        self.closed: list[str] = []
        self.last_tried = anyio.Event()
        self.answering = anyio.Event()

    async def connect(self, address: str) -> str:
        self.tried.append(address)
        if address == "last":
            self.last_tried.set()
        match address:
            case "broken":
                raise OSError(address)
            case "forbidden":
                raise ValueError(address)
            case "slow":
                await anyio.sleep_forever()
            case "together" | "last":
                await self.answering.wait()
            case _:
                await anyio.lowlevel.checkpoint()
        self.made.append(address)
        return address

    async def close(self, connection: str) -> None:
        self.closed.append(connection)

    async def run(self, *addresses: str) -> str:
        return await racing.first_to_answer(addresses, self.connect, self.close, (OSError,))


async def test_the_only_address_is_simply_connected_to() -> None:
    """With one address there is no race, and its errors are what they are."""
    race = Race()
    assert await race.run("good") == "good"
    for address, error in (("broken", OSError), ("forbidden", ValueError)):
        with pytest.raises(error, match=address):
            await race.run(address)


async def test_the_next_one_has_its_turn_when_one_breaks() -> None:
    """At once; what comes after the winner is not tried."""
    race = Race()
    assert await race.run("broken", "broken", "good", "never") == "good"
    assert (race.tried, race.closed) == (["broken", "broken", "good"], [])


@pytest.mark.usefixtures("_impatience")
async def test_an_address_that_swallows_packets_does_not_hold_up_the_rest() -> None:
    """The one that hangs is given up as soon as another answers."""
    race = Race()
    assert await race.run("slow", "good") == "good"
    assert (race.tried, race.closed) == (["slow", "good"], [])


async def test_when_nobody_answers_the_last_error_is_raised() -> None:
    """It is the error itself, in no group."""
    race = Race()
    with pytest.raises(OSError, match="broken"):
        await race.run("broken", "broken")


async def test_an_error_of_another_kind_ends_the_race() -> None:
    """It says something about the whole request, so that no further address is tried, and is raised as it is."""
    race = Race()
    with pytest.raises(ValueError, match="forbidden"):
        await race.run("broken", "forbidden", "good")
    assert race.tried == ["broken", "forbidden"]


@pytest.mark.usefixtures("_impatience")
async def test_only_one_connection_is_kept() -> None:
    """Two that answer in the same moment: the first is returned, the other one closed."""
    race = Race()

    async def start() -> None:
        winners.append(await race.run("together", "last"))

    winners: list[str] = []
    async with anyio.create_task_group() as group:
        group.start_soon(start)
        await race.last_tried.wait()
        race.answering.set()
    assert sorted(race.made) == ["last", "together"]
    assert sorted(winners + race.closed) == sorted(race.made)


@pytest.mark.usefixtures("_impatience")
@pytest.mark.parametrize("answered", [False, True])
async def test_a_cancelled_race_leaves_no_connection(*, answered: bool) -> None:
    """Cancelled while all are still trying, or in the moment in which two have answered: nothing stays open."""
    race = Race()
    async with anyio.create_task_group() as group:
        group.start_soon(race.run, "slow", "together", "last")
        await race.last_tried.wait()
        if answered:
            race.answering.set()
        group.cancel_scope.cancel()
    assert len(race.made) in ({1, 2} if answered else {0})
    assert race.closed == race.made
