"""Answers as no receiver should give them: random bytes, and good responses in which something was turned round.

An answer follows from its seed and its number alone, so that one that did harm can be looked at again:
`print(Answer.of("seed", 123))`.
"""

from __future__ import annotations

import enum
import random
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Answer", "Then"]

_STATUSES = (
    b"200",
    b"204",
    b"304",
    b"100",
    b"101",
    b"103",
    b"410",
    b"413",
    b"429",
    b"503",
    b"000",
    b"099",
    b"999",
    b"2",
)
_VERSIONS = (b"HTTP/1.1",) * 8 + (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"http/1.1", b"RTSP/1.0", b"HTTP/1.1 ")
_LENGTHS = (b"0", b"2", b"5", b"20", b"-1", b"+2", b"2, 2", b"0x2", b"99999999999999999999", b"")
_CODINGS = (b"chunked", b"gzip", b"gzip, chunked", b"chunked, gzip", b"chunked, chunked", b"identity", b"\x0bchunked")
_CONNECTIONS = (b"close", b"keep-alive", b"upgrade", b"keep-alive, close")
_RETRY_AFTER = (b"1", b"-1", b"1e999", b"soon", b"Sun, 06 Nov 1994 08:49:37 GMT", b"\xff\0")
_NEWLINES = (b"\r\n",) * 12 + (b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n ")
_BODIES = (
    b"",
    b"ok",
    b"hello",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"2;x=y\r\nok\r\n0\r\nX: y\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"0\r\n\r\n",
)
_MOST = 16_000


class Then(enum.Enum):
    """What follows an answer."""

    KEEP = "the next request is read, if there is one"
    CLOSE = "the connection is closed"
    REPEAT = "a part of the answer, without end"


@attrs.frozen
class Answer:
    """What is sent, and what happens then."""

    data: bytes
    then: Then
    repeated: bytes = b""

    @classmethod
    def of(cls, seed: str, number: int) -> Answer:
        """Return the answer of that number."""
        dice = random.Random(f"{seed} {number}")
        data = dice.choices((_noise, _soup, _turned_round, _response, _two), (1, 3, 5, 1, 3))[0](dice)[:_MOST]
        then = dice.choices(tuple(Then), (40, 50, 10))[0]
        begin = dice.randrange(len(data) + 1)
        return cls(data, then, data[begin : begin + dice.randrange(1, 200)] or b"\r\n")


def _noise(dice: random.Random) -> bytes:
    return dice.randbytes(dice.randrange(2000))


def _response(dice: random.Random) -> bytes:
    """Return a good response."""
    body = dice.randbytes(dice.randrange(dice.choice((20, 200, 2000))))
    head = b"HTTP/1.1 %b Status\r\nServer: fuzz\r\n" % dice.choice(_STATUSES[:1] + _STATUSES[6:10])
    framing = dice.random()
    if framing < 0.5:
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    if framing < 0.6:
        return head + b"\r\n" + body
    at = dice.randrange(len(body) + 1)
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:at], body[at:]) if part]
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunks) + b"0\r\n\r\n"


def _two(dice: random.Random) -> bytes:
    """Return a good response, and another one or its beginning."""
    second = _response(dice)
    return _response(dice) + second[: dice.choice((len(second), dice.randrange(1, len(second))))]


def _soup(dice: random.Random) -> bytes:
    """Return lines that belong into a response, some of them several times, and maybe several responses."""
    newline = dice.choice(_NEWLINES)
    lines = [b"%b %b Status" % (dice.choice(_VERSIONS), dice.choice(_STATUSES))]
    for _ in range(dice.randrange(6)):
        name, values = dice.choice(
            (
                (b"Content-Length", _LENGTHS),
                (b"Content-Length", _LENGTHS[:4]),
                (b"Transfer-Encoding", _CODINGS),
                (b"Connection", _CONNECTIONS),
                (b"Retry-After", _RETRY_AFTER),
                (b"X", (b"y" * dice.randrange(5000),)),
            )
        )
        lines.append(b"%b%b%b" % (name, dice.choice((b": ", b":", b" : ", b":\t")), dice.choice(values)))
    response = newline.join(lines) + newline * 2 + dice.choice(_BODIES)
    return response + (_soup(dice) if dice.random() < 0.2 else b"")


def _turned_round(dice: random.Random) -> bytes:
    """Return a good response, or two, with a few bytes changed."""
    data = _response(dice) if dice.random() < 0.8 else _two(dice)
    for _ in range(dice.randrange(1, 5)):
        begin = dice.randrange(len(data) + 1)
        end = min(len(data), begin + dice.randrange(1, 20))
        data = dice.choice(_CHANGES)(dice, data[:begin], data[begin:end], data[end:])
    return data


_CHANGES: tuple[Callable[[random.Random, bytes, bytes, bytes], bytes], ...] = (
    lambda _, before, __, after: before + after,
    lambda _, before, __, ___: before,
    lambda dice, before, part, after: before + part * dice.randrange(2, 200) + after,
    lambda dice, before, part, after: before + dice.randbytes(len(part)) + after,
    lambda dice, before, part, after: (
        before + dice.choice((b"\r\n", b"\n", b"\0", b":", b" ", b"0", b"9")) + part + after
    ),
    lambda _, before, part, after: before + part[::-1] + after,
)
