"""`listen`: a receiver for trying things out, that shows what it gets.

Rules of this module: a request is verified as a receiver should do it, and what does not verify is answered 401. What
is shown of a request was written by a stranger, and is made printable first.
"""

from __future__ import annotations

import collections
import json
import random
import signal
from typing import TYPE_CHECKING

import anyio
import attrs

from webhook_adapter import VerificationError, verify
from webhook_adapter.cli.output import printable, say, tell_json
from webhook_adapter.testing import ReceivedRequest, Receiver, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Listening", "Misbehaviour", "listen"]

_UNVERIFIED = Reply(401)
_POST = "POST"


@attrs.frozen(kw_only=True)
class Misbehaviour:
    """How the receiver misbehaves: the share of requests that fail, with which status, and seconds before each answer.

    Raises:
        ValueError: a number that has no meaning.
    """

    fail_rate: float = attrs.field()
    status: int
    latency: float
    good: Reply = attrs.field(init=False)
    bad: Reply = attrs.field(init=False)

    @fail_rate.validator
    def _check(self, _attribute: attrs.Attribute[float], value: float) -> None:
        if isinstance(value, bool) or not 0 <= value <= 1:
            raise ValueError(f"fail_rate must be a number from 0 to 1, not {value!r}")

    @good.default
    def _good(self) -> Reply:
        return Reply(latency=self.latency)

    @bad.default
    def _bad(self) -> Reply:
        return Reply(self.status, latency=self.latency)


class Listening:
    """The script of the receiver, and its tally.

    Args:
        secret: what requests must be signed with.
        misbehaviour: how it fails.
        show: called with what is known of each request.
    """

    def __init__(self, secret: str, misbehaviour: Misbehaviour, *, show: Callable[[dict[str, object]], None]) -> None:
        self._secret = secret
        self._misbehaviour = misbehaviour
        self._show = show
        self._die = random.Random()  # noqa: S311 - which requests fail is no secret
        self._seen: collections.Counter[str] = collections.Counter()
        self.answers: collections.Counter[int] = collections.Counter()
        self.unverified = 0

    def __call__(self, request: ReceivedRequest) -> Reply:
        """Verify a request, show it, and return the answer to it."""
        why = self._refusal(request)
        message_id = request.message_id
        attempt = None
        if message_id is not None:
            self._seen[message_id] += 1
            attempt = self._seen[message_id]
        reply = self._reply() if why is None else _UNVERIFIED
        self.unverified += why is not None
        self.answers[reply.status] += 1
        self._show(
            {
                "id": message_id,
                "type": _event_type(request.body),
                "attempt": attempt,
                "verified": why is None,
                "reason": why,
                "bytes": len(request.body),
                "status": reply.status,
                "path": request.path,
            }
        )
        return reply

    def tally(self) -> dict[str, object]:
        """Return what came in all."""
        return {
            "requests": self.answers.total(),
            "messages": len(self._seen),
            "unverified": self.unverified,
            "answers": {str(status): count for status, count in sorted(self.answers.items())},
        }

    def _refusal(self, request: ReceivedRequest) -> str | None:
        if request.method != _POST:
            return "it is no POST"
        try:
            verify(request.headers, request.body, [self._secret])
        except VerificationError as error:
            return str(error)
        return None

    def _reply(self) -> Reply:
        fails = self._die.random() < self._misbehaviour.fail_rate
        return self._misbehaviour.bad if fails else self._misbehaviour.good


def _event_type(body: bytes) -> str | None:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return None
    found = parsed.get("type") if isinstance(parsed, dict) else None
    return found if isinstance(found, str) else None


async def listen(*, port: int, secret: str, given: bool, misbehaviour: Misbehaviour, as_json: bool) -> None:
    """Receive until SIGINT or SIGTERM, showing each request, and the tally at the end. A checkpoint.

    Args:
        port: on 127.0.0.1; 0 takes a free one.
        secret: what requests must be signed with.
        given: False shows the secret, since nobody else knows it.
        misbehaviour: how it fails.
        as_json: show lines of JSON.

    Raises:
        OSError: the port is taken.
    """
    listening = Listening(secret, misbehaviour, show=tell_json if as_json else _show)
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        # Counts are kept here; the receiver keeps no request.
        async with Receiver(listening, keep=0, port=port) as receiver:
            _introduce(receiver.url, secret, given=given, as_json=as_json)
            async for _ in signals:
                break
    tally = listening.tally()
    if as_json:
        tell_json({"tally": tally})
    else:
        say(f"{tally['requests']} requests for {tally['messages']} messages, {tally['unverified']} not verified.")


def _introduce(url: str, secret: str, *, given: bool, as_json: bool) -> None:
    if as_json:
        tell_json({"url": url, "secret": None if given else secret})
        return
    say(f"Listening on {url} (Ctrl-C ends it).")
    if not given:
        say(f"Its secret, new for this run: {secret}")
    shown = "whsec_…" if given else secret
    say("Send it something from another terminal:")
    say('  echo \'{"type": "order.paid", "data": {"order": 7}}\' | \\')
    say(f"    webhook-adapter send - --data-dir ./webhooks --endpoint {url} \\")
    say(f"    --secret {shown} --allow-loopback --wait")


def _show(event: dict[str, object]) -> None:
    verdict = "verified" if event["verified"] else f"NOT verified: {event['reason']}"
    attempt = "" if event["attempt"] is None else f", attempt {event['attempt']}"
    name = printable(str(event["id"] or "(no id)"))
    kind = printable(str(event["type"] or "(no type)"))
    say(f"{name}  {kind}  {event['bytes']} bytes{attempt}, {verdict} -> {event['status']}")
