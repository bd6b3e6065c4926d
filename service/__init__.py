"""The server: a photo in, predictions and explanations out. Runs without torch.

The path of one `POST /explain` through these files:
 1. `api/` reads the body under its limits and turns parameters into `options`;
 2. `dataplane` picks the model from the `registry`, admits the request and holds its deadline;
 3. `plan` checks the options against the model, once for all pictures of the request;
 4. `predictor` takes each picture through the rest:
 5. `images` decodes the bytes into upright RGB, under limits, and resizes them for the network;
 6. `batcher` joins concurrent pictures, bounded, with deadlines;
 7. `engine` runs the one ONNX file on ONNX Runtime, on one of `providers`;
 8. `methods` turn tokens and gradients into heatmaps (`explain`: the mathematics, numpy only);
 9. `assemble` puts numbers and pictures together, `render` draws them on the original;
10. `results` carry the result back, `api/` shapes it into JSON, an image or a report;
11. any `errors.PacaError` on the way becomes a problem+json response in `api/problems.py`.
`settings` and `wiring` build all of this; nothing below them reads the environment.
"""

import os

__version__ = "0.1.0"
os.environ.setdefault(
    "ORT_DISABLE_TELEMETRY", "1"
)  # before ONNX Runtime is imported, which else tells its maker what runs here
