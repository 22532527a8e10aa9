"""Every setting as an argument of the command line, and how the settings are put together.

Rules of this module: an argument beats the environment, which beats the file. What an argument means is decided by
`Settings`, not here: text is handed on as it is.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import attrs
from cyclopts import Group, Parameter

from webhook_adapter import Settings

__all__ = ["SettingFlags", "load_settings"]

_LOOPBACK = ("127.0.0.0/8", "::1/128")
_GROUP = Group("Settings", help="Durations in seconds, lists separated by commas. See the documentation for defaults.")

_Text = Annotated[str | None, Parameter(group=_GROUP, show_default=False)]
_Truth = Annotated[bool | None, Parameter(group=_GROUP, show_default=False)]


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class SettingFlags:
    """The settings that were given as arguments; None is not given."""

    attempt_timeout: _Text = None
    """The one total deadline of an attempt."""
    retry_schedule: _Text = None
    """The delay before each attempt, so that its length is their number."""
    retry_jitter: _Text = None
    """The share of a delay that it is made shorter or longer by."""
    retry_after_max: _Text = None
    """The longest that a receiver's Retry-After is honoured."""
    egress_allow: _Text = None
    """Networks that may be connected to although they are private."""
    egress_deny: _Text = None
    """Networks that may not be connected to."""
    allow_http: _Truth = None
    """Allow plain http, to networks in --egress-allow."""
    max_concurrent: _Text = None
    """Attempts in flight at a time."""
    endpoint_max_concurrent: _Text = None
    """Attempts in flight at a time, to one endpoint."""
    breaker_failure_threshold: _Text = None
    """After how many failures in a row an endpoint is left alone."""
    breaker_recovery_timeout: _Text = None
    """For how long, before it is tried again."""
    lease_for: _Text = None
    """How long a delivery is one process's."""
    drain_timeout: _Text = None
    """How long attempts in flight may go on when the service stops."""
    max_payload_bytes: _Text = None
    """The largest body that is accepted."""
    max_response_bytes: _Text = None
    """How much of a response is read and kept."""
    secret_overlap_for: _Text = None
    """How long the old secret still signs after a rotation."""
    expire_after: _Text = None
    """When a delivery that has not succeeded is given up."""
    retention_for: _Text = None
    """How long messages are kept."""
    secret_key: _Text = None
    """Encrypts signing secrets at rest; better given in the environment, since other users see arguments."""


def load_settings(flags: SettingFlags | None, *, config: Path | None, allow_loopback: bool) -> Settings:
    """Return the settings from arguments, the environment and a TOML file.

    Raises:
        ValueError: a name that is not known, or a value that has no meaning.
    """
    arguments: dict[str, object] = {} if flags is None else attrs.asdict(flags)
    settings = Settings.load(arguments, os.environ, config)
    if not allow_loopback:
        return settings
    return attrs.evolve(settings, allow_http=True, egress_allow=(*settings.egress_allow, *_LOOPBACK))
