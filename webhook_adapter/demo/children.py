"""The other processes of the demonstration: starting, hearing and ending them.

Rules of this module: a child speaks in lines of JSON on its standard output, and ends when its standard input does, so
that it never outlives its parent, however that ended. A child that was started is ended and reaped before the block
that started it is left.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import attrs
from anyio.streams.buffered import BufferedByteReceiveStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyio.abc import Process

__all__ = ["Child", "ChildError", "end_with_parent", "running"]

_MAX_LINE = 64 * 1024 * 1024
_END_WITHIN = 5.0
_ERRORS_SHOWN = 2_000


class ChildError(Exception):
    """A process of the demonstration ended by itself, or did not begin."""


@attrs.define(eq=False)
class Child:
    """A process that was started: `name` is for people."""

    name: str
    process: Process
    _lines: BufferedByteReceiveStream
    _errors: list[bytes] = attrs.field(factory=list)

    async def line(self) -> dict[str, object]:
        """Return the next thing it says. A checkpoint.

        Raises:
            ChildError: it has ended, or says something else.
        """
        try:
            raw = await self._lines.receive_until(b"\n", _MAX_LINE)
            parsed = json.loads(raw)
        except (anyio.IncompleteRead, anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            raise ChildError(self._ended()) from None
        except (anyio.DelimiterNotFound, ValueError) as exc:
            raise ChildError(f"the {self.name} process said something that is no JSON") from exc
        if not isinstance(parsed, dict):
            raise ChildError(f"the {self.name} process said something that is no JSON object")
        return parsed

    def _ended(self) -> str:
        told = b"".join(self._errors)[-_ERRORS_SHOWN:].decode("utf-8", "replace").strip()
        return f"the {self.name} process ended by itself" + (f": {told}" if told else "")

    async def kill(self) -> None:
        """End it with SIGKILL, at whatever instruction it is, and reap it. A checkpoint."""
        self.process.kill()
        await self.process.wait()

    async def _hear_errors(self) -> None:
        stream = self.process.stderr
        if stream is None:
            return
        try:
            async for chunk in stream:
                self._errors.append(chunk)
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            pass


@asynccontextmanager
async def running(name: str, module: str, *arguments: str) -> AsyncIterator[Child]:
    """Run a module of Python as a child; it is ended, gently or else not, when the block is left."""
    # In a session of its own, since a Ctrl-C in a terminal reaches the whole group: the parent decides what ends when.
    process = await anyio.open_process([sys.executable, "-m", module, *arguments], start_new_session=True)
    if process.stdout is None:
        raise ChildError(f"the {name} process has no output")
    child = Child(name, process, BufferedByteReceiveStream(process.stdout))
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child._hear_errors)  # noqa: SLF001 - its own module
            try:
                yield child
            finally:
                tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await _end(process)


async def _end(process: Process) -> None:
    if process.returncode is None:
        if process.stdin is not None:
            await process.stdin.aclose()
        with anyio.move_on_after(_END_WITHIN):
            await process.wait()
    if process.returncode is None:
        process.kill()
    await process.aclose()


def end_with_parent() -> None:
    """In a child: have this process end with SIGTERM when its standard input ends, that is, when its parent has."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
