"""The demonstration: real events become signed webhooks, past failing receivers, a storm and a kill -9.

Three processes take part, as in earnest: the application (this one), which accepts events into a data directory; the
delivery process, which delivers what is in that directory, and is killed half way; and the receivers. They share
nothing but the directory and sockets.

Rules of this room: only public names of the packages are used. What is claimed at the end is computed from the
receivers' own records against the store (`accounts`), never from what the sender says of itself. Whatever happens, no
process of it is left behind.
"""

from __future__ import annotations

from webhook_adapter.demo.accounts import Account, EndpointAccount
from webhook_adapter.demo.story import DemoError, run_demo

__all__ = ["Account", "DemoError", "EndpointAccount", "run_demo"]
