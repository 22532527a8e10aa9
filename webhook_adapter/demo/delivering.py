"""The delivery process: a WebhookService on the data directory, and nothing else.

    python -m webhook_adapter.demo.delivering DATA_DIR

It says when it is ready, and then each change of a circuit. It is the one that is killed, so what it knows in memory
is worth nothing; it says things at once or never.
"""

from __future__ import annotations

import json
import signal
import sys
from functools import partial

import anyio

from resilience.telemetry import Event, StateChanged, subscribe
from webhook_adapter import StoreError, WebhookService
from webhook_adapter.demo.children import end_with_parent
from webhook_adapter.demo.scene import delivery_settings

__all__ = ["main"]


async def _deliver(data_dir: str) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        end_with_parent()
        async with WebhookService(data_dir, settings=delivery_settings()):
            unsubscribe = subscribe(_tell)
            try:
                _say({"ready": True})
                async for _ in signals:
                    break
            finally:
                unsubscribe()


def _tell(event: Event) -> None:
    if isinstance(event, StateChanged):
        _say({"endpoint": event.guard, "old": event.old, "new": event.new})


def _say(told: dict[str, object]) -> None:
    try:
        print(json.dumps(told), flush=True)
    except BrokenPipeError:
        # Nobody listens any more: the end of the standard input says so too, and ends this process.
        sys.stdout = None  # printing is then silent


def main() -> int:
    """Run the program; return its exit code."""
    try:
        anyio.run(partial(_deliver, sys.argv[1]))
    except StoreError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
