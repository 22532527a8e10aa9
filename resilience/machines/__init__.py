"""Pure state machines: integer nanoseconds in, decisions out.

No await, no lock, no clock, no randomness and no I/O in here, so that one machine serves async code, plain code and
threads, and every interleaving of its steps can be explored. A shell above brings the clock, the lock and the waiting.
"""

from __future__ import annotations

__all__: list[str] = []
