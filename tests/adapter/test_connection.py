"""One connection: what it makes of a response however it comes, and that it never reads without end.

Most of it runs without a socket: a transport that takes notes stands for the event loop's, so that it is the test that
says where one packet ends and the next begins.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import ssl
import sys
from typing import TYPE_CHECKING

import attrs
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.resilience.support import assert_caught, settle
from webhook_adapter.egress import Received
from webhook_adapter.egress.connection import Connection, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

OK = b"HTTP/1.1 200 OK\r\n"
EMPTY = OK + b"Content-Length: 0\r\n\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
ORIGIN = ("http", "receiver.example", 80)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Only asyncio has such connections."""
    return "asyncio"


class Line(asyncio.Transport):
    """Stands for the event loop's transport, and notes what is asked of it."""

    def __init__(self, unsent: int = 0) -> None:
        super().__init__()
        self.unsent = unsent
        self.written = b""
        self.aborted = False
        self.paused = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.written += data

    def abort(self) -> None:
        self.aborted = True

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Nobody:
    """Stands for the transport that keeps connections."""

    def opened(self, connection: Connection) -> None: ...

    def lost(self, connection: Connection) -> None: ...


@attrs.frozen
class Outcome:
    """What there is to see of one exchange when it is over."""

    status: int | None
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    failed: str | None
    reusable: bool


def connected(kind: type[Connection], line: Line) -> Connection:
    """Return a connection over `line`."""
    connection = kind(Nobody(), ORIGIN)
    connection.connection_made(line)
    return connection


def outcome(
    kind: type[Connection], packets: Iterable[bytes], *, line: Line | None = None, request: bytes = b"", cap: int = 100
) -> Outcome:
    """Send a request, let `packets` come back and then the end, unless they cost the connection or were enough."""
    line = line or Line()
    connection = connected(kind, line)
    received = Received(cap)
    connection.begin(request, received)
    for packet in packets:
        connection.data_received(packet)
        if line.aborted:
            break
    reusable = connection.reusable
    if not line.aborted and not reusable:
        connection.eof_received()
    failed = None if connection.complete else str(connection._error)
    return Outcome(received.status_code, tuple(received.headers), bytes(received.body), failed, reusable)


BROKE_OFF = "the response body is malformed or broke off"
NOT_HTTP = "the response is not valid HTTP"
CUT = "the receiver closed the connection before a complete response"
NOTHING = Outcome(None, (), b"", NOT_HTTP, reusable=False)
LENGTH_0 = ((b"Content-Length", b"0"),)
IN_CHUNKS = ((b"Transfer-Encoding", b"chunked"),)


def ok(
    body: bytes = b"",
    *headers: tuple[bytes, bytes],
    status: int = 200,
    failed: str | None = None,
    reusable: bool = False,
) -> Outcome:
    """Return the outcome of a response that came as far as its status."""
    return Outcome(status, headers, body, failed, reusable)


