"""Buckets on the loopback address: moto's server for S3, an emulator for Google Cloud Storage; each a process."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest

SETTINGS = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:{s3}",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "STORAGE_EMULATOR_HOST": "http://127.0.0.1:{gs}",
    "TENSORSTORE_GCS_HTTP_URL": "http://127.0.0.1:{gs}",
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask Google what kind of bucket it is
    "NO_GCE_CHECK": "true",
    "NO_PROXY": "127.0.0.1",
}


class Network:
    """What lies between S3's clients and its server: it carries everything, answers 503, or is away."""

    def __init__(self) -> None:
        self.port, self._server = free_port(), free_port()
        self._state: Literal["whole", "busy", "away"] = "whole"
        self._open: set[socket.socket] = set()
        listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    @property
    def server_port(self) -> int:
        return self._server

    def become(self, state: Literal["whole", "busy", "away"]) -> None:
        self._state = state
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            if self._state == "busy":
                with suppress(OSError):
                    client.recv(1 << 16)
                    client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            elif self._state == "whole":
                with suppress(OSError), socket.create_connection(("127.0.0.1", self._server)) as server:
                    self._open |= {client, server}
                    back = threading.Thread(target=self._carry, args=(server, client), daemon=True)
                    back.start()
                    self._carry(client, server)
                    back.join()
                    self._open -= {client, server}

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="session")
def s3_network() -> Network:
    return Network()


@pytest.fixture(scope="session")
def bucket_settings(s3_network: Network) -> Iterator[dict[str, str]]:
    """Environment variables by which the libraries find both servers; TensorStore reads its own once a process."""
    ports = {"s3": s3_network.port, "gs": free_port()}
    settings = {name: value.format(**ports) for name, value in SETTINGS.items()}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield settings


@pytest.fixture
def network(s3_network: Network) -> Iterator[Network]:
    """The network to the bucket of `s3`, which is whole again after the test."""
    yield s3_network
    s3_network.become("whole")


@pytest.fixture(scope="session")
def s3(bucket_settings: dict[str, str], s3_network: Network) -> Iterator[str]:  # noqa: ARG001 - for the environment
    """s3://runs, an empty bucket."""
    port = s3_network.server_port
    with served([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        import fsspec

        from stellarbyte.bucket_library import file_system

        fsspec.filesystem("s3").clear_instance_cache()
        file_system("s3").mkdir("runs")
        yield "s3://runs"


@pytest.fixture(scope="session")
def gs(bucket_settings: dict[str, str]) -> Iterator[str]:
    """gs://runs, an empty bucket."""
    port = bucket_settings["STORAGE_EMULATOR_HOST"].rpartition(":")[2]
    with served([sys.executable, str(Path(__file__).with_name("gcs_emulator.py")), port], int(port)):
        yield "gs://runs"


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> str:
    """The bucket of the scheme that a test is parametrized by, and in it a folder for this test alone."""
    return f"{request.getfixturevalue(request.param)}/{abs(hash(request.node.nodeid))}"


class served:
    """A server's process, from when it answers to the end of the block."""

    def __init__(self, command: list[str], port: int) -> None:
        self._port = port
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self) -> subprocess.Popen:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self._port), 1).close()
            except OSError:
                assert self._process.poll() is None, "the server has ended"
                time.sleep(0.05)
            else:
                return self._process
        raise AssertionError("the server does not answer")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
