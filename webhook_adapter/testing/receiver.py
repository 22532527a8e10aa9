"""The receiver as a program: several receivers in one process, one to each path, switched while they run.

    python -m webhook_adapter.testing.receiver --port 0 --mode /a=healthy --mode /b=flaky,fail_rate=0.3,seed=7

It prints one line of JSON with its port and URL as soon as it listens, and another with its records when it gets
SIGTERM or SIGINT. Two paths are its own:

    GET  /__records__        its records, as JSON; /__records__?messages=0 leaves out the count of each message
    POST /__mode__           {"path": "/b", "mode": "dead", "status": 503}

Rules of this module: it only translates, from arguments and control requests to modes. Paths without a mode are
healthy.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from typing import TYPE_CHECKING

import anyio

from webhook_adapter.testing.records import ReceivedRequest, Records
from webhook_adapter.testing.replies import Mode, Reply
from webhook_adapter.testing.serving import Receiver

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Switchboard", "main"]

_RECORDS = "/__records__"
_MODE = "/__mode__"


class Switchboard:
    """The script of the program: a mode for each path, and two paths that control it."""

    def __init__(self, modes: dict[str, Mode]) -> None:
        self._modes = modes
        self._default = Mode()
        self.records = Records()

    def __call__(self, request: ReceivedRequest) -> Reply:
        """Answer `request` by the mode of its path."""
        return self._modes.get(request.path.partition("?")[0], self._default).reply()

    def control(self, request: ReceivedRequest) -> Reply | None:
        """Answer a control request, or return None if it is none."""
        path, _, query = request.path.partition("?")
        if path == _RECORDS:
            return _json(200, self.records.as_json(messages="messages=0" not in query.split("&")))
        if path == _MODE:
            return self._switch(request.body)
        return None

    def _switch(self, body: bytes) -> Reply:
        try:
            options = json.loads(body)
            if not isinstance(options, dict):
                raise ValueError("the body must be a JSON object")  # noqa: TRY301 - one answer to all of them
            path = options.pop("path", None)
            if not isinstance(path, str) or not path.startswith("/"):
                raise ValueError(f"path must begin with a slash, not {path!r}")  # noqa: TRY301 - as above
            self._modes[path] = Mode.from_mapping(options)
        except ValueError as exc:
            return _json(400, {"error": str(exc)})
        return _json(200, {"path": path})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m webhook_adapter.testing.receiver", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="the port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--secret", action="append", default=[], help="verify signatures under it; may be given again")
    parser.add_argument("--keep", type=int, default=0, help="how many requests to keep in full")
    parser.add_argument(
        "--mode", action="append", default=[], metavar="PATH=MODE[,option=value]", help="how a path behaves"
    )
    given = parser.parse_args(arguments)
    try:
        switchboard = Switchboard(dict(_parse_mode(text) for text in given.mode))
        receiver = Receiver(
            switchboard, secret=given.secret, keep=given.keep, port=given.port, control=switchboard.control
        )
    except ValueError as exc:
        parser.error(str(exc))
    switchboard.records = receiver.records
    try:
        anyio.run(_run, receiver)
    except OSError as exc:
        print(f"{parser.prog}: error: {exc.strerror}", file=sys.stderr)
        return 1
    return 0


async def _run(receiver: Receiver) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with receiver:
            _print({"port": receiver.port, "url": receiver.url})
            async for _ in signals:
                break
        _print(receiver.records.as_json())


def _parse_mode(text: str) -> tuple[str, Mode]:
    path, equals, described = text.partition("=")
    name, *options = described.split(",")
    if not path.startswith("/") or not equals:
        raise ValueError(f"mode must be PATH=MODE[,option=value], not {text!r}")
    mapping: dict[str, object] = {"mode": name}
    for option in options:
        key, _, value = option.partition("=")
        try:
            mapping[key] = json.loads(value)
        except ValueError:
            raise ValueError(f"{key} must be a number, not {value!r}") from None
    return path, Mode.from_mapping(mapping)


def _json(status: int, data: object) -> Reply:
    return Reply(status, headers=(("Content-Type", "application/json"),), body=json.dumps(data).encode())


def _print(data: object) -> None:
    print(json.dumps(data), flush=True)


if __name__ == "__main__":
    sys.exit(main())
