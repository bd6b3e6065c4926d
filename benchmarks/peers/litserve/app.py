"""LitServe, as its documentation serves files: decode, batch, predict and encode are methods of one LitAPI,
the photo comes as a multipart part."""

import os

import common
import litserve as ls
import numpy as np


class PaCa(ls.LitAPI):
    def setup(self, device):
        self.engine = common.load()

    def decode_request(self, request):
        return common.read(request["file"].file.read(), self.engine)

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, x):
        return self.engine.run(x if x.ndim == 4 else x[None]).logits

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return common.answer(output.reshape(-1), self.engine)


if __name__ == "__main__":
    size, wait = common.batch()
    api = PaCa(max_batch_size=size, batch_timeout=wait / 1000, api_path="/classify")
    server = ls.LitServer(
        api, accelerator="cpu", workers_per_device=1, fast_queue=os.environ.get("BENCH_FAST_QUEUE") == "1"
    )
    server.run(host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), generate_client_file=False)
