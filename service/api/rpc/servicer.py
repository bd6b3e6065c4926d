"""`inference.GRPCInferenceService`: messages into calls of the data plane, its results into messages.

Names, shapes and refusals are those of `api.oip`. `messages` reads and writes what is large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from ... import __version__
from ...dataplane import DataPlane
from ...errors import NotReady, UnknownModel
from .. import tensors
from ..context import Context
from ..oip import EXTENSIONS, PLATFORM
from ..serialise import off_loop
from . import open_inference_pb2 as pb
from .calls import Read, Work
from .messages import check_size, parsed, read_infer, write_infer


def methods(plane: DataPlane) -> dict[str, Work]:
    """The methods of the service, by name in the protocol."""

    def server_live(request: pb.ServerLiveRequest) -> Message:
        return pb.ServerLiveResponse(live=True)

    def server_ready(request: pb.ServerReadyRequest) -> Message:
        return pb.ServerReadyResponse(ready=plane.ready[0])

    def model_ready(request: pb.ModelReadyRequest) -> Message:
        try:
            plane.find(request.name, request.version or None)
        except (UnknownModel, NotReady):  # clients wait with this method for a model to come
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=plane.ready[0])

    def server_metadata(request: pb.ServerMetadataRequest) -> Message:
        return pb.ServerMetadataResponse(name="paca", version=__version__, extensions=EXTENSIONS)

    def model_metadata(request: pb.ModelMetadataRequest) -> Message:
        found = plane.metadata(request.name, request.version or None)
        spec = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=found.name,
            versions=found.versions,
            platform=PLATFORM,
            inputs=[spec(**vars(tensor)) for tensor in found.inputs],
            outputs=[spec(**vars(tensor)) for tensor in found.outputs],
        )

    async def model_infer(read: Read, context: Context) -> bytes:
        plane.check_some_room()
        data = await read()
        request, job = await off_loop(len(data), read_infer, data)
        outputs = plane.find(job.model, job.version)[0].outputs
        names = [output.name for output in job.outputs] if job.outputs else list(outputs)
        check_size(4 * tensors.count_values(job.pictures, (outputs.get(name, []) for name in names)))
        result = await plane.infer(job, context)
        size = sum(8 * len(v) if isinstance(v, list) else v.nbytes for v in result.outputs.values())
        check_size(size)
        return await off_loop(size, write_infer, request, result)

    return {
        "ServerLive": _telling(pb.ServerLiveRequest, server_live),
        "ServerReady": _telling(pb.ServerReadyRequest, server_ready),
        "ModelReady": _telling(pb.ModelReadyRequest, model_ready),
        "ServerMetadata": _telling(pb.ServerMetadataRequest, server_metadata),
        "ModelMetadata": _telling(pb.ModelMetadataRequest, model_metadata),
        "ModelInfer": model_infer,
    }


def _telling(kind: type[Message], tell: Callable[[Any], Message]) -> Work:
    """A method that only says what is."""

    async def work(read: Read, context: Context) -> bytes:
        return tell(parsed(kind, await read())).SerializeToString()

    return work
