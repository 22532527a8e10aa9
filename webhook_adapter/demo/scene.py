"""Who takes part in the demonstration, and on which terms.

Rules of this module: data only. Everything is as in earnest but for the durations, which are short, so that retries,
probes and the end of a dead process's leases can be watched.
"""

from __future__ import annotations

import attrs

from webhook_adapter import Settings

__all__ = ["PARTS", "RATE", "Part", "delivery_settings"]

RATE = 1_500.0
"""How many events a second the handler lets through in the long run; what is more is accepted and delivered later."""


@attrs.frozen
class Part:
    """One receiver: its name, how it behaves (as the receiver's program reads it), and what it subscribes to."""

    name: str
    mode: str
    event_types: tuple[str, ...]

    @property
    def path(self) -> str:
        """Its path at the receivers' address."""
        return f"/{self.name}"


PARTS = (
    Part("healthy", "healthy", ("*",)),
    Part("slow", "slow,latency=0.05", ("repository.*", "order.shipped")),
    Part("flaky", "flaky,fail_rate=0.2,seed=7", ("repository.*", "order.paid")),
    Part("dead", "dead,status=503", ("repository.*",)),
)


def delivery_settings() -> Settings:
    """Return the settings of both processes that use the data directory. Nothing is read from the environment."""
    return Settings(
        allow_http=True,
        egress_allow=("127.0.0.0/8",),
        attempt_timeout=1.5,
        # What the killed process held is taken up again when its leases end.
        lease_for=3.0,
        retry_schedule=(0.0, 0.25, 0.5, 1.0),
        breaker_failure_threshold=5,
        breaker_recovery_timeout=0.05,
        max_concurrent=100,
        endpoint_max_concurrent=32,
        drain_timeout=2.0,
    )
