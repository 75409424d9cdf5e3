"""The coordinator's address, HOST:PORT of process 0, and where that process listens."""

import os
import re
import socket
from ipaddress import ip_address

from stella_jax.errors import StellaError, short_repr

ADDRESS = re.compile(r"(?P<host>[\w.-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[1-9]\d{0,4})", re.ASCII)


def bind_address(coordinator: str | None, index: int | None = None) -> str | None:
    """Where process 0 listens: at the address that the user named, where JAX would listen at all of the machine's.

    None leaves it to JAX: to JAX_COORDINATOR_BIND_ADDRESS where that is set, and to all interfaces where nobody named
    an address.

    Args:
      coordinator: HOST:PORT; None is JAX_COORDINATOR_ADDRESS.
      index: of this process, where it is known.

    Raises:
      StellaError: it is not of this form, its name is one that this machine takes for itself alone, or this is process
        0 and cannot listen there.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is None:
        return None
    found = ADDRESS.fullmatch(coordinator)
    if not found or int(found["port"]) > 65535:
        raise StellaError(f"coordinator {short_repr(coordinator)} is not of the form HOST:PORT; name process 0's.")
    if "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
        return None
    if _is_hidden(found["host"]):
        raise StellaError(
            f"coordinator {coordinator}: this machine takes {found['host']} for its loopback interface, which no other "
            "machine reaches; name an IP address."
        )
    if index == 0:
        _check_free(coordinator, found["host"].strip("[]"), int(found["port"]))
    return coordinator


def _check_free(coordinator: str, host: str, port: int) -> None:
    """Raises StellaError where nobody can listen: JAX would crash."""
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise StellaError(
            f"coordinator {coordinator}: process 0 cannot listen there ({error.strerror or error}); name an address of "
            "its machine and a free port."
        ) from error


def _is_hidden(host: str) -> bool:
    """Whether it is a name, other than localhost, that this machine gives to its loopback interface, as some do."""
    try:
        found = {ip_address(address[0]) for *_, address in socket.getaddrinfo(host.strip("[]"), None)}
    except OSError:  # JAX tells what nobody can resolve
        return False
    return all(each.is_loopback and str(each) != host.strip("[]") for each in found) and "localhost" not in host
