"""What `paca serve` does: binds the address, then hands it to one server or to a supervisor of several.

Stands above `server` and `supervisor`, so that neither needs to know the other's caller.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from contextlib import suppress

from ..errors import CannotStart
from ..settings import Settings, misspelt
from . import logs
from .server import run
from .supervisor import supervise

log = logging.getLogger("paca.launch")


def serve(settings: Settings) -> None:
    """Listens, serves, and returns after a clean shutdown; CannotStart where it cannot."""
    logs.configure(settings.log_format, settings.log_level)
    for line in misspelt(os.environ):
        log.warning(line)
    with listen(settings.host, settings.port) as sock:
        port = sock.getsockname()[1]

        def announce() -> None:
            address = f"http://{reachable(settings.host)}:{port}{settings.root_path}"
            with suppress(OSError):  # standard output is closed or full: no reason not to serve
                print(
                    f"PaCa is ready: {address}/\nTry: curl -F file=@photo.jpg {address}/classify", flush=True
                )

        (run if settings.workers == 1 else supervise)(settings, sock, announce)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; CannotStart where the address is taken, not this machine's, or none at all."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, ValueError) as error:  # ValueError: not even the form of a host name
        raise _cannot_listen(host, port, error) from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _cannot_listen(host, port, error) from None
    sock.setblocking(False)
    return sock


def _cannot_listen(host: str, port: int, error: OSError | ValueError) -> CannotStart:
    reason = getattr(error, "strerror", None) or "this is not a host name or an address"
    return CannotStart(
        f"cannot listen on {host[:80]!r} port {port}: {reason}; choose another with PACA_HOST and PACA_PORT, "
        "or --host and --port"
    )


def reachable(host: str) -> str:
    """The host of a URL by which this machine reaches a server that listens on `host`."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        host = host if not address.is_unspecified else "127.0.0.1" if address.version == 4 else "::1"
    return f"[{host}]" if ":" in host else host
