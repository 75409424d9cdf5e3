"""The coordinator's address: HOST:PORT at which process 0 listens."""

import os
import re
import socket
from ipaddress import ip_address

from stella_jax.errors import StellaError, short_repr

ADDRESS = re.compile(r"(?P<host>[\w.-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>\d+)", re.ASCII)


def bind_address(coordinator: str | None, index: int | None = None) -> str | None:
    """The address at which process 0 listens: the one that the user gave, where JAX would listen on all interfaces.

    None leaves it to JAX: JAX_COORDINATOR_BIND_ADDRESS if that is set, or all interfaces if no address was given.

    Args:
      coordinator: HOST:PORT; None is JAX_COORDINATOR_ADDRESS.
      index: of this process, if known.

    Raises:
      StellaError: it is not HOST:PORT, the port is above 65535, the host is a name of this machine's loopback
        interface, or this is process 0 and cannot listen there.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is None:
        return None
    found = ADDRESS.fullmatch(coordinator)
    if not found:
        raise StellaError(f"coordinator {short_repr(coordinator)}: not HOST:PORT; pass the address of process 0.")
    if not _is_port(found["port"]):
        raise StellaError(f"coordinator {short_repr(coordinator)}: invalid port; ports are 1 to 65535.")
    if "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
        return None
    if _is_hidden(found["host"]):
        raise StellaError(
            f"coordinator {coordinator}: {found['host']} is this machine's loopback interface, which others cannot "
            "reach; pass an IP address."
        )
    if index == 0:
        _check_free(coordinator, found["host"].strip("[]"), int(found["port"]))
    return coordinator


def _is_port(digits: str) -> bool:
    return len(digits) <= 5 and not digits.startswith("0") and int(digits) <= 65535


def _check_free(coordinator: str, host: str, port: int) -> None:
    """Raises StellaError if process 0 cannot listen there, in which case JAX would crash."""
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise StellaError(
            f"coordinator {coordinator}: process 0 cannot listen there ({error.strerror or error}); pass an address of "
            "its machine and a free port."
        ) from error


def _is_hidden(host: str) -> bool:
    """Whether it is a name, other than localhost, of this machine's loopback interface."""
    try:
        found = {ip_address(address[0]) for *_, address in socket.getaddrinfo(host.strip("[]"), None)}
    except OSError:  # JAX reports a name that cannot be resolved
        return False
    return all(each.is_loopback and str(each) != host.strip("[]") for each in found) and "localhost" not in host
