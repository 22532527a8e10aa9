"""For tests, of users as well as ours: a receiver that behaves or misbehaves on demand.

Rules of this package: nothing in production imports it, and it imports no test framework.
`python -m webhook_adapter.testing.receiver` runs the receiver in a process of its own.
"""

from __future__ import annotations

from webhook_adapter.testing.records import MessageCount, ReceivedRequest, Records
from webhook_adapter.testing.replies import Fault, Mode, Reply
from webhook_adapter.testing.serving import Receiver

__all__ = ["Fault", "MessageCount", "Mode", "ReceivedRequest", "Receiver", "Records", "Reply"]
