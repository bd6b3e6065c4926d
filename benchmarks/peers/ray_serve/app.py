"""Ray Serve, as its documentation serves a model: one replica with the request's bytes in `__call__` and,
where a batch is asked for, `@serve.batch`."""

import os

import common
import numpy as np
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

SIZE, WAIT = common.batch()


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=32)
class PaCa:
    def __init__(self) -> None:
        self.engine = common.load()

    @serve.batch(max_batch_size=SIZE, batch_wait_timeout_s=WAIT / 1000)
    async def run(self, pictures: list[np.ndarray]) -> list[np.ndarray]:
        return list(self.engine.run(np.stack(pictures)).logits)

    async def __call__(self, request: Request) -> JSONResponse:
        picture = common.read(await request.body(), self.engine)
        logits = await self.run(picture) if SIZE > 1 else self.engine.run(picture[None]).logits[0]
        return JSONResponse(common.answer(logits, self.engine))


if __name__ == "__main__":
    import signal

    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="warning")
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["BENCH_PORT"])})
    serve.run(PaCa.bind(), route_prefix="/classify")
    signal.sigwait({signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()
