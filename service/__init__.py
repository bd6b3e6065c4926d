"""The server: a photo in, predictions and explanations out. Runs without torch.

The path of one `POST /explain` through these files:
 1. `api/` reads the body under its limits and turns parameters into `options`;
 2. `registry` picks the model that answers and its `predictor`;
 3. `images` decodes the bytes into upright RGB, under limits, in a worker thread;
 4. `images` resizes them into what the `artifact`'s manifest says the model wants;
 5. `batcher` joins concurrent pictures, bounded, with deadlines;
 6. `engine` runs the one ONNX file on ONNX Runtime;
 7. `explain` turns tokens and assignments into heatmaps, masks and cluster shares (numpy only);
 8. `render` turns those into pictures in the original's coordinates;
 9. `results` carries the answer back, `api/` shapes it into JSON, an image or a report;
10. any `errors.PacaError` on the way becomes a problem+json answer in `api/problems.py`.
`settings` and `wiring` build all of this; nothing below them reads the environment.
"""

import os

__version__ = "0.1.0"
os.environ.setdefault(
    "ORT_DISABLE_TELEMETRY", "1"
)  # before ONNX Runtime is imported, which else tells its maker what runs here
