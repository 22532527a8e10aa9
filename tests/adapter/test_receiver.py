"""The receiver of `webhook_adapter.testing`: what it records, how it is scripted, and the program around it."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import httpx
import pytest
import trustme

from webhook_adapter.keys import new_secret
from webhook_adapter.signing import sign
from webhook_adapter.testing import Fault, Mode, Receiver, Reply
from webhook_adapter.testing.receiver import Switchboard, main

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
#: A test has a timeout of its own, which leaves time for a machine that is busy; a client needs none besides.
PATIENT = httpx.Timeout(None)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """An ordinary HTTP client, which knows nothing of ours."""
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENT) as made:
        yield made


async def talk(receiver: Receiver, data: bytes) -> bytes:
    """Send raw bytes and return all that comes back until the receiver closes."""
    received = b""
    with anyio.fail_after(20):
        async with await anyio.connect_tcp("127.0.0.1", receiver.port) as stream:
            await stream.send(data)
            try:
                while True:
                    received += await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return received


async def test_it_records_what_it_receives(client: httpx.AsyncClient) -> None:
    """Method, path, headers, body, time and connection of each request can be asked for."""
    before = time.time()
    async with Receiver() as receiver:
        for number in range(2):
            await client.post(receiver.url + "a?b", content=b"%d" % number, headers={"X-A": "1"})
        first, second = receiver.requests
    assert (first.method, first.path, first.body, second.body) == ("POST", "/a?b", b"0", b"1")
    assert (first.header("x-a"), first.header("X-A"), first.header("x-b")) == ("1", "1", None)
    assert (first.connection, second.connection, first.verified) == (1, 1, None)
    assert before <= first.received_at <= second.received_at


async def test_a_script_answers_in_turn_and_then_repeats_itself(client: httpx.AsyncClient) -> None:
    """A sequence gives each reply once, the last again and again; a function sees the request; one is for all."""
    async with Receiver([Reply(500), Reply(201, body=b"made")]) as receiver:
        statuses = [(await client.post(receiver.url)).status_code for _ in range(3)]
        assert statuses == [500, 201, 201]
        receiver.behave(lambda request: Reply(200, body=request.body))
        assert (await client.post(receiver.url, content=b"echo")).content == b"echo"
        receiver.behave(Reply(410, headers=(("X-Why", "gone"),), close=True))
        response = await client.post(receiver.url)
        assert (response.status_code, response.headers["x-why"]) == (410, "gone")
    with pytest.raises(ValueError, match="script"):
        Receiver([])


async def test_duplicates_are_counted_by_message_and_path(client: httpx.AsyncClient) -> None:
    """A message that is accepted a second time on the same path is a duplicate; a refused attempt is none."""
    async with Receiver([Reply(503), Reply(200)], keep=1) as receiver:
        for path in ("a", "a", "a", "b"):
            await client.post(receiver.url + path, headers={"webhook-id": "msg_1"})
        count = receiver.messages("/a")["msg_1"]
        assert (count.received, count.accepted, receiver.duplicates, receiver.total) == (3, 2, 1, 4)
        assert count.first_accepted_at is not None
        assert count.first_received_at <= count.first_accepted_at
        assert receiver.messages("/b")["msg_1"].accepted == 1
        assert receiver.messages("/none") == {}
        assert [request.path for request in receiver.requests] == ["/b"]


async def test_signatures_are_verified(client: httpx.AsyncClient) -> None:
    """With a secret, what is not signed under it is answered 401 without asking the script."""
    secret = new_secret()
    asked: list[str | None] = []

    def script(request: object) -> Reply:
        asked.append(getattr(request, "message_id", None))
        return Reply()

    async with Receiver(script, secret=[secret, new_secret()]) as receiver:
        signed = sign("msg_1", int(time.time()), b"{}", [secret])
        assert (await client.post(receiver.url, content=b"{}", headers=signed)).status_code == 200
        assert (await client.post(receiver.url, content=b"[]", headers=signed)).status_code == 401
        assert (await client.post(receiver.url, content=b"{}")).status_code == 401
        assert [request.verified for request in receiver.requests] == [True, False, False]
        assert (receiver.records.unverified, asked) == (2, ["msg_1"])
    with pytest.raises(ValueError, match="secret"):
        Receiver(secret="nonsense")


async def test_one_can_wait_for_requests(client: httpx.AsyncClient) -> None:
    """`wait_for` returns when so many requests have come, and at once when they had."""
    async with Receiver() as receiver, anyio.create_task_group() as group:
        with anyio.fail_after(20):
            for _ in range(3):
                group.start_soon(client.post, receiver.url)
            await receiver.wait_for(2)
            await receiver.wait_for(3)
            await receiver.wait_for(1)
        assert receiver.total == 3


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x00\x00",
        b"GET\r\n\r\n",
        b"GET / FTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\nname : x\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nX: " + b"x" * 70_000,
    ],
    ids=range(8),
)
async def test_what_is_no_request_is_answered_400(data: bytes) -> None:
    """A sender's mistake is told to it, and is not recorded as a request."""
    async with Receiver() as receiver:
        assert (await talk(receiver, data)).startswith(b"HTTP/1.1 400 ")
        assert receiver.total == 0


