"""gRPC: the Open Inference Protocol over HTTP/2, with the standard services for health and reflection.

`servicer` turns messages into calls of the data plane. `calls` stands around every call as `api.middleware`
does around HTTP. `server` opens and closes the port. All is off unless `PACA_GRPC_PORT` is set; only then are
the libraries of the extra `grpc` imported, and only in this package.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ...errors import CannotStart
from ..state import State

if TYPE_CHECKING:
    from .server import RpcServer

SERVICE = "inference.GRPCInferenceService"
JOBS = (f"/{SERVICE}/ModelInfer",)  # the methods that do work
LOOKUPS = tuple(
    f"/{SERVICE}/{name}"
    for name in ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata")
)


def open_rpc(shared: State) -> RpcServer | None:
    """The gRPC server that the settings ask for, not yet listening; CannotStart where its libraries are
    missing."""
    if not shared.settings.grpc_port:
        return None
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else the library logs callers' faults in its own form
    try:
        from .server import RpcServer
    except ModuleNotFoundError as error:
        raise CannotStart(
            f"PACA_GRPC_PORT needs the extra 'grpc' ({error.name} is missing): in the clone, run "
            "`make setup` or `pip install '.[grpc]'`; or leave PACA_GRPC_PORT unset"
        ) from None
    return RpcServer(shared)
