"""A receiver that answers at random cannot hang, crash or bloat the sender, nor answer for its neighbour.

Two hundred answers by default; `make fuzz` has ten thousand, or as many as FUZZ says.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import tracemalloc
from collections import Counter
from typing import TYPE_CHECKING, ClassVar

import anyio
import pytest

from tests.adapter.fuzzing import Answer, Then
from tests.adapter.peers import Peer, Peers, listening
from tests.adapter.test_connection import outcome
from tests.resilience.support import assert_caught, run
from webhook_adapter.egress import EgressPolicy, default_transport, socket_transport
from webhook_adapter.egress.connection import Connection
from webhook_adapter.egress.httpcore_transport import HttpcoreTransport
from webhook_adapter.egress.transport import EgressTransport
from webhook_adapter.keys import new_secret
from webhook_adapter.model import Endpoint, FailureKind, Message, SigningSecret
from webhook_adapter.sender import Sender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from webhook_adapter.egress import Received
    from webhook_adapter.model import AttemptOutcome

SEED = os.environ.get("FUZZ_SEED", "webhook")
ANSWERS = int(os.environ.get("FUZZ", "200"))
AT_ONCE = 10
CAP = 500
# What hangs costs so much time.
DEADLINE = 0.25
# What ten attempts may hold at once, buffers of both sides included, and what may be left of all of them.
MOST_HELD = 24 * 2**20
MOST_LEFT = 2**20


SECRET = SigningSecret(new_secret())


def endpoint(port: int, path: str) -> Endpoint:
    """Return one of the two endpoints on the same host."""
    url = f"http://127.0.0.1:{port}/{path}"
    return Endpoint(f"ep_{path}", url, secrets=(SECRET,), created_at=0.0, updated_at=0.0)


def message(number: int) -> Message:
    """Return a message with that number."""
    return Message(id=f"msg_{number}", event_type="a.b", body=b"{}", occurred_at=0.0, accepted_at=0.0, deliver_at=0.0)


def own_answer(number: int) -> bytes:
    """Return what the good endpoint answers to that message."""
    return b"the answer to %d" % number


class Host:
    """The receiver of both endpoints: to one it answers at random, to its neighbour as it should."""

    async def serve(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            number = int(request.partition(b"webhook-id: msg_")[2].partition(b"\r\n")[0])
            if request.startswith(b"POST /good "):
                body = own_answer(number)
                await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                continue
            answer = Answer.of(SEED, number)
            await peer.say(answer.data or b"\0")
            match answer.then:
                case Then.CLOSE:
                    return
                case Then.KEEP:
                    pass
                case Then.REPEAT:
                    while True:
                        await peer.say(answer.repeated * (16_384 // len(answer.repeated)))


class Judge:
    """Looks at every outcome."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.seen: Counter[object] = Counter()

    def fuzzed(self, number: int, outcome: AttemptOutcome) -> None:
        """Any outcome will do that is one."""
        if (outcome.status_code is None) == (outcome.failure is None) or len(outcome.response_body) > CAP:
            self.problems.append(f"{number}: {outcome}")
        self.seen[outcome.failure] += 1

    def good(self, number: int, outcome: AttemptOutcome) -> None:
        """The connection may break under it, as the answer to its neighbour was the last one. It may not be wrong."""
        if (outcome.status_code, outcome.response_body) not in {(None, b""), (200, own_answer(number))}:
            self.problems.append(f"{number}, the neighbour: {outcome}")
        self.seen["good"] += outcome.succeeded

    def complaint(self, _: object, context: object) -> None:
        """The event loop ought to have nothing to say."""
        self.problems.append(f"the event loop: {context}")