async def test_chunked_and_pipelined_requests_are_read() -> None:
    """Other senders than ours may send chunks, or two requests at once."""
    chunked = b"POST /1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
    plain = b"POST /2 HTTP/1.1\r\nContent-Length: 2\r\nConnection: close\r\n\r\nxy"
    async with Receiver() as receiver:
        assert (await talk(receiver, chunked + plain)).count(b"HTTP/1.1 200 OK") == 2
        assert [(request.path, request.body) for request in receiver.requests] == [("/1", b"abcde"), ("/2", b"xy")]


@pytest.mark.parametrize(
    ("fault", "beginning"),
    [
        (Fault.RESET, b""),
        (Fault.CLOSE, b""),
        (Fault.CLOSE_MID_HEADERS, b"HTTP/1.1 200 OK\r\nServer: rec"),
        (Fault.CLOSE_MID_BODY, b"HTTP/1.1 200 OK\r\nContent-Length: 104\r\n\r\nbody"),
        (Fault.HTTP_0_9, b"body"),
        (Fault.MANY_HEADERS, b"HTTP/1.1 200 OK\r\nX-Header-0: value\r\n"),
        (Fault.LONG_HEADER, b"HTTP/1.1 200 OK\r\nX-Long: ...."),
    ],
)
async def test_a_fault_that_ends_by_itself_sends_what_it_says(fault: Fault, beginning: bytes) -> None:
    """What goes over the wire is the misbehaviour that was asked for."""
    async with Receiver(Reply(body=b"body", fault=fault)) as receiver:
        answer = await talk(receiver, b"POST / HTTP/1.1\r\n\r\n")
        assert answer.startswith(beginning)
        assert bool(answer) == bool(beginning)
        assert receiver.records.as_json()["paths"] == {
            "/": {
                "requests": 1, "statuses": {fault.value: 1}, "messages": 0, "accepted": 0, "duplicates": 0,
                "by_message": {},
            }
        }  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "beginning"),
    [
        (Fault.HANG_MID_HEADERS, b"HTTP/1.1 200 OK\r\nServer: rec"),
        (Fault.DRIP_HEADERS, b"HTTP/1.1 2"),
        (Fault.DRIP_BODY, b"HTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n..."),
        (Fault.ENDLESS_BODY, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"." * 300_000),
        (Fault.ENDLESS_INFORMATIONAL, b"HTTP/1.1 103 Early Hints\r\n\r\n" * 500),
        (Fault.MALFORMED, b"SSH-2.0-"),
        (Fault.BAD_CHUNK, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    ],
)
async def test_a_fault_without_end_lasts_until_the_sender_leaves(fault: Fault, beginning: bytes) -> None:
    """What has no end is sent as long as somebody reads it, and no longer."""
    async with Receiver(Reply(fault=fault, pace=0.001)) as receiver:
        received = b""
        with anyio.fail_after(20):
            async with await anyio.connect_tcp("127.0.0.1", receiver.port) as stream:
                await stream.send(b"POST / HTTP/1.1\r\n\r\n")
                while len(received) < len(beginning):
                    received += await stream.receive()
        assert received.startswith(beginning)


async def test_a_reset_is_a_reset() -> None:
    """The sender sees its connection reset, not closed in good order."""
    async with (
        Receiver(Reply(fault=Fault.RESET)) as receiver,
        await anyio.connect_tcp("127.0.0.1", receiver.port) as stream,
    ):
        await stream.send(b"POST / HTTP/1.1\r\n\r\n")
        with anyio.fail_after(20), pytest.raises(anyio.BrokenResourceError) as caught:
            await stream.receive()
    assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_an_error_in_a_script_is_not_hidden(client: httpx.AsyncClient) -> None:
    """A mistake in a test's own script ends the receiver with that error."""

    def script(_: object) -> Reply:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        async with Receiver(script) as receiver:
            await client.post(receiver.url)
    assert caught.group_contains(ZeroDivisionError)


