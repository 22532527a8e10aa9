"""The command line: `webhook-adapter demo`, `send`, `listen`.

Rules of this room: commands translate between arguments and the public API, and say what came of it; they hold no rule
of their own. Results go to standard output, as JSON where asked; what went wrong goes to standard error in one
sentence, and ends with exit code 1, or 2 if the arguments were wrong. No traceback is ever shown, but in Python's
development mode (`python -X dev`).
"""

from __future__ import annotations

from webhook_adapter.cli.commands import main

__all__ = ["main"]
