"""The Lua scripts, read from their files when the package is imported."""

from __future__ import annotations

from importlib.resources import files

from resilience.redis.link import Script

__all__ = ["script"]

_FOLDER = files("resilience.redis") / "lua"
_LINE = (_FOLDER / "line.lua").read_text(encoding="utf-8")


def script(name: str) -> Script:
    """Return a script by the name of its file, with the server's line of time before it."""
    return Script(_LINE + (_FOLDER / f"{name}.lua").read_text(encoding="utf-8"))
