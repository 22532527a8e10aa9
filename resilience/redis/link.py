"""One connection to the server, and the thread that owns it.

Theory of operation. Whoever asks, a task of any event loop or a thread, puts a request into a queue and is parked.
The thread takes all that is queued, sends it in one write, reads the answers, and wakes those who asked. So

* one connection serves asyncio, trio and plain threads alike; none of them touches it;
* a caller that is cancelled merely leaves. Its answer is read all the same: the connection stays in step, and what the
  server granted to nobody is given back by the request's `undo`;
* requests that come while an answer is on its way share the next round trip.

The library's own asyncio client belongs to one event loop, knows no trio, and drops its connection when a caller is
cancelled, which leaves it open what the server did.

The thread starts when there is something to do and ends when there has been nothing for a while. Nothing here takes a
lock, so that a frame closed by the garbage collector may leave at any instant. After a fork the child begins anew.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import queue
import re
import threading
import weakref
from typing import TYPE_CHECKING, TypeAlias

import attrs
import redis
import redis.exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from resilience import ResilienceError, SystemClock
from resilience.clock import seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Link", "Reply", "Request", "Script", "StoreError"]

Reply: TypeAlias = "Sequence[int | bytes]"
"""What a script answers."""

#: Seconds for which the thread stays after its last request: a new one costs about as much as a round trip.
IDLE_FOR = 10.0
#: Requests in one write. Their answers must fit the buffers of the sockets while nobody reads them.
BATCH = 256

# What ails the whole server, whatever is asked of it. The library takes the code of an error that it has a type for out
# of the text; of a script's error, Redis 6 has it somewhere in there.
_AILING = re.compile(r"\b(?:BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|MOVED|NOAUTH|NOREPLICAS|OOM|READONLY)\b")
_AILING_TYPES = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.ReadOnlyError,
    redis.OutOfMemoryError,
    redis.InvalidResponse,
    redis.exceptions.ClusterDownError,
    OSError,
)


class StoreError(ResilienceError):
    """The server did not answer as it should.

    `ailing` says that it would not answer anybody else either; else the trouble is with this one request. `asked` says
    that it was asked, rather than left alone.
    """

    def __init__(self, reason: str, *, ailing: bool, asked: bool = True) -> None:
        super().__init__(reason)
        self.ailing = ailing
        self.asked = asked

    @classmethod
    def of(cls, error: Exception) -> StoreError:
        """Return what an exception of the library means."""
        ailing = isinstance(error, _AILING_TYPES) or _AILING.search(str(error)) is not None
        return cls(f"{type(error).__name__}: {error}", ailing=ailing)


@attrs.frozen
class Script:
    """A Lua script and the hash by which the server knows it."""

    source: str = attrs.field(repr=False)
    sha: str = attrs.field(init=False)

    @sha.default
    def _hash(self) -> str:
        # The server's own name for it, not a safeguard.
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


class Request:
    """One run of a script, and its answer once there is one.

    `wake` tells whoever waits, and says False if they are no more; None if nobody waits. If whoever asked has left,
    `undo` is called once with the answer, or with None as soon as it is clear that there is none. All but `answered` is
    for the thread of the link.
    """

    __slots__ = ("_undo", "args", "error", "gone", "keys", "reply", "script", "wake")

    def __init__(
        self,
        script: Script,
        keys: tuple[str, ...],
        args: tuple[str | int, ...],
        *,
        undo: Callable[[Reply | None], object] | None = None,
    ) -> None:
        self.script: Script = script
        self.keys: tuple[str, ...] = keys
        self.args: tuple[str | int, ...] = args
        self.wake: Callable[[], object] | None = None
        self.reply: Reply | None = None
        self.error: StoreError | None = None
        self.gone: bool = False
        self._undo = undo

    @property
    def answered(self) -> bool:
        """Whether there is an answer, or an error in its stead."""
        return self.reply is not None or self.error is not None

    def answer(self, reply: Reply) -> None:
        """Give the answer to whoever asked."""
        self.reply = reply
        if self.gone or (self.wake is not None and self.wake() is False):
            self.undo()

    def fail(self, error: StoreError) -> None:
        """Tell whoever asked that there will be no answer."""
        self.error = error
        if self.gone or (self.wake is not None and self.wake() is False):
            self.undo()

    def accept(self) -> None:
        """Have what was granted: nothing is to be undone any more, and nothing refers to itself."""
        self._undo = None

    def undo(self) -> None:
        """Take back what was granted to nobody, once; if there is no answer by now, there will be none."""
        if self._undo is not None:
            undo, self._undo = self._undo, None
            undo(self.reply)


@attrs.frozen(order=True)
class _Reminder:
    """What is to be called, and when."""

    at_ns: int
    callback: Callable[[bool], object] = attrs.field(order=False)


class Link:
    """A connection that any task and thread may send requests over.

    Args:
        url: where the server is, as redis-py reads it: `redis://`, `rediss://` (TLS) or `unix://`.
        timeout: seconds for each step on the network; who asks keeps a deadline of its own.

    Raises:
        ValueError: the URL is not one.

    """

    def __init__(self, url: str, timeout: float) -> None:
        self._pool = redis.ConnectionPool.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            # A request is sent once or not at all: whoever asked decides what follows.
            retry=Retry(NoBackoff(), 0),
            # Nothing comes that was not asked for, so that whatever can be read beforehand is the end.
            protocol=2,
            health_check_interval=0,
            decode_responses=False,
        )
        self._begin()
        _LINKS.add(self)

    def _begin(self) -> None:
        self._connection = self._pool.make_connection()
        self._connected = False
        self._queue: queue.SimpleQueue[Request | _Reminder | None] = queue.SimpleQueue()
        # The thread's own.
        self._reminders: list[_Reminder] = []
        # Whoever takes the ticket runs the thread; the thread gives it back when it ends.
        self._ticket: list[None] = [None]
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """Where the server is, without its password."""
        told = self._pool.connection_kwargs
        return str(told["path"]) if "path" in told else f"{told.get('host', 'localhost')}:{told.get('port', 6379)}"

    def submit(self, request: Request) -> None:
        """Have a request sent. Never waits; any thread."""
        self._queue.put(request)
        if self._ticket:
            self._start()

    def remind(self, delay_ns: int, callback: Callable[[bool], object]) -> None:
        """Have `callback` called after that time, or with True when the link is closed, in its thread. Any thread."""
        self._queue.put(_Reminder(SystemClock.monotonic_ns() + delay_ns, callback))
        if self._ticket:
            self._start()

    def withdraw(self, request: Request) -> None:
        """Have a request forgotten, or undone if it has been answered. Any thread; from a finalizer, too."""
        request.gone = True
        # If the answer comes only now, whoever hands it out sees that.
        if request.answered:
            self.submit(request)

    def close(self) -> None:
        """Send what is queued, disconnect, and wait for that. A request that comes later connects again."""
        thread = self._thread
        if thread is not None and not self._ticket:
            self._queue.put(None)
            thread.join()

    def _start(self) -> None:
        try:
            self._ticket.pop()
        except IndexError:
            return
        self._thread = threading.Thread(target=self._work, name=f"redis {self.address}", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        ending = False
        while not ending:
            batch, ending = self._gather()
            if batch:
                self._try(batch)
            # Or the last requests, and whose they are, would be held until the next one comes.
            del batch
            if self._reminders and self._call_back(everybody=ending):
                # What they have to say goes before the end.
                self._queue.put(None)
                ending = False
        self._disconnect()
        self._ticket.append(None)
        # Who came just before that found no ticket.
        if not self._queue.empty():
            self._start()

    def _gather(self) -> tuple[list[Request], bool]:
        """Return what is queued and still wanted, and whether to end after that."""
        batch: list[Request] = []
        try:
            item = self._queue.get(timeout=self._patience())
        except queue.Empty:
            return batch, not self._reminders
        while item is not None:
            if isinstance(item, _Reminder):
                heapq.heappush(self._reminders, item)
            elif item.gone:
                item.undo()
            else:
                batch.append(item)
            if len(batch) == BATCH or self._queue.empty():
                return batch, False
            item = self._queue.get_nowait()
        return batch, True

    def _patience(self) -> float:
        """Return for how many seconds there is nothing to do, if nobody asks."""
        if not self._reminders:
            return IDLE_FOR
        return seconds(max(0, self._reminders[0].at_ns - SystemClock.monotonic_ns()))

    def _call_back(self, *, everybody: bool) -> bool:
        """Call who wanted to be reminded by now, or everybody; tell whether this is the end of it."""
        now_ns = SystemClock.monotonic_ns()
        while self._reminders and (everybody or self._reminders[0].at_ns <= now_ns):
            heapq.heappop(self._reminders).callback(everybody)
        return everybody

    def _try(self, batch: list[Request]) -> None:
        try:
            self._connect()
            unknown = self._exchange([("EVALSHA", *_run(request)) for request in batch], batch)
            if unknown:
                self._connect()
                self._load({request.script for request in unknown})
                for request in self._exchange([("EVALSHA", *_run(request)) for request in unknown], unknown):
                    request.fail(StoreError("the server forgets scripts faster than they are run", ailing=False))
        except Exception as error:  # noqa: BLE001 - whatever it is, those who asked must hear of it
            self._disconnect()
            failure = StoreError.of(error)
            for request in batch:
                if not request.answered:
                    request.fail(failure)

    def _connect(self) -> None:
        if self._connected and self._ended():
            self._disconnect()
        if not self._connected:
            self._connection.connect()
            self._connected = True

    def _ended(self) -> bool:
        """Tell whether the server has closed the connection, or said something that nobody asked for."""
        try:
            return self._connection.can_read(0)
        except redis.ConnectionError:
            return True

    def _disconnect(self) -> None:
        self._connected = False
        self._connection.disconnect()

    def _exchange(self, commands: list[tuple[str | int, ...]], batch: list[Request]) -> list[Request]:
        """Send the commands and hand out the answers; return the requests whose script the server does not know."""
        connection = self._connection
        connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        unknown: list[Request] = []
        ailing = False
        for request in batch:
            try:
                reply = connection.read_response()
            except redis.exceptions.NoScriptError:
                unknown.append(request)
            except redis.ResponseError as error:
                failure = StoreError.of(error)
                ailing |= failure.ailing
                request.fail(failure)
            else:
                request.answer(reply)
        if ailing:
            # A replica that was the primary, say: the name may stand for another server by now.
            self._disconnect()
        return unknown

    def _load(self, scripts: set[Script]) -> None:
        connection = self._connection
        loads = [("SCRIPT", "LOAD", script.source) for script in scripts]
        connection.send_packed_command(connection.pack_commands(loads), check_health=False)
        for _ in loads:
            connection.read_response()


def _run(request: Request) -> tuple[str | int, ...]:
    return (request.script.sha, len(request.keys), *request.keys, *request.args)


_LINKS: weakref.WeakSet[Link] = weakref.WeakSet()


def _after_fork() -> None:
    """Begin anew in a child process: it has neither the thread, nor a right to the connection."""
    for link in _LINKS:
        link._begin()  # noqa: SLF001 - one class in two parts


os.register_at_fork(after_in_child=_after_fork)
