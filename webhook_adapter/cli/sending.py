"""`send`: events from a file or standard input, accepted durably and, if asked, delivered.

Rules of this module: a file is checked to its last line before its first is accepted; standard input, which may not
end, is accepted as it comes and up to the first line that is wrong. Whatever happens, it is said how many lines have
been accepted.
"""

from __future__ import annotations

import itertools
import os
import select
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import attrs

from webhook_adapter import Endpoint, StoreError, WebhookService
from webhook_adapter.cli.lines import Line, LineError, Reading
from webhook_adapter.cli.output import CommandError, fail, say, sentence_of, tell_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from typing import BinaryIO

    from webhook_adapter import Settings

__all__ = ["Sending"]

_AT_ONCE = 200
_PAGE = 1_000
_ERRORS_SHOWN = 10
_STANDARD_INPUT = "-"
_CHUNK = 64 * 1024
_WAIT_FOR_INPUT = 0.25


@attrs.define(eq=False)
class Sending:
    """One run of `send`, and how far it has come.

    Attributes:
        accepted: lines that are durable, whether they were new or not.
        known: of these, how many stand for a message that had been accepted already.
        unrouted: of these, how many no endpoint subscribes to.
        delivered, dead, pending: deliveries, once it has waited for them: delivered and dead meanwhile, still pending.
    """

    source: str
    data_dir: Path
    settings: Settings
    reading: Reading
    endpoint: str | None
    secret: str | None
    wait: bool
    as_json: bool
    accepted: int = 0
    known: int = 0
    unrouted: int = 0
    delivered: int | None = None
    dead: int | None = None
    pending: int | None = None
    _ids: set[str] = attrs.field(factory=set)
    _began_at: float = 0.0
    _endpoints: list[Endpoint] = attrs.field(factory=list)

    async def run(self) -> int:
        """Do it, and return the exit code: 1 if a delivery that was waited for is dead. A checkpoint.

        Raises:
            CommandError: a line is wrong, or the file cannot be read.
            StoreError, ValueError: the service refuses something.
        """
        if self.source != _STANDARD_INPUT:
            await anyio.to_thread.run_sync(self._check_file)
        async with WebhookService(self.data_dir, settings=self.settings, dispatch=self.wait) as service:
            before = await service.store_statistics()
            self._began_at = time.time()
            if self.endpoint is not None:
                await self._register(service, self.endpoint)
            self._endpoints = await _all_endpoints(service)
            await self._send_all(service)
            if self.wait:
                await service.wait_until_idle()
                after = await service.store_statistics()
                self.delivered = after.delivered - before.delivered
                self.dead = max(0, after.dead - before.dead)
                self.pending = after.pending + after.leased
        return 1 if self.dead else 0

    def report(self) -> None:
        """Print how far it has come."""
        if self.as_json:
            figures: dict[str, object] = {
                name: value
                for name in ("accepted", "known", "unrouted", "delivered", "dead", "pending")
                if (value := getattr(self, name)) is not None
            }
            tell_json(figures)
            return
        text = f"{self.accepted} accepted"
        if self.known:
            text += f", of them {self.known} known already"
        if self.unrouted:
            text += f", {self.unrouted} that no endpoint subscribes to"
        if self.delivered is not None:
            text += f"; {self.delivered} delivered, {self.dead} dead, {self.pending} held back"
        say(text + ".")

    # -- reading ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        if self.source == _STANDARD_INPUT:
            yield sys.stdin.buffer
            return
        try:
            file = Path(self.source).open("rb")  # noqa: SIM115 - only the opening may fail with this sentence
        except OSError as exc:
            raise CommandError(f"{self.source!r} cannot be read: {exc.strerror or exc}") from exc
        with file:
            yield file

    def _check_file(self) -> None:
        """Read the file once for its errors alone. Blocks."""
        wrong = 0
        with self._opened() as file:
            for number, raw in enumerate(file, 1):
                try:
                    self.reading.parse(raw, number)
                except LineError as error:
                    wrong += 1
                    if wrong <= _ERRORS_SHOWN:
                        fail(sentence_of(error))
        if wrong:
            raise CommandError(f"{wrong} {'line is' if wrong == 1 else 'lines are'} wrong, so nothing was accepted")

    # -- sending ----------------------------------------------------------------------------------------------------

    async def _register(self, service: WebhookService, url: str) -> None:
        for existing in await _all_endpoints(service):
            if existing.url == url or existing.url == url + "/":
                current = [secret.value for secret in existing.secrets if secret.expires_at is None]
                if self.secret is not None and self.secret not in current:
                    await service.rotate_secret(existing.id, secret=self.secret)
                return
        made = await service.register_endpoint(url, secret=self.secret)
        if self.secret is None:
            told = f"Endpoint {made.id} is registered; its signing secret is {made.secrets[0].value}"
            # Standard output is for the figures when somebody parses them.
            fail(told) if self.as_json else say(told)

    async def _send_all(self, service: WebhookService) -> None:
        # An ordered endpoint takes messages in the order of acceptance, so there they are accepted one by one.
        ordered = any(endpoint.ordered for endpoint in self._endpoints)
        errors: list[tuple[int, Exception]] = []
        with self._opened() as file:
            async for group in _groups(file, piped=self.source == _STANDARD_INPUT):
                batch = self._parsed(group, errors)
                if ordered:
                    await self._send(service, batch, errors)
                else:
                    async with anyio.create_task_group() as tasks:
                        for lines in _independent(batch):
                            tasks.start_soon(self._send, service, lines, errors)
                if errors:
                    break
        if errors:
            number, error = min(errors, key=lambda each: each[0])
            where = "" if isinstance(error, LineError) else f"line {number}: "
            told = sentence_of(error).removesuffix(".")
            raise CommandError(f"{where}{told}; {self.accepted} lines were accepted") from error

    def _parsed(self, group: list[tuple[int, bytes]], errors: list[tuple[int, Exception]]) -> list[Line]:
        """Return the events of some lines, up to the first that is wrong."""
        batch: list[Line] = []
        for number, raw in group:
            try:
                line = self.reading.parse(raw, number)
            except LineError as error:
                errors.append((number, error))
                break
            if line is not None:
                batch.append(line)
        return batch

    async def _send(self, service: WebhookService, lines: list[Line], errors: list[tuple[int, Exception]]) -> None:
        """Send lines one after the other, up to the first that is refused."""
        for line in lines:
            try:
                message = await service.send_webhook_notification(
                    line.event_type,
                    line.data,
                    idempotency_key=line.idempotency_key,
                    ordering_key=line.ordering_key,
                    occurred_at=line.occurred_at,
                )
            except (ValueError, StoreError) as error:
                errors.append((line.number, error))
                return
            self.accepted += 1
            self.known += message.id in self._ids or message.accepted_at < self._began_at
            if line.idempotency_key is not None:
                self._ids.add(message.id)
            wanted = any(each.wants(line.event_type) and not each.owner for each in self._endpoints)
            self.unrouted += not wanted


