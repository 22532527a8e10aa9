"""`send`: events from a file or standard input, accepted durably and, if asked, delivered.

Rules of this module: a file is checked to its last line before its first is accepted; standard input, which may not
end, is accepted as it comes and up to the first line that is wrong. Whatever happens, it is said how many lines have
been accepted.
"""

from __future__ import annotations

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
    from collections.abc import Iterator
    from typing import BinaryIO

    from webhook_adapter import Settings

__all__ = ["Sending"]

_AT_ONCE = 200
_PAGE = 1_000
_ERRORS_SHOWN = 10
_STANDARD_INPUT = "-"


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
        with self._opened() as file:
            lines = enumerate(file, 1)
            while batch := await self._batch(lines, limit=1 if ordered else _AT_ONCE):
                errors: list[tuple[int, Exception]] = []
                async with anyio.create_task_group() as tasks:
                    for line in batch:
                        if isinstance(line, LineError):
                            errors.append((line.number, line))
                        elif line.ordering_key is None:
                            tasks.start_soon(self._send, service, [line], errors)
                    for keyed in _by_key(batch):
                        tasks.start_soon(self._send, service, keyed, errors)
                if errors:
                    number, error = min(errors, key=lambda each: each[0])
                    where = "" if isinstance(error, LineError) else f"line {number}: "
                    told = sentence_of(error).removesuffix(".")
                    raise CommandError(f"{where}{told}; {self.accepted} lines were accepted") from error

    async def _batch(self, lines: Iterator[tuple[int, bytes]], *, limit: int) -> list[Line | LineError]:
        """Return the next lines; the last of them is an error if one was wrong. Empty at the end."""
        batch: list[Line | LineError] = []
        piped = self.source == _STANDARD_INPUT

        def fill() -> None:
            for number, raw in lines:
                try:
                    line = self.reading.parse(raw, number)
                except LineError as error:
                    batch.append(error)
                    return
                if line is not None:
                    batch.append(line)
                # What comes through a pipe may come slowly: nothing that has come waits for what has not.
                if len(batch) >= limit or (piped and batch and not _more_at_hand()):
                    return

        await anyio.to_thread.run_sync(fill, abandon_on_cancel=True)
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


def _by_key(batch: list[Line | LineError]) -> list[list[Line]]:
    """Return the lines that have an ordering key, one list for each key, in their order."""
    found: dict[str, list[Line]] = {}
    for line in batch:
        if isinstance(line, Line) and line.ordering_key is not None:
            found.setdefault(line.ordering_key, []).append(line)
    return list(found.values())


def _more_at_hand() -> bool:
    """Whether standard input has something buffered that can be read without waiting. Blocks no longer than that."""
    import select

    peek = getattr(sys.stdin.buffer, "peek", None)
    readable, _, _ = select.select([sys.stdin], [], [], 0)
    return bool(readable) or bool(peek and b"\n" in peek(0))


async def _all_endpoints(service: WebhookService) -> list[Endpoint]:
    found: list[Endpoint] = []
    while page := await service.list_endpoints(limit=_PAGE, after=found[-1].id if found else None):
        found += page
    return found
