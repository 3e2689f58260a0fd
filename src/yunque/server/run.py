"""Running the server: the socket, who may reach it, and its end."""

import errno
import logging
import socket
import sys
from collections.abc import Callable, Sequence

from yunque.errors import UserError
from yunque.server.access_log import log as access_log
from yunque.server.app import create_app
from yunque.server.connections import Patience, let_go_of_the_dead, quiet_uvicorn
from yunque.server.gate import is_loopback
from yunque.server.process import Server
from yunque.server.service import ServeOptions
from yunque.workspace import Workspace

_DEAD_SECONDS = 60.0


def keys_needed(host: str, wanted: bool | None) -> bool:
    """Whether clients need an API key: as `wanted`, else for every address but this machine's own.

    Raises UserError when they are switched off for an address that others can reach.
    """
    if wanted is None:
        return not is_loopback(host)
    if not wanted and not is_loopback(host):
        raise UserError(f"--no-keys is for this machine's own address only: others could reach {host}")
    return wanted


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket bound to `host` and `port` (0: any free one); raises UserError that says why it cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            "127.0.0.1" if host == "localhost" else host,
            port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )[0]
    except (OSError, UnicodeError, OverflowError):
        raise UserError(
            f"{host}:{port} is not an address: use --host 127.0.0.1 and a --port up to 65535"
        ) from None
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        # Bound is not enough: with SO_REUSEADDR two may be bound to a port, but one listens.
        made.listen(2048)
        let_go_of_the_dead(made, _DEAD_SECONDS)
    except OSError as error:
        made.close()
        raise UserError(_why_not(host, port, error)) from None
    return made


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use already: stop what listens there, or choose another with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine"
    if error.errno == errno.EACCES:
        return f"port {port} may be opened by the administrator only: choose one from 1024 up"
    return f"{host}:{port} cannot be opened ({error.strerror})"


def url_of(made: socket.socket) -> str:
    """The address that clients on this machine use."""
    host, port = made.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def serve(
    workspace: Workspace,
    host: str,
    port: int,
    keys: bool | None,
    on_start: Callable[[str, bool], None],
    options: ServeOptions | None = None,
    load: Sequence[str] = (),
) -> None:
    """Serve `workspace` until a signal ends it; `on_start(url, keys_required)` is called when clients can connect.

    The models named by `load` are opened before.
    """
    keys_required = keys_needed(host, keys)
    with bound_socket(host, port) as made:
        server = make_server(workspace, keys_required, options)
        _log_to_standard_error()
        quiet_uvicorn()
        server.load(load)
        on_start(url_of(made), keys_required)
        server.run(sockets=[made])


def make_server(
    workspace: Workspace,
    keys_required: bool,
    options: ServeOptions | None = None,
    patience: Patience | None = None,
) -> Server:
    """The server, to be run on a bound socket."""
    return Server(create_app(workspace, keys_required, options), patience or Patience())


def _log_to_standard_error() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    access_log.addHandler(handler)
    access_log.setLevel(logging.INFO)
    access_log.propagate = False