async def test_it_speaks_tls() -> None:
    """With a context it is an https receiver."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with Receiver(ssl_context=server) as receiver, httpx.AsyncClient(verify=trusting, trust_env=False) as client:
        assert receiver.url.startswith("https://")
        assert (await client.post(receiver.url)).status_code == 200


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"mode": "strange"}, "name"),
        ({"mode": "flaky", "fail_rate": 2}, "fail_rate"),
        ({"mode": "slow", "latency": -1}, "latency"),
        ({"mode": "slow", "latency": "long"}, "latency"),
        ({"mode": "dead", "status": 99}, "status"),
        ({"mode": "flaky", "seed": "x"}, "seed"),
        ({"mode": "flaky", "color": 1}, "color"),
    ],
)
def test_a_mode_that_cannot_be_is_refused(options: dict[str, object], argument: str) -> None:
    """The error names what is wrong, whether it comes over the wire or from the command line."""
    with pytest.raises(ValueError, match=argument):
        Mode.from_mapping(options)


def test_a_flaky_mode_repeats_itself_by_its_seed() -> None:
    """The same seed fails the same requests, at about the rate asked for."""

    def statuses(seed: int) -> list[int]:
        mode = Mode("flaky", fail_rate=0.3, seed=seed)
        return [mode.reply().status for _ in range(1000)]

    assert statuses(1) == statuses(1) != statuses(2)
    assert 200 < statuses(1).count(503) < 400


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("healthy", Reply(200)),
        ("slow", Reply(200, latency=0.2)),
        ("dead", Reply(503)),
        ("reset", Reply(503, fault=Fault.RESET)),
        ("hang", Reply(503, fault=Fault.HANG)),
    ],
)
def test_each_mode_answers_in_its_way(name: str, expected: Reply) -> None:
    """The steady modes give the same reply each time."""
    assert Mode(name, latency=expected.latency).reply() == expected


@pytest.fixture
def program() -> Iterator[subprocess.Popen[str]]:
    """The receiver in a process of its own, with a healthy and a dead path."""
    command = [sys.executable, "-m", "webhook_adapter.testing.receiver"]
    command += ["--mode", "/good=healthy", "--mode", "/bad=dead,status=500"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_program_plays_several_receivers_and_reports(program: subprocess.Popen[str]) -> None:
    """It says where it listens, switches a path while it runs, and prints its records when it is told to end."""
    assert program.stdout is not None
    url = json.loads(program.stdout.readline())["url"]
    # Nothing but the test ends the connection, however long that takes.
    limits = httpx.Limits(keepalive_expiry=None)
    with httpx.Client(base_url=url, trust_env=False, timeout=PATIENT, limits=limits) as client:
        headers = {"webhook-id": "msg_1"}
        assert client.post("/good", headers=headers).status_code == 200
        assert client.post("/bad?x=1", headers=headers).status_code == 500
        switched = client.post("/__mode__", json={"path": "/bad", "mode": "healthy"})
        assert (switched.status_code, switched.json()) == (200, {"path": "/bad"})
        assert client.post("/bad?x=1", headers=headers).status_code == 200
        mistakes: list[object] = [{"path": "bad", "mode": "healthy"}, {"path": "/bad", "mode": "strange"}, [], {}]
        for wrong in mistakes:
            assert client.post("/__mode__", json=wrong).status_code == 400
        assert client.post("/__mode__", content=b"{").status_code == 400
        records = client.get("/__records__").json()
        assert (records["requests"], records["duplicates"], records["connections"]) == (3, 0, 1)
        assert records["paths"]["/bad?x=1"]["statuses"] == {"500": 1, "200": 1}
        assert records["paths"]["/bad?x=1"]["by_message"]["msg_1"][:2] == [2, 1]
        assert "by_message" not in client.get("/__records__?messages=0").json()["paths"]["/good"]
    program.send_signal(signal.SIGTERM)
    output, _ = program.communicate(timeout=20)
    assert json.loads(output) == records
    assert program.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        *(
            (("--mode", mode), said)
            for mode, said in (
                ("nonsense", "mode"),
                ("/a", "mode"),
                ("/a=strange", "strange"),
                ("/a=flaky,fail_rate=often", "fail_rate"),
                ("a=dead", "mode"),
            )
        ),
        (("--port", "65536"), "port must be a whole number from 0 to 65535, not 65536"),
        (("--port", "-1"), "not -1"),
        (("--secret", "hunter2"), "a secret must start with"),
        (("--keep", "-1"), "keep must be a whole number of at least 0, or None, not -1"),
    ],
)
def test_the_program_refuses_what_cannot_be(
    arguments: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake on the command line is one sentence and exit code 2."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert named in capsys.readouterr().err


def test_the_program_names_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """A port that somebody else listens on is one sentence that names it, and exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        assert main(["--port", str(port)]) == 1

    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert f"cannot listen on 127.0.0.1:{port}: " in said.err


def test_paths_without_a_mode_are_healthy() -> None:
    """One need only name the paths that behave in some other way."""
    from webhook_adapter.testing import ReceivedRequest

    request = ReceivedRequest("POST", "/other", (), b"", 0.0, 1)
    assert Switchboard({"/dead": Mode("dead")})(request) == Reply()


def test_a_reply_that_cannot_be_is_refused() -> None:
    """A reply has a final status and finite durations."""
    for status in (100, 199, 1000, True):
        with pytest.raises(ValueError, match="status"):
            Reply(status)
    for latency in (-1.0, float("inf"), float("nan"), True):
        with pytest.raises(ValueError, match="latency"):
            Reply(latency=latency)
    for keep in (-1, True):
        with pytest.raises(ValueError, match="keep"):
            Receiver(keep=keep)
