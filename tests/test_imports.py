"""Which module may import which, and what a bare `import resilience` brings in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.import_direction import RULES, Rules, violations

ROOT = Path(__file__).parent.parent
RESILIENCE, ADAPTER = RULES


def write(root: Path, files: dict[str, str]) -> None:
    """Lay out a small tree; every folder on the way becomes a package."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: rules.package)
def test_every_import_runs_in_the_listed_direction(rules: Rules) -> None:
    """No module of the project imports what the order of rooms refuses."""
    assert violations(ROOT, rules) == []


@pytest.mark.parametrize(
    ("rules", "file", "text", "why"),
    [
        pytest.param(
            RESILIENCE,
            "resilience/errors.py",
            "from resilience.policy import Policy",
            "errors imports policy, which is listed below it",
            id="upwards",
        ),
        pytest.param(
            RESILIENCE,
            "resilience/errors.py",
            "from .policy import Policy",
            "errors imports policy, which is listed below it",
            id="relative",
        ),
        pytest.param(
            RESILIENCE,
            "resilience/errors.py",
            "from resilience import policy",
            "errors imports policy, which is listed below it",
            id="the-room-itself",
        ),
        pytest.param(
            RESILIENCE,
            "resilience/errors.py",
            "def late():\n    import resilience.policy",
            "errors imports policy, which is listed below it",
            id="inside-a-function",
        ),
        pytest.param(
            RESILIENCE,
            "resilience/errors.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from resilience.layer import Layer",
            "errors imports layer, which is listed below it",
            id="type-checking",
        ),
        pytest.param(
            RESILIENCE,
            "resilience/errors.py",
            "import importlib\nimportlib.import_module('resilience.policy')",
            "errors imports policy, which is listed below it",
            id="by-name",
        ),
        pytest.param(
            RESILIENCE,
            "resilience/clock.py",
            "from resilience import Policy",
            "clock imports __init__, which is listed below it",
            id="the-package-itself",
        ),
        pytest.param(
            RESILIENCE,
            "resilience/retry.py",
            "from resilience.timeout import Timeout",
            "retry and timeout are siblings and never import one another",
            id="siblings",
        ),
        pytest.param(
            RESILIENCE,
            "resilience/machines/breaker.py",
            "import time",
            "and nothing else, not time",
            id="machine-reads-a-clock",
        ),
        pytest.param(
            RESILIENCE,
            "resilience/machines/breaker.py",
            "from resilience.errors import RejectedError",
            "machines imports nothing else of resilience, not errors",
            id="machine-knows-another-room",
        ),
        pytest.param(
            RESILIENCE,
            "resilience/machines/backoff.py",
            "import anyio.lowlevel",
            "and nothing else, not anyio",
            id="machine-waits",
        ),
        pytest.param(
            RESILIENCE,
            "resilience/layer.py",
            "def call():\n    import asyncio",
            "asyncio may be imported only in parking.py, testing/, timers.py",
            id="asyncio",
        ),
        pytest.param(
            RESILIENCE,
            "resilience/telemetry/otel.py",
            "import trio.lowlevel",
            "trio may be imported only in parking.py, testing/, timers.py",
            id="trio",
        ),
        pytest.param(
            RESILIENCE,
            "resilience/retry.py",
            "import httpx",
            "retry may import anyio, attrs and the standard library, not httpx",
            id="third-party",
        ),
        pytest.param(
            RESILIENCE,
            "resilience/helpers.py",
            "",
            "helpers is in no line of the import order",
            id="unknown-room",
        ),
        pytest.param(
            ADAPTER,
            "webhook_adapter/store/base.py",
            "from webhook_adapter.sender import Sender",
            "store and sender do not know each other",
            id="store-knows-sender",
        ),
        pytest.param(
            ADAPTER,
            "webhook_adapter/sender.py",
            "from webhook_adapter.store import Store",
            "sender imports store, which is listed below it",
            id="sender-knows-store",
        ),
        pytest.param(
            ADAPTER,
            "webhook_adapter/testing/receiver.py",
            "from webhook_adapter.server import app",
            "testing and server do not know each other",
            id="testing-knows-server",
        ),
        pytest.param(
            ADAPTER,
            "webhook_adapter/guards.py",
            "from resilience.clock import hidden",
            "hidden is not a public name of resilience.clock",
            id="not-in-all",
        ),
        pytest.param(
            ADAPTER,
            "webhook_adapter/guards.py",
            "from resilience.clock import _private",
            "_private is private to resilience",
            id="leading-underscore",
        ),
        pytest.param(
            ADAPTER,
            "webhook_adapter/guards.py",
            "import resilience\nresilience.clock.hidden()",
            "hidden is not a public name of resilience.clock",
            id="attribute-not-in-all",
        ),
        pytest.param(
            ADAPTER,
            "webhook_adapter/guards.py",
            "from resilience import clock as time_source\ntime_source._private()",
            "_private is private to resilience",
            id="attribute-with-underscore",
        ),
    ],
)
def test_a_refused_import_is_found(tmp_path: Path, rules: Rules, file: str, text: str, why: str) -> None:
    """Each rule catches the one import that breaks it, with the file, the line and the reason."""
    write(
        tmp_path,
        {
            "resilience/__init__.py": "__all__ = ['Clock']\nfrom resilience.clock import Clock\n",
            "resilience/clock.py": "__all__ = ['Clock']\n_private = hidden = Clock = print\n",
        },
    )
    write(tmp_path, {file: text})

    found = violations(tmp_path, rules)

    assert len(found) == 1, found
    assert found[0].startswith(f"{file}:{max(1, len(text.splitlines()))}: ")
    assert why in found[0]