RESPONSES: dict[str, tuple[bytes, Outcome]] = {
    "a length": (OK + b"Content-Length: 2\r\n\r\nok", ok(b"ok", (b"Content-Length", b"2"), reusable=True)),
    "chunks": (CHUNKED + b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n", ok(b"ok", *IN_CHUNKS, reusable=True)),
    "no reason phrase": (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", ok(b"", *LENGTH_0, reusable=True)),
    "blank lines before": (b"\r\n\r\n" + EMPTY, ok(b"", *LENGTH_0, reusable=True)),
    "a body that ends with the connection": (OK + b"\r\nok", ok(b"ok")),
    "a coding that ends with the connection": (
        OK + b"Transfer-Encoding: gzip\r\n\r\nok",
        ok(b"ok", (b"Transfer-Encoding", b"gzip")),
    ),
    # -- connections that end
    "connection: close": (
        OK + b"Connection: close\r\nContent-Length: 0\r\n\r\n",
        ok(b"", (b"Connection", b"close"), *LENGTH_0),
    ),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", ok(b"", *LENGTH_0)),
    "HTTP/1.0, kept alive": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
        ok(b"", (b"Connection", b"keep-alive"), *LENGTH_0, reusable=True),
    ),
    # -- statuses that have no body, whatever their headers say
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", ok(status=204, reusable=True)),
    "204 with a length and a body": (
        b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok",
        ok(b"", (b"Content-Length", b"2"), status=204),
    ),
    "304 with a length": (
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n",
        ok(b"", (b"Content-Length", b"2"), status=304, reusable=True),
    ),
    "101": (b"HTTP/1.1 101 Switching\r\n\r\n", ok(status=101)),
    "101 to another protocol": (
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nraw",
        ok(b"", (b"Connection", b"upgrade"), (b"Upgrade", b"x"), status=101),
    ),
    # -- before the response
    "103 with a length": (
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\nX: 1\r\n\r\n" + EMPTY,
        ok(b"", *LENGTH_0, reusable=True),
    ),
    "100 and no more": (b"HTTP/1.1 100 Continue\r\n\r\n", attrs.evolve(NOTHING, failed=CUT)),
    "status 99": (
        b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
        attrs.evolve(NOTHING, failed=f"{NOT_HTTP}: it has no valid status"),
    ),
    # -- behind the response
    "a second response": (EMPTY + OK + b"Retry-After: 9\r\nContent-Length: 1\r\n\r\nx", ok(b"", *LENGTH_0)),
    "the first letter of a second response": (EMPTY + b"H", ok(b"", *LENGTH_0)),
    "garbage behind": (EMPTY + b"\0garbage", ok(b"", *LENGTH_0)),
    "more than the length": (OK + b"Content-Length: 1\r\n\r\nok", ok(b"o", (b"Content-Length", b"1"))),
    "more behind a close": (
        OK + b"Connection: close\r\nContent-Length: 0\r\n\r\nmore",
        ok(b"", (b"Connection", b"close"), *LENGTH_0),
    ),
    "trailers": (CHUNKED + b"1\r\no\r\n0\r\nRetry-After: 9\r\n\r\n", ok(b"o", *IN_CHUNKS, reusable=True)),
    # -- two lengths, two ways to end
    "a length and chunks": (OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", NOTHING),
    "chunks and a length": (OK + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", NOTHING),
    "two lengths": (OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nok", NOTHING),
    "a list of lengths": (OK + b"Content-Length: 1, 1\r\n\r\no", NOTHING),
    "a negative length": (OK + b"Content-Length: -1\r\n\r\n", NOTHING),
    "a length beyond all numbers": (OK + b"Content-Length: 99999999999999999999\r\n\r\n", NOTHING),
    "a length in a trailer": (
        CHUNKED + b"1\r\no\r\n0\r\nContent-Length: 9\r\n\r\n",
        ok(b"o", *IN_CHUNKS, failed=BROKE_OFF),
    ),
    "a chunk whose size is no number": (CHUNKED + b"0x1\r\no\r\n0\r\n\r\n", ok(b"", *IN_CHUNKS, failed=BROKE_OFF)),
    "a chunk beyond all numbers": (CHUNKED + b"fffffffffffffffff\r\n", ok(b"", *IN_CHUNKS, failed=BROKE_OFF)),
    "a chunk longer than it says": (CHUNKED + b"1\r\nok\r\n0\r\n\r\n", ok(b"o", *IN_CHUNKS, failed=BROKE_OFF)),
    # -- cut off
    "nothing at all": (b"", attrs.evolve(NOTHING, failed=CUT)),
    "half a status line": (b"HTTP/1.1 2", attrs.evolve(NOTHING, failed=CUT)),
    "half the headers": (OK + b"Content-Length: 2\r\n", attrs.evolve(NOTHING, failed=CUT)),
    "half a body": (OK + b"Content-Length: 4\r\n\r\nok", ok(b"ok", (b"Content-Length", b"4"), failed=BROKE_OFF)),
    "half a body, sloppily": (
        OK + b"Content-Length : 4\r\n\r\nok",
        ok(b"ok", (b"Content-Length ", b"4"), failed=BROKE_OFF),
    ),
    "chunks without an end": (CHUNKED + b"2\r\nok\r\n", ok(b"ok", *IN_CHUNKS, failed=BROKE_OFF)),
    # -- sloppy, with only one meaning
    "lines that end in LF": (OK.replace(b"\r", b"") + b"Content-Length: 0\n\n", ok(b"", *LENGTH_0, reusable=True)),
    "a blank before the colon": (
        OK + b"Content-Length : 0\r\n\r\n",
        ok(b"", (b"Content-Length ", b"0"), reusable=True),
    ),
    "a folded header": (
        OK + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
        ok(b"", (b"X", b"a b"), *LENGTH_0, reusable=True),
    ),
    "a NUL in a value": (
        OK + b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
        ok(b"", (b"X", b"a\0b"), *LENGTH_0, reusable=True),
    ),
    "blanks behind a chunk's size": (CHUNKED + b"1 \r\no\r\n0\r\n\r\n", ok(b"o", *IN_CHUNKS, reusable=True)),
    # -- sloppy beyond meaning
    "lines that end in CR": (OK.replace(b"\n", b"") + b"Content-Length: 0\r\r", NOTHING),
    "a CR in a value": (OK + b"X: a\rContent-Length: 0\r\n\r\n", NOTHING),
    "a folded length": (OK + b"Content-Length: 1\r\n 1\r\n\r\n", NOTHING),
    "a NUL in a name": (OK + b"X\0: 1\r\n\r\n", NOTHING),
    "no colon": (OK + b"header\r\n\r\n", NOTHING),
    # -- other protocols
    "HTTP/0.9": (b"<html></html>", NOTHING),
    "HTTP/3.7": (b"HTTP/3.7 200 OK\r\n\r\n", NOTHING),
    "RTSP": (b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", NOTHING),
    "ICE": (b"ICE/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", NOTHING),
    "SSH": (b"SSH-2.0-x\r\n", NOTHING),
    "TLS": (b"\x15\x03\x01\x00\x02\x02\x46", NOTHING),
}


@pytest.mark.parametrize("name", RESPONSES)
def test_a_response_says_what_it_says(name: str) -> None:
    """F23, F24, F28, F29: each form of a response, well-formed or not, has one outcome."""
    response, expected = RESPONSES[name]
    assert outcome(Connection, [response] if response else []) == expected


def cuts_make_no_difference(kind: type[Connection]) -> Callable[[], None]:
    """Return the law, of `kind`: what a response says does not depend on where packets end."""

    @given(st.sampled_from(sorted(RESPONSES)), st.lists(st.integers(1, 100), max_size=5, unique=True))
    def law(name: str, ends: Sequence[int]) -> None:
        response, expected = RESPONSES[name]
        assert outcome(kind, cut(response, ends)) == expected

    return law


def cut(response: bytes, ends: Sequence[int]) -> Iterator[bytes]:
    """Cut `response` into packets that end there."""
    begin = 0
    for end in [*sorted(ends), len(response)]:
        packet = response[begin:end]
        if packet:
            yield packet
            begin += len(packet)


test_cuts_make_no_difference = cuts_make_no_difference(Connection)
test_cuts_make_no_difference.__doc__ = (
    "F28: the verdict is the same every time, wherever the packets of a response end."
)


def test_byte_by_byte_makes_no_difference() -> None:
    """The same for the smallest packets that there are."""
    for response, expected in RESPONSES.values():
        assert outcome(Connection, [response[at : at + 1] for at in range(len(response))]) == expected


class OneList(Connection):
    """Whatever headers come are the response's: those of a trailer, and of what comes behind."""

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if self._received.status_code is not None:
            self._received.headers = [*self._received.headers, (name, value)]


class NoBeginning(Connection):
    """Does not see that a second response begins."""

    def on_message_begin(self) -> None: ...


class Deaf(Connection):
    """Lets pass what comes unasked."""

    def data_received(self, data: bytes) -> None:
        if not self.complete:
            super().data_received(data)


class Strict(Connection):
    """What comes behind a response spoils that, too."""

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.complete = self.complete and self.reusable


class Gullible(Connection):
    """The end of the connection is the end of every body."""

    def eof_received(self) -> None:
        self.complete = self._received.status_code is not None
        super().eof_received()


class AnyProtocol(Connection):
    """Is content with what the parser can read."""

    def data_received(self, data: bytes) -> None:
        self._wasted_left -= self._wasted_left == 256 * 1024
        super().data_received(data)


@pytest.mark.parametrize("mutant", [OneList, NoBeginning, Deaf, Strict, Gullible, AnyProtocol])
def test_the_table_of_responses_sees_what_is_wrong(mutant: type[Connection]) -> None:
    """Each broken connection is told from the real one by one response at least."""
    assert_caught(cuts_make_no_difference(mutant))


def without_end(beginning: bytes, more: bytes) -> Iterator[bytes]:
    """Return packets of 4 KiB at least."""
    yield beginning
    packet = more * (4096 // len(more) + 1)
    while True:
        yield packet


FLOODS = {
    "a reason phrase": (b"HTTP/1.1 200 ", b"x"),
    "blank lines": (b"\r\n", b"\r\n"),
    "a header": (OK + b"X: ", b"x"),
    "a header's name": (OK, b"x"),
    "blanks in a header": (OK + b"X:", b" "),
    "headers": (OK, b"X: y\r\n"),
    "empty headers": (OK, b"X:\r\n"),
    "folds": (OK + b"X: ", b"\r\n "),
    "informational responses": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "headers of informational responses": (b"HTTP/1.1 103 Early Hints\r\n", b"X: y\r\n"),
    "a chunk's extension": (CHUNKED + b"1;", b"x"),
    "zeros of a chunk's size": (CHUNKED, b"0"),
    "trailers": (CHUNKED + b"0\r\n", b"X: y\r\n"),
    "a trailer": (CHUNKED + b"0\r\nX: ", b"x"),
}


def floods_end(kind: type[Connection]) -> Callable[[], None]:
    """Return the law, of `kind`: it never reads for ever what is neither a header nor a body."""

    def law() -> None:
        for beginning, more in FLOODS.values():
            line = Line()
            connection = connected(kind, line)
            received = Received(cap=16_384)
            connection.begin(b"", received)
            read = 0
            for packet in without_end(beginning, more):
                if packet:
                    connection.data_received(packet)
                read += len(packet)
                if line.aborted:
                    break
                assert read < 300_000
            assert isinstance(connection._error, httpx.RemoteProtocolError)
            # The status stands where it came.
            assert (received.status_code == 200) == beginning.startswith(CHUNKED)

    return law


test_floods_end = floods_end(Connection)
test_floods_end.__doc__ = "F23, F24: nothing without end is read for long, wherever in a response it stands."


class Patient(Connection):
    """Reads what is no header as long as it comes."""

    def _read_on(self, size: int) -> None:
        super()._read_on(size - size)


class Hoarding(Connection):
    """Takes every header."""

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        self._wasted_left += len(name) + len(value) + 4


class Attentive(Connection):
    """Listens to every informational response."""

    def on_headers_complete(self) -> None:
        self._informational_left += 1
        self._wasted_left += 100
        super().on_headers_complete()


@pytest.mark.parametrize("mutant", [Patient, Hoarding, Attentive])
def test_a_flood_that_is_let_in_is_noticed(mutant: type[Connection]) -> None:
    """Each limit is needed: without it one of the floods has no end."""
    assert_caught(floods_end(mutant))


@pytest.mark.parametrize("size", [1, 100, 64 * 1024])
def test_the_limit_of_headers_does_not_depend_on_packets(size: int) -> None:
    """F23: the same headers are accepted or refused whether they come at once or in pieces."""
    for count, expected in ((18, None), (19, f"{NOT_HTTP}: its headers have no end")):
        response = OK + (b"X: " + b"y" * 3500 + b"\r\n") * count + b"Content-Length: 0\r\n\r\n"
        packets = [response[at : at + size] for at in range(0, len(response), size)]
        assert outcome(Connection, packets).failed == expected


def test_as_many_informational_responses_as_anyone_needs() -> None:
    """F24: some are let pass, and their headers are not those of the response."""
    hints = b"HTTP/1.1 103 Early Hints\r\nRetry-After: 9\r\n\r\n"
    assert outcome(Connection, [hints * 32 + EMPTY]) == ok(b"", *LENGTH_0, reusable=True)
    assert outcome(Connection, [hints * 33 + EMPTY]).failed == f"{NOT_HTTP}: too many informational responses"


def test_a_body_in_small_chunks_is_slow_and_not_wrong() -> None:
    """A long body in chunks of one byte comes whole, and is not copied for each of them."""
    chunk = b"1;x\r\na\r\n"
    packets = [CHUNKED, *[chunk * 1024] * 256, b"0\r\n\r\n"]
    assert outcome(Connection, packets, cap=2**18) == ok(b"a" * 2**18, *IN_CHUNKS, reusable=True)


@pytest.mark.parametrize(
    ("status", "unsent", "request_bytes", "expected"),
    [(b"200", 0, 20_000, True), (b"200", 1, 1, False), (b"413", 0, 16_384, True), (b"413", 0, 16_385, False)],
)
def test_an_answer_that_came_too_early_costs_the_connection(
    status: bytes, unsent: int, request_bytes: int, *, expected: bool
) -> None:
    """What is still to be sent, or was never read, might be taken for the next request."""
    answer = EMPTY.replace(b"200", status)
    ended = outcome(Connection, [answer], line=Line(unsent), request=b"x" * request_bytes)
    assert (ended.failed, ended.reusable) == (None, expected)


@pytest.mark.parametrize("cap", [0, 1, 3, 10])
def test_no_more_of_a_body_is_kept_than_is_wanted(cap: int) -> None:
    """F22, F37: the rest is cut off, be it in the same packet or in later ones."""
    response = OK + b"Content-Length: 8\r\n\r\n" + b"01234567"
    for ends in ([], [25], [25, 46], [45, 46, 47, 48]):
        ended = outcome(Connection, cut(response, ends), cap=cap)
        assert (ended.body, ended.failed, ended.reusable) == (b"01234567"[:cap], None, True)


@pytest.mark.anyio
@pytest.mark.parametrize("cap", [0, 4])
async def test_an_exchange_ends_when_there_is_enough(cap: int) -> None:
    """F22: with the headers, or with as much of the body as is wanted, and the connection is not used again."""
    connection = connected(Connection, Line())
    received = Received(cap)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(connection.exchange(b"request", received))
        await settle()
        connection.data_received(OK + b"Content-Length: 100\r\n\r\n")
        await settle()
        assert task.done() == (cap == 0)
        if cap:
            connection.data_received(b"01234567")
    assert (received.body, connection.complete, connection.reusable) == (b"0123"[:cap], False, False)


@pytest.mark.anyio
async def test_an_exchange_may_follow_another() -> None:
    """Nothing of the first is left in the second, and each is written as it is."""
    line = Line()
    connection = connected(Connection, line)
    for number in (b"1", b"2"):
        received = Received(100)
        async with asyncio.TaskGroup() as group:
            group.create_task(connection.exchange(number, received))
            await settle()
            connection.data_received(OK + b"Content-Length: 1\r\nX: " + number + b"\r\n\r\n" + number)
        assert (received.body, received.header(b"x"), received.header(b"y")) == (number, number.decode(), None)
        assert connection.reusable
    assert line.written == b"12"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (None, CUT),
        (ConnectionResetError(errno.ECONNRESET, "x"), "the connection broke: Connection reset by peer"),
        (RuntimeError("the event loop's own affair"), CUT),
    ],
    ids=repr,
)
async def test_who_waits_is_told_when_the_connection_ends(cause: Exception | None, expected: str) -> None:
    """F20, F28: an error with the reason, at once; and whoever comes later gets the same."""
    connection = connected(Connection, Line())
    waiting = asyncio.ensure_future(connection.exchange(b"", Received(100)))
    await settle()
    connection.connection_lost(cause)
    for _ in range(2):
        with pytest.raises(httpx.ReadError, match=expected):
            await waiting
        waiting = asyncio.ensure_future(connection.exchange(b"", Received(100)))
    with pytest.raises(httpx.ReadError, match=expected):
        await connection.wait()
    with pytest.raises(httpx.ReadError):
        await waiting


@pytest.mark.anyio
async def test_the_first_error_is_the_cause() -> None:
    """A connection that is closed because of a malformed response was not closed by its receiver."""
    connection = connected(Connection, Line())
    waiting = asyncio.ensure_future(connection.exchange(b"", Received(100)))
    await settle()
    connection.data_received(b"nonsense")
    connection.connection_lost(None)
    with pytest.raises(httpx.RemoteProtocolError, match=NOT_HTTP):
        await waiting


def test_blank_lines_say_nothing() -> None:
    """Behind a response as before it, in the same packet or another; but there may not be too many of them."""
    line = Line()
    connection = connected(Connection, line)
    connection.begin(b"", Received(100))
    connection.data_received(EMPTY + b"\r\n")
    for _ in range(2**16):
        connection.data_received(b"\r\n")
    assert (line.aborted, connection.reusable) == (False, True)
    for _ in range(2**17):
        connection.data_received(b"\r\n")
    assert (line.aborted, connection.reusable) == (True, False)


@pytest.mark.anyio
async def test_what_comes_before_it_is_asked_for_ends_the_connection() -> None:
    """A response that is there before its request, on a new connection or an idle one, answers nothing."""
    line = Line()
    connection = connected(Connection, line)
    connection.data_received(EMPTY)
    assert line.aborted
    with pytest.raises(httpx.RemoteProtocolError, match="before it was asked"):
        await connection.exchange(b"request", Received(100))
    assert line.written == b""


def paused(kind: type[Connection]) -> Callable[[], None]:
    """Return the law, of `kind`: of a body that is read piece by piece, no more waits than that."""

    async def read() -> None:
        line = Line()
        connection = connected(kind, line)
        connection.begin(b"", Received(cap=sys.maxsize), piecewise=True)
        connection.data_received(OK + b"Content-Length: 10000000\r\n\r\n")
        for _ in range(3):
            came = 0
            while not line.paused:
                connection.data_received(b"x" * 10_000)
                came += 10_000
                assert came <= 70_000
            assert connection.take() == b"x" * came
            assert connection.take() == b""
            waiting = asyncio.ensure_future(connection.wait())
            await settle()
            assert not line.paused
            connection.data_received(b"y")
            await waiting
            assert connection.take() == b"y"
        connection.data_received(b"x" * (10_000_000 - 3 * 70_001))
        assert (connection.complete, line.paused) == (True, False)

    return lambda: asyncio.run(read())


test_a_body_that_nobody_reads_is_not_read_on = paused(Connection)
test_a_body_that_nobody_reads_is_not_read_on.__doc__ = (
    "WH11: reading stops, goes on when the body is read, and never stops on a connection that may be used again."
)


class Eager(Connection):
    """Never lets its receiver wait."""

    def _read_on(self, size: int) -> None:
        super()._read_on(size)
        self._transport.resume_reading()


class Asleep(Connection):
    """Stops, and does not go on."""

    async def wait(self) -> None:
        self._paused = False
        await super().wait()


@pytest.mark.parametrize("mutant", [Eager, Asleep])
def test_a_pause_that_is_none_or_has_no_end_is_noticed(mutant: type[Connection]) -> None:
    """The law of pauses sees both ways to break it."""
    assert_caught(paused(mutant))


def test_small_chunks_piece_by_piece_have_no_limit() -> None:
    """A body that is read piece by piece may be as long as it likes, in chunks however small."""
    connection = connected(Connection, Line())
    connection.begin(b"", Received(cap=sys.maxsize), piecewise=True)
    connection.data_received(CHUNKED)
    for _ in range(200):
        connection.data_received(b"1\r\na\r\n" * 1000)
        assert connection.take() == b"a" * 1000
    assert not connection.complete


def test_an_answer_to_head_has_no_body() -> None:
    """Whatever its length says; what follows it is not known to be its own, so the connection is not used again."""
    line = Line()
    connection = connected(Connection, line)
    received = Received(100)
    connection.begin(b"", received, bodiless=True)
    connection.data_received(OK + b"Content-Length: 2\r\n\r\nok")
    assert (received.status_code, received.body, connection.complete, connection.reusable) == (200, b"", True, False)


def test_a_connection_that_has_ended_needs_no_collector() -> None:
    """What is long gone is not kept until the garbage collector comes by: connections come and go by the thousand."""

    class Mine(Connection):
        """So that no other test's is found."""

    gc.disable()
    try:
        connection = connected(Mine, Line())
        connection.connection_lost(None)
        assert any(type(each) is Mine for each in gc.get_objects())
        del connection
        assert not any(type(each) is Mine for each in gc.get_objects())
    finally:
        gc.enable()


def test_reasons_are_short_and_true() -> None:
    """An error of TLS has a number, too, which is none of the system's."""
    assert reason(OSError(errno.ECONNREFUSED, "connect to [('127.0.0.1', 1)] failed")) == "Connection refused"
    assert reason(ConnectionAbortedError("a long story")) == "ConnectionAbortedError"
    tls = ssl.SSLError(1, "a long story")
    tls.reason = ""
    assert reason(tls) == "SSLError"
    tls.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    assert reason(tls) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
