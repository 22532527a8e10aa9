"""What every test has: both event loops by name, Hypothesis profiles, an environment that carries no settings in.

An asynchronous test is marked `pytest.mark.anyio` and runs twice, as `[asyncio]` and as `[trio]`.
Which profile Hypothesis uses: `HYPOTHESIS_PROFILE` if set, else `ci` where `CI` is set, else `dev`.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.ci import in_ci

pytest_plugins = ["pytester", "resilience.testing.plugin", "tests.servers"]

# A deadline per example would be a timing assertion; pytest's own timeout ends a test that hangs.
settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True, print_blob=True)
settings.register_profile(
    "nightly",
    deadline=None,
    max_examples=2_000,
    print_blob=True,
    phases=tuple(Phase),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if in_ci() else "dev"))

# Settings are read from the environment and proxies by HTTP clients: neither may reach a test from outside.
_CARRIED_IN = ("WEBHOOK_ADAPTER_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def pytest_configure() -> None:
    """Take out of the environment what would change the answers of tests."""
    for name in list(os.environ):
        if name.upper().startswith(_CARRIED_IN):
            del os.environ[name]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("trio", {}), id="trio"),
    ],
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    """Run every asynchronous test on asyncio and on trio; a test for one of them overrides this fixture."""
    backend: tuple[str, dict[str, object]] = request.param
    return backend
