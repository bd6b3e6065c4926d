"""Ask the server with NVIDIA's Triton client, over the Open Inference Protocol. pip install
'tritonclient[http]'

Usage: PACA_URL=http://127.0.0.1:8000 python oip_client.py MODEL photo.jpg
"""

import os
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton

model, photo = sys.argv[1], Path(sys.argv[2]).read_bytes()
address = os.environ.get("PACA_URL", "http://127.0.0.1:8000").removeprefix("http://")

with triton.InferenceServerClient(address) as client:
    # <model>-image takes encoded photos; <model> takes pixels, resized as the model wants them
    image = triton.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([photo], dtype=object))
    best = triton.InferRequestedOutput("logits", class_count=3)
    clusters = triton.InferRequestedOutput("assignment_1")
    answer = client.infer(f"{model}-image", [image], outputs=[best, clusters])

for line in answer.as_numpy("logits")[0]:
    logit, class_id, label = line.decode().split(":", 2)
    print(f"{label} (class {class_id}): {logit}")
print(
    "clusters of stage 1 over the patches (batch, clusters, rows, columns):",
    answer.as_numpy("assignment_1").shape,
)