def test_what_the_order_allows_is_not_reported(tmp_path: Path) -> None:
    """Imports from rooms above, within a room, of public names and by `__init__` pass."""
    write(
        tmp_path,
        {
            "resilience/__init__.py": "from resilience.policy import Policy\n__all__ = ['Policy', 'clock']\n",
            "resilience/clock.py": "import time\nimport anyio\n__all__ = ['Clock']\n",
            "resilience/machines/__init__.py": "",
            "resilience/machines/permits.py": "from enum import Enum\nimport attrs\nfrom .decision import NotUntil\n",
            "resilience/machines/decision.py": "import math",
            "resilience/parking.py": "def wake():\n    import asyncio, trio\n",
            "resilience/policy.py": "from resilience.retry import Retry\nfrom resilience.timeout import Timeout\n",
            "resilience/retry.py": "from resilience.machines.permits import Permit\n",
            "resilience/timeout.py": "from .clock import Clock\n",
            "resilience/testing/__init__.py": "import asyncio, trio, pytest\nfrom resilience import Policy\n",
            "webhook_adapter/guards.py": "import resilience\nfrom resilience import Policy, clock\nclock.Clock\n"
            "resilience.Policy.call\n",
            "webhook_adapter/demo.py": "from webhook_adapter import WebhookService\nimport asyncio, httpx\n",
        },
    )

    assert [violations(tmp_path, rules) for rules in RULES] == [[], []]


# What anyio and attrs bring along, on one Python or another.
ALLOWED = {"anyio", "attr", "attrs", "exceptiongroup", "idna", "resilience", "sniffio", "typing_extensions"}


def test_importing_resilience_brings_in_nothing_but_anyio_and_attrs() -> None:
    """A fresh interpreter that imports the package has loaded no other third-party library, trio included."""
    program = (
        "import sys\nbefore = set(sys.modules)\nimport resilience\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )

    # -S -I would hide the installed libraries; what .pth files load is loaded before `before` is taken.
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)

    loaded = {name for name in result.stdout.split() if not name.startswith("_")}
    assert loaded - ALLOWED == set()
    assert "resilience" in loaded
