"""mosec, as its documentation serves images: a preprocessing worker and an inference worker with dynamic
batching, or both steps in one worker."""

import json
import os

import common
from mosec import Server, Worker, get_logger

SIZE, WAIT = common.batch()
logger = get_logger()


class Preprocess(Worker):
    def __init__(self):
        self.engine = common.load()

    def deserialize(self, data):
        return data

    def forward(self, data):
        return common.read(data, self.engine)


class Inference(Worker):
    def __init__(self):
        self.engine = common.load()

    def forward(self, data):
        import numpy as np

        pictures = data if SIZE > 1 else [data]
        rows = [common.answer(row, self.engine) for row in self.engine.run(np.stack(pictures)).logits]
        return rows if SIZE > 1 else rows[0]

    def serialize(self, data):
        return json.dumps(data).encode()


class Both(Worker):
    def __init__(self):
        self.engine = common.load()

    def deserialize(self, data):
        return data

    def forward(self, data):
        return common.answer(self.engine.run(common.read(data, self.engine)[None]).logits[0], self.engine)

    def serialize(self, data):
        return json.dumps(data).encode()


if __name__ == "__main__":
    server = Server()
    if os.environ.get("BENCH_STAGES") == "1":
        server.append_worker(Both, num=1, timeout=30, route="/classify")
    else:
        server.append_worker(
            Preprocess, num=int(os.environ.get("BENCH_DECODERS", "1")), timeout=30, route="/classify"
        )
        server.append_worker(
            Inference,
            num=1,
            max_batch_size=SIZE,
            max_wait_time=max(1, int(WAIT)),
            timeout=30,
            route="/classify",
        )
    server.run()
