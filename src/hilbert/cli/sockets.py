"""The listening socket, bound before anything slow happens, with one clear line when it cannot be."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from hilbert.config import BadSetting, ServerSettings

# Connections that may wait to be accepted; the kernel lowers it to its own limit.
_BACKLOG = 2048


def bind(settings: ServerSettings) -> socket.socket:
    """Bind what `settings` say: a unix socket, or an address and port.

    Raises:
        BadSetting: it is in use, not allowed, or does not exist, or the certificate cannot be used; exit
            code 1.
    """
    _check_certificate(settings)
    return _bind_path(settings.uds) if settings.uds else _bind_port(settings.host, settings.port)


def release(sock: socket.socket, settings: ServerSettings) -> None:
    """Close it (the server may have done so already), and remove the file of a unix socket."""
    sock.close()
    if settings.uds:
        _remove(settings.uds)


def url_of(sock: socket.socket, settings: ServerSettings) -> str:
    """Where a client on this machine finds the server."""
    scheme = "https" if settings.ssl_certfile else "http"
    if settings.uds:
        return f"{scheme}://localhost"
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _check_certificate(settings: ServerSettings) -> None:
    certificate, key = settings.ssl_certfile, settings.ssl_keyfile
    if key and not certificate:
        raise BadSetting(f"--ssl-keyfile {key!r} needs --ssl-certfile beside it")
    if not certificate:
        return
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key or None, lambda: "")
    except (OSError, ssl.SSLError) as error:  # the library does not say which of the two files it is
        files = f"--ssl-certfile {certificate!r}" + (f" with --ssl-keyfile {key!r}" if key else "")
        raise BadSetting(f"{files} cannot be used: {error.strerror or error}", 1) from None


def _bind_port(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise BadSetting(f"--host {host!r} is no address of this machine ({error.strerror})", 1) from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise BadSetting(_why_not(host, port, error), 1) from None
    return sock


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; stop what listens there, or choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than this user has; choose one above 1023 with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host!r} is no address of this machine"
    return f"cannot listen on {host}, port {port}: {error.strerror}"


def _bind_path(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(path)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise BadSetting(
                f"--uds {path!r} is in use; stop what listens there or choose another", 1
            ) from None
        raise BadSetting(f"--uds {path!r} cannot be used: {error.strerror or error}", 1) from None
    return sock


def _remove_stale(path: str) -> None:
    """Remove a socket file that a server which was killed has left; never anything else."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            _remove(path)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
