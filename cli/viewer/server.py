"""A server on one port: its socket, its time limits for connections, and its end."""

import asyncio
import ipaddress
import logging
import socket
import sys
import time
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from histocodec.cli.viewer.limits import CONNECTIONS, HEADER_BYTES, HEADER_SECONDS
from histocodec.errors import HistocodecError, UsageError

GRACE_SECONDS = 3  # for answers that are under way when the server is to end
BACKLOG = 256


class Server(uvicorn.Server):
    """uvicorn, which also closes connections that send no request, or only a part of one, for HEADER_SECONDS."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._started = started
        # Connections with nothing to answer: after which answer, and since when.
        self._idle: dict[object, tuple[object, float]] = {}

    async def startup(self, sockets: "list[socket.socket] | None" = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started:
            self._started()

    async def on_tick(self, counter: int) -> bool:
        """What uvicorn does ten times a second."""
        if counter % 10 == 0:
            now = time.monotonic()
            idle: dict[object, tuple[object, float]] = {}
            for connection in list(self.server_state.connections):
                cycle = getattr(connection, "cycle", None)
                if cycle is None or cycle.response_complete:
                    before, since = self._idle.get(connection, (cycle, now))
                    idle[connection] = (cycle, since if before is cycle else now)
                    transport = getattr(connection, "transport", None)
                    if now - idle[connection][1] > HEADER_SECONDS and transport is not None:
                        transport.close()
            self._idle = idle
        return await super().on_tick(counter)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server on this address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens on an address; port 0 is any that is free. Raises UsageError where there is no such
    address, and HistocodecError where the port is taken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as exc:
        raise UsageError(f"--host {host}: is no address of this machine") from exc
    sock = socket.socket(family, socket.SOCK_STREAM)
    if sys.platform != "win32":  # there it would let two servers share the port
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        reason = exc.strerror or str(exc)
        raise HistocodecError(f"{host}:{port}: cannot be listened on: {reason}; --port 0 takes any free port") from exc
    sock.setblocking(False)
    return sock


def address_of(host: str, sock: socket.socket) -> str:
    """The address that a browser opens."""
    port = sock.getsockname()[1]
    shown = host
    try:
        parsed = ipaddress.ip_address(host)
        if parsed.is_unspecified:
            shown = "127.0.0.1" if parsed.version == 4 else "::1"
    except ValueError:
        pass
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"


def serve(
    app: ASGIApp,
    sock: socket.socket,
    started: Callable[[], None],
    *,
    stoppable: Callable[[Callable[[], None]], None] | None = None,
) -> None:
    """Serve until Ctrl-C or SIGTERM; `started` is called when requests are answered. `stoppable` is given what ends the
    server from another thread."""
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=int(HEADER_SECONDS),
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
    server = Server(config, started)
    if stoppable is not None:
        stoppable(lambda: setattr(server, "should_exit", True))
    try:
        asyncio.run(server.serve(sockets=[sock]))
    except KeyboardInterrupt:  # how uvicorn hands on the Ctrl-C that ended it
        pass
    finally:
        sock.close()