async def attempts(transport: httpx.AsyncBaseTransport, peers: Peers, numbers: Iterator[int], judge: Judge) -> None:
    """Send messages with these numbers, and every third to the neighbour as well."""
    hasty = Sender(transport, attempt_timeout=DEADLINE, max_response_bytes=CAP)
    patient = Sender(transport, attempt_timeout=20, max_response_bytes=CAP)
    for number in numbers:
        # Whoever has hung up is not to be remembered: it is the sender's memory that is measured.
        peers.all.clear()
        judge.fuzzed(number, await hasty.send(endpoint(peers.port, "fuzzed"), message(number)))
        if number % 3 == 0:
            judge.good(number, await patient.send(endpoint(peers.port, "good"), message(number)))


def harmless(backend: str) -> Callable[[], None]:
    """Return the law: whatever an endpoint answers, attempts end with an outcome, and its neighbour's are its own."""

    async def main() -> None:
        judge = Judge()
        if backend == "asyncio":
            asyncio.get_running_loop().set_exception_handler(judge.complaint)
        async with (
            listening(Host().serve) as peers,
            default_transport(EgressPolicy(allow=["127.0.0.0/8"])) as transport,
        ):
            held, left = [], []
            # The first round fills what is filled once.
            for count in (ANSWERS // 4, ANSWERS):
                numbers = iter(range(count))
                tracemalloc.reset_peak()
                with anyio.fail_after(30 + ANSWERS):
                    async with anyio.create_task_group() as group:
                        for _ in range(AT_ONCE):
                            group.start_soon(attempts, transport, peers, numbers, judge)
                held.append(tracemalloc.get_traced_memory()[1])
                gc.collect()
                left.append(tracemalloc.get_traced_memory()[0])
            assert requests_kept(transport) == 0
        assert judge.problems == []
        assert {None, FailureKind.TIMEOUT, FailureKind.PROTOCOL} <= set(judge.seen)
        assert judge.seen["good"] > ANSWERS / 20
        assert held[1] - left[0] < MOST_HELD
        assert left[1] - left[0] < MOST_LEFT

    def law() -> None:
        tracemalloc.start()
        try:
            run(backend, main)
        finally:
            tracemalloc.stop()
        gc.collect()

    return law


def requests_kept(transport: httpx.AsyncBaseTransport) -> int:
    """Return how many requests httpcore believes to be under way."""
    assert isinstance(transport, EgressTransport)
    assert transport._latest is not None
    carrier = transport._latest[1].transport
    return len(carrier._pools["http"]._requests) if isinstance(carrier, HttpcoreTransport) else 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_random_answers_do_no_harm(backend: str) -> None:
    """F20-F24, F28, F29, WH11: no hang, no crash, no bloat, and no answer for the neighbour on the same host."""
    harmless(backend)()


class Greedy(Connection):
    """Reads all of every body."""

    def on_body(self, piece: bytes) -> None:
        self._received.body += piece
        super().on_body(b"")

    async def exchange(self, request: bytes, received: Received) -> None:
        self.begin(request, received)
        while not self.complete:
            await self.wait()


class Hoarding(Connection):
    """Keeps what it has read."""

    all: ClassVar[list[bytes]] = []

    def data_received(self, data: bytes) -> None:
        self.all.append(data + bytes(10_000))
        super().data_received(data)


@pytest.mark.parametrize("mutant", [Greedy, Hoarding])
def test_harm_is_noticed(mutant: type[Connection], monkeypatch: pytest.MonkeyPatch) -> None:
    """A transport that reads more than is wanted, or keeps what it has read, does not pass."""
    monkeypatch.setattr(socket_transport, "Connection", mutant)
    assert_caught(harmless("asyncio"))
    Hoarding.all.clear()


def test_random_answers_are_read_alike_however_they_are_cut() -> None:
    """F28: what is made of an answer, good or bad, does not depend on where its packets end."""
    for number in range(5 * ANSWERS):
        data = Answer.of(SEED, number).data
        dice = random.Random(number)
        ends = sorted(dice.randrange(1, len(data) + 1) for _ in range(dice.randrange(4))) if data else []
        packets = [data[begin:end] for begin, end in zip([0, *ends], [*ends, len(data)], strict=True) if begin < end]
        whole = outcome(Connection, [data] if data else [])
        assert (number, outcome(Connection, packets)) == (number, whole)
