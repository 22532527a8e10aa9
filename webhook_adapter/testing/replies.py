"""What a receiver answers: well, late, or wrongly in one of the ways that receivers on the internet do.

Rules of this module: a reply is a value, so that a script of them can be read, compared and repeated. It knows no
socket; `serving` puts replies on the wire.
"""

from __future__ import annotations

import enum
import http
import random
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Fault", "Mode", "Reply"]


class Fault(enum.StrEnum):
    """A way to misbehave instead of answering."""

    RESET = "reset"
    """Reset the connection once the request has been read."""
    CLOSE = "close"
    """Close the connection once the request has been read."""
    HANG = "hang"
    """Read the request and never answer."""
    CLOSE_MID_HEADERS = "close_mid_headers"
    """Close within the headers."""
    HANG_MID_HEADERS = "hang_mid_headers"
    """Send a part of the headers and then nothing."""
    DRIP_HEADERS = "drip_headers"
    """Send the headers byte by byte, `pace` seconds apart."""
    DRIP_BODY = "drip_body"
    """Send the headers at once and the body byte by byte, `pace` seconds apart, without end."""
    CLOSE_MID_BODY = "close_mid_body"
    """Announce a longer body than is sent, then close."""
    RESET_MID_BODY = "reset_mid_body"
    """Announce a longer body than is sent, then reset."""
    ENDLESS_BODY = "endless_body"
    """Send a body that does not end, as fast as it is read."""
    ENDLESS_INFORMATIONAL = "endless_informational"
    """Send 1xx responses that do not end, and never the real one."""
    MANY_HEADERS = "many_headers"
    """Send ten thousand headers."""
    LONG_HEADER = "long_header"
    """Send one header of a megabyte."""
    MALFORMED = "malformed"
    """Send something that is not HTTP."""
    HTTP_0_9 = "http_0_9"
    """Send the bare body, without status line and headers, and close."""
    BAD_CHUNK = "bad_chunk"
    """Send complete headers and then a chunk whose size is no number."""


def _status(_: object, __: object, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 200 <= value <= 999:  # noqa: PLR2004 - as in HTTP
        raise ValueError(f"status must be a final status code from 200 to 999, not {value!r}")


def _duration(_: object, attribute: attrs.Attribute[float], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{attribute.name} must be a finite number of seconds of at least 0, not {value!r}")


@attrs.frozen
class Reply:
    """One answer to one request.

    Args:
        status: the final status code.
        headers: names and values beyond Content-Length.
        body: the response body.
        latency: seconds from having read the request to answering, or to misbehaving.
        close: close the connection after the answer instead of keeping it.
        fault: misbehave in this way instead; status, headers and body are used as far as the fault lets them.
        pace: seconds between the bytes of a drip.
    """

    status: int = attrs.field(default=200, validator=_status)
    headers: tuple[tuple[str, str], ...] = attrs.field(default=(), kw_only=True)
    body: bytes = attrs.field(default=b"", kw_only=True)
    latency: float = attrs.field(default=0.0, validator=_duration, kw_only=True)
    close: bool = attrs.field(default=False, kw_only=True)
    fault: Fault | None = attrs.field(default=None, kw_only=True)
    pace: float = attrs.field(default=0.05, validator=_duration, kw_only=True)
    wire: bytes = attrs.field(init=False, repr=False, eq=False)

    @wire.default
    def _on_the_wire(self) -> bytes:
        return self.head() + self.body

    def head(self, *, length: int | None = None) -> bytes:
        """Return status line and headers, with `length` as the Content-Length in place of the body's own."""
        try:
            phrase = http.HTTPStatus(self.status).phrase
        except ValueError:
            phrase = "Status"
        lines = [f"HTTP/1.1 {self.status} {phrase}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.status != http.HTTPStatus.NO_CONTENT:
            lines.append(f"Content-Length: {len(self.body) if length is None else length}")
        if self.close:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


_MODES = ("healthy", "slow", "flaky", "dead", "reset", "hang")


def _mode_name(_: object, __: object, value: object) -> None:
    if value not in _MODES:
        raise ValueError(f"name must be one of {', '.join(_MODES)}, not {value!r}")


def _rate(_: object, __: object, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"fail_rate must be a number from 0 to 1, not {value!r}")


@attrs.define(eq=False)
class Mode:
    """How a receiver behaves over many requests.

    Args:
        name: "healthy", "slow" (after `latency`), "flaky" (fails at `fail_rate`), "dead" (fails always), "reset" or
            "hang".
        latency: seconds before each answer.
        fail_rate: share of the answers of a flaky receiver that are `status`, by a die of its own.
        status: the status code of a failing answer.
        seed: makes the die repeatable.
    """

    name: str = attrs.field(default="healthy", validator=_mode_name)
    latency: float = attrs.field(default=0.0, validator=_duration, kw_only=True)
    fail_rate: float = attrs.field(default=0.3, validator=_rate, kw_only=True)
    status: int = attrs.field(default=503, validator=_status, kw_only=True)
    seed: int = attrs.field(default=0, validator=attrs.validators.instance_of(int), kw_only=True)
    _die: random.Random = attrs.field(init=False, repr=False)
    _good: Reply = attrs.field(init=False, repr=False)
    _bad: Reply = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._die = random.Random(self.seed)
        faults = {"reset": Fault.RESET, "hang": Fault.HANG}
        self._good = Reply(latency=self.latency)
        self._bad = Reply(self.status, latency=self.latency, fault=faults.get(self.name))

    @classmethod
    def from_mapping(cls, options: Mapping[str, object]) -> Mode:
        """Return the mode that `options` describe: "mode" for the name, and the arguments by theirs.

        Raises:
            ValueError: an unknown option, or a value that does not fit.
        """
        unknown = set(options) - {"mode", "latency", "fail_rate", "status", "seed"}
        if unknown:
            raise ValueError(f"unknown options: {', '.join(sorted(unknown))}")
        given = {name: value for name, value in options.items() if name != "mode"}
        try:
            return cls(options.get("mode", "healthy"), **given)  # type: ignore[arg-type] # the validators look at each
        except TypeError as exc:
            raise ValueError(str(exc)) from exc

    def reply(self) -> Reply:
        """Return the answer to the next request."""
        match self.name:
            case "healthy" | "slow":
                return self._good
            case "flaky":
                return self._bad if self._die.random() < self.fail_rate else self._good
            case _:
                return self._bad
