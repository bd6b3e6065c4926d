"""From a checkpoint to one verified ONNX file, and the training that makes a checkpoint. Needs torch; the
server does not need this."""

import service  # noqa: F401 - before ONNX Runtime, see there
