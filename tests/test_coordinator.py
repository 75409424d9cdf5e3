"""The coordinator listens at the given address."""

import socket

import pytest

from stella_jax.coordinator import bind_address


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """`node0` is this machine's own name for its loopback interface, `node1` another machine's."""

    def resolve(host: str, port: None) -> list:
        address = {"localhost": "127.0.0.1", "node0": "127.0.1.1", "node1": "192.0.2.1"}.get(host, host)
        if address == "absent":
            raise socket.gaierror
        return [(0, 0, 0, "", (address, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    monkeypatch.delenv("JAX_COORDINATOR_BIND_ADDRESS", raising=False)


@pytest.mark.parametrize("address", ["127.0.0.1:9822", "[::1]:9822", "localhost:9822", "node1:1", "absent:65535"])
def test_the_given_address(monkeypatch, address):
    assert bind_address(address) == address
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
    assert bind_address(None) == address
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "192.0.2.1:9822")
    assert bind_address(address) is None


def test_no_address():
    assert bind_address(None) is None


@pytest.mark.parametrize("address", ["node1", "node1:", ":9822", "a:b", "a b:1", "[::1:1"], ids=range(6))
def test_invalid_addresses(address, refused):
    with refused(address, "HOST:PORT"):
        bind_address(address)


@pytest.mark.parametrize(
    "address", ["node1:0", "node1:65536", "node1:01", pytest.param(f"node1:{'9' * 5000}", id="huge")]
)
def test_invalid_ports(address, refused):
    with refused("node1:", "1 to 65535"):
        bind_address(address)


@pytest.mark.parametrize("address", ["192.0.2.1:9822", "absent:9822", "127.0.0.1:{taken}"])
def test_process_0_cannot_listen_there(monkeypatch, address, refused):
    monkeypatch.undo()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = address.format(taken=other.getsockname()[1])
        with refused(f"coordinator {address}: ", mask=r"(?<=127\.0\.0\.1:)\d+|\(.*\)"):
            bind_address(address, 0)
        assert bind_address(address, 1) == address


def test_a_name_of_the_loopback_interface(refused):
    with refused("node0:9822"):
        bind_address("node0:9822")
