"""tp > 1 hangs at start-up: ports, host names, and the variables that lead NCCL and Gloo astray."""

import contextlib
import re
import socket
from collections.abc import Iterator

import psutil

from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem
from sglang_fl.diagnostics.doctor.foreign import variable, variables
from sglang_fl.diagnostics.doctor.launch import PORT, Launch
from sglang_fl.errors import quoted

__all__ = ["interfaces", "ports", "rendezvous", "variables_of_collectives"]


def ports(launch: Launch) -> Iterator[Finding]:
    """Are the port of the server and that of its ranks free?"""
    if launch.is_described:
        yield _of_port("--port", launch.port or PORT, "choose another one with --port")
    if launch.nccl_port is not None:
        yield _of_port("--nccl-port", launch.nccl_port, "leave it out: SGLang finds a free port by itself")


def _of_port(what: str, port: int, remedy: str) -> Finding:
    reason = _why_not_free(port)
    if reason is None:
        return ok(what, f"port {port} is free")
    return problem(what, f"port {port} is not available: {reason}", remedy)


def _why_not_free(port: int) -> str | None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as SGLang does
            probe.bind(("", port))
    except (OSError, OverflowError) as error:
        return f"{getattr(error, 'strerror', None) or error}{_holder(port)}"
    return None


def _holder(port: int) -> str:
    """Name the process that listens on a port, as far as the system lets us see it."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" (process {connection.pid}, {psutil.Process(connection.pid).name()})"
    return ""


def rendezvous(launch: Launch) -> Iterator[Finding]:
    """Can the ranks meet where they are told to?"""
    port = variable("MASTER_PORT")
    if port is not None and launch.tp > 1:
        if _is_port(port):
            yield _of_port("MASTER_PORT", int(port), "unset it: SGLang finds a free port by itself")
        else:
            text = f"MASTER_PORT={quoted(port)} is no port from 1 to 65535"
            yield problem("MASTER_PORT", text, "unset it: SGLang finds a free port by itself")
    if launch.dist_init_addr is not None:
        yield _of_address(launch.dist_init_addr)


def _is_port(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,5}", text) is not None and 1 <= int(text) <= 65535


def _of_address(address: str) -> Finding:
    what, (host, _, port) = "--dist-init-addr", address.rpartition(":")
    if not host or not _is_port(port):
        text = f"{quoted(address)} is not of the form host:port, with a port from 1 to 65535"
        return problem(what, text, "write 10.0.0.1:20000")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        return problem(what, f"the host {host!r} is not found: {error}", "write its address instead")
    return ok(what, f"{host} is {found}")


def interfaces(launch: Launch) -> Iterator[Finding]:
    """Do the variables that choose a network interface name one that exists?"""
    here = sorted(psutil.net_if_addrs())
    readers = {"NCCL_SOCKET_IFNAME": _nccl, "GLOO_SOCKET_IFNAME": _gloo}
    if not any(map(variable, readers)):
        yield ok("interfaces", f"{' and '.join(readers)} are not set")
    for name, chosen in readers.items():
        text = variable(name)
        if text is None:
            continue
        if chosen(text, here):
            yield ok(name, f"{name}={text!r} chooses {', '.join(chosen(text, here))}")
        else:
            seen = f"{name}={text!r} names no interface of this machine; it has {', '.join(here)}"
            yield problem(name, seen, f"unset {name}, or set it to one of them")


def _nccl(text: str, here: list[str]) -> list[str]:
    """Return what NCCL would take: beginnings of names, ``=`` for whole names, ``^`` for all but these."""
    excludes = text.startswith("^")
    rest = text.removeprefix("^")
    is_exact = rest.startswith("=")
    names = [name.strip() for name in rest.removeprefix("=").split(",") if name.strip()]
    matching = [i for i in here if any(i == name if is_exact else i.startswith(name) for name in names)]
    return [i for i in here if i not in matching] if excludes else matching


def _gloo(text: str, here: list[str]) -> list[str]:
    """Return what Gloo would take: all names must exist."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    return names if set(names) <= set(here) else []


def variables_of_collectives(launch: Launch) -> Iterator[Finding]:
    """Tell what is set for NCCL and Gloo, and what a launcher of other processes has left behind."""
    if launch.tp < 2:
        return
    found = variables(("NCCL_", "GLOO_"))
    text = ", ".join(f"{name}={value}" for name, value in found.items())
    remedy = "if the probe below fails, unset them and try again"
    yield ok("NCCL_*, GLOO_*", text, remedy) if found else ok("NCCL_*, GLOO_*", "none is set")
    left = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if variable(name)]
    if left:
        text = f"{', '.join(left)} set, as torchrun or a scheduler does: SGLang starts its ranks by itself"
        yield problem("ranks", text, f"unset {' '.join(left)}")
