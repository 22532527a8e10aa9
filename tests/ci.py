"""Whether the tests run in continuous integration, where a missing server is a failure and not a skip."""

from __future__ import annotations

import os

__all__ = ["in_ci"]


def in_ci() -> bool:
    """Tell whether the variable `CI` is set to anything but an empty string, "0" or "false"."""
    return os.environ.get("CI", "").lower() not in {"", "0", "false"}
