"""A browser that a stranger's page has sent here by a name of its own gets nothing."""

import socket

import pytest

from stellarbyte.watch.hosts import is_loopback, may_name


@pytest.mark.parametrize("header", ["localhost:8180", "127.0.0.1:1", "[::1]:8180", "LOCALHOST", "127.0.0.7"])
def test_names_of_this_machine(header: str) -> None:
    assert may_name(header, "127.0.0.1")


@pytest.mark.parametrize(
    "header",
    [
        *(None, "", "evil.example", "evil.example:8180", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("10.0.0.3", "[::2]", "x@localhost", "2130706433", "127.1"),
    ],
)
def test_names_of_others(header: str | None) -> None:
    assert not may_name(header, "127.0.0.1")


def test_a_server_for_all_takes_addresses_and_its_own_names() -> None:
    for header in ("10.0.0.3:80", "[fd00::1]", "localhost", socket.gethostname()):
        assert may_name(header, "0.0.0.0"), header
    assert not may_name("evil.example", "0.0.0.0")
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("gpu-box")