async def _groups(file: BinaryIO, *, piped: bool) -> AsyncIterator[list[tuple[int, bytes]]]:
    """Yield numbered lines in groups: of a file some at a time, of a pipe those that have come."""
    numbered = enumerate(file, 1)
    while not piped:
        group = await anyio.to_thread.run_sync(lambda: list(itertools.islice(numbered, _AT_ONCE)))
        if not group:
            return
        yield group
    count = 0
    rest = b""
    while (chunk := await anyio.to_thread.run_sync(_read_some, file.fileno())) != b"":
        *lines, rest = (rest + chunk).split(b"\n") if chunk is not None else [rest]
        if lines:
            yield list(enumerate(lines, count + 1))
            count += len(lines)
    if rest:
        yield [(count + 1, rest)]


def _read_some(descriptor: int) -> bytes | None:
    """Return what can be read, b"" at the end, or None after a while, so that a Ctrl-C need not wait for input."""
    readable, _, _ = select.select([descriptor], [], [], _WAIT_FOR_INPUT)
    return os.read(descriptor, _CHUNK) if readable else None


def _independent(batch: list[Line]) -> list[list[Line]]:
    """Return the lines in lists that may be sent at the same time: those with the same ordering key are one list."""
    found: dict[str, list[Line]] = {}
    alone: list[list[Line]] = []
    for line in batch:
        if line.ordering_key is None:
            alone.append([line])
        else:
            found.setdefault(line.ordering_key, []).append(line)
    return [*alone, *found.values()]


async def _all_endpoints(service: WebhookService) -> list[Endpoint]:
    found: list[Endpoint] = []
    while page := await service.list_endpoints(limit=_PAGE, after=found[-1].id if found else None):
        found += page
    return found
