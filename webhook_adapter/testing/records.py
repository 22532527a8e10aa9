"""What a receiver has seen: requests as they came, and a count for each message that stays small.

Rules of this module: every request is counted, whether it is kept or not; an answer is counted when it has been sent.
Read and written in the receiver's event loop only.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

import attrs

from webhook_adapter.signing import ID_HEADER

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MessageCount", "ReceivedRequest", "Records"]


@attrs.frozen
class ReceivedRequest:
    """One request as it came over the wire.

    Attributes:
        headers: names in lower case, and values, in the order they came.
        received_at: Unix time in seconds, when its last byte had been read.
        connection: which connection it came on, counted from 1.
        verified: whether its signature is good; None where the receiver has no secret.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    received_at: float
    connection: int
    verified: bool | None = None

    def header(self, name: str) -> str | None:
        """Return the first value of a header, whatever the case of `name`."""
        lowered = name.lower()
        for each, value in self.headers:
            if each == lowered:
                return value
        return None

    @property
    def message_id(self) -> str | None:
        """The `webhook-id`, the same for all attempts at one message."""
        return self.header(ID_HEADER)


@attrs.define(eq=False)
class MessageCount:
    """How often one message came on one path.

    Attributes:
        received: requests that carried it.
        accepted: how many of them were answered with 2xx; beyond one they are duplicates.
        first_received_at: Unix time of the first request.
        first_accepted_at: Unix time at which a 2xx had first been sent; None if never.
    """

    received: int = 0
    accepted: int = 0
    first_received_at: float = 0.0
    first_accepted_at: float | None = None


@attrs.define(eq=False)
class _Path:
    requests: int = 0
    statuses: Counter[str] = attrs.field(factory=Counter)
    messages: dict[str, MessageCount] = attrs.field(factory=dict)


@attrs.define(eq=False)
class Records:
    """Everything that one receiver has seen; at most the last `keep` requests in full (None: all of them)."""

    keep: int | None = None
    total: int = 0
    unverified: int = 0
    connections: int = 0
    kept: deque[ReceivedRequest] = attrs.field(init=False)
    _paths: dict[str, _Path] = attrs.field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self.kept = deque(maxlen=self.keep)

    def received(self, request: ReceivedRequest) -> None:
        """Count `request`, and keep it as far as there is room."""
        self.total += 1
        self.unverified += request.verified is False
        self.kept.append(request)
        path = self._paths.get(request.path)
        if path is None:
            path = self._paths[request.path] = _Path()
        path.requests += 1
        message_id = request.message_id
        if message_id is not None:
            count = path.messages.get(message_id)
            if count is None:
                count = path.messages[message_id] = MessageCount(first_received_at=request.received_at)
            count.received += 1

    def answered(self, request: ReceivedRequest, outcome: int | str, at: float) -> None:
        """Count an answer that has been sent: its status code, or the name of a fault."""
        path = self._paths[request.path]
        path.statuses[str(outcome)] += 1
        message_id = request.message_id
        if message_id is not None and isinstance(outcome, int) and 200 <= outcome <= 299:  # noqa: PLR2004 - 2xx
            count = path.messages[message_id]
            count.accepted += 1
            if count.first_accepted_at is None:
                count.first_accepted_at = at

    def messages(self, path: str) -> Mapping[str, MessageCount]:
        """Return the counts of every message that came on `path`, by its id."""
        found = self._paths.get(path)
        return found.messages if found is not None else {}

    def duplicates(self) -> int:
        """Return how many accepted requests were not the first to be accepted for their message and path."""
        return sum(max(0, count.accepted - 1) for path in self._paths.values() for count in path.messages.values())

    def as_json(self, *, messages: bool = True) -> dict[str, object]:
        """Return all counts as plain data; a message is [received, accepted, first received at, first accepted at]."""
        paths: dict[str, object] = {}
        for name, path in self._paths.items():
            described: dict[str, object] = {
                "requests": path.requests,
                "statuses": dict(path.statuses),
                "messages": len(path.messages),
                "accepted": sum(1 for count in path.messages.values() if count.accepted),
                "duplicates": sum(max(0, count.accepted - 1) for count in path.messages.values()),
            }
            if messages:
                described["by_message"] = {
                    message_id: [count.received, count.accepted, count.first_received_at, count.first_accepted_at]
                    for message_id, count in path.messages.items()
                }
            paths[name] = described
        return {
            "requests": self.total,
            "unverified": self.unverified,
            "connections": self.connections,
            "duplicates": self.duplicates(),
            "paths": paths,
        }
