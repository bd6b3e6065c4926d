"""The unchanged app as a Ray Serve deployment, for users who already run a Ray cluster: `serve run
service.ray_serve:app`. The only file that imports ray.

Our own batcher stays in charge inside each replica; Ray only places, restarts and scales replicas. Settings
are the same PACA_* variables.
"""

from __future__ import annotations

import asyncio

from ray import serve

from .api.app import create_app
from .api.state import state
from .errors import DeviceLost


@serve.deployment(name="PaCa", max_ongoing_requests=32, graceful_shutdown_timeout_s=30)
@serve.ingress(create_app)
class PaCa:
    """One replica: its own model, decoder threads and batcher, made where it runs."""

    async def check_health(self) -> None:
        """Ray sends a new replica nothing before this has returned once, so it waits for the models; raises
        what keeps them from loading. Ray replaces a replica for which it raises: one that lost its device."""
        shared = state(self.app)  # type: ignore[attr-defined]  # the decorator adds the app
        if shared.registry.lost:
            raise DeviceLost(shared.registry.lost)
        while not (shared.registry.ready[0] or shared.registry.draining):
            if shared.failure:
                raise shared.failure
            await asyncio.sleep(0.05)


app = PaCa.bind()  # type: ignore[attr-defined]  # the decorator makes it a deployment
