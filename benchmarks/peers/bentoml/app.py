"""BentoML, as its documentation serves a model: one service, adaptive batching over decoded-inside pictures,
or one picture a call in threads."""

import os
from pathlib import Path

import bentoml
import common
import numpy as np

SIZE, WAIT = common.batch()


@bentoml.service(
    name="paca", workers=1, threads=int(os.environ.get("BENCH_CALLS", "1")), traffic={"timeout": 60}
)
class PaCa:
    def __init__(self) -> None:
        self.engine = common.load()

    if SIZE > 1:

        @bentoml.api(batchable=True, max_batch_size=SIZE, max_latency_ms=int(WAIT), route="/classify")
        def classify(self, images: list[Path]) -> list[dict]:
            batch = np.stack([common.read(image.read_bytes(), self.engine) for image in images])
            return [common.answer(row, self.engine) for row in self.engine.run(batch).logits]

    else:

        @bentoml.api(route="/classify")
        def classify(self, images: Path) -> dict:
            return common.answer(
                self.engine.run(common.read(images.read_bytes(), self.engine)[None]).logits[0], self.engine
            )
