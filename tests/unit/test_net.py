"""Which addresses nodes may reach, and what they are told otherwise. No connection is made here."""

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address

import httpx
import pytest

from libs.net import AddressRefused, Allowed, GuardedHttp, refusal, system_resolve


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", "loopback"),
        ("127.8.8.8", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("10.1.2.3", "private"),
        ("172.31.255.255", "private"),
        ("192.168.0.1", "private"),
        ("169.254.169.254", "metadata"),
        ("100.64.0.1", "carrier-grade"),
        ("224.0.0.1", "multicast"),
        ("255.255.255.255", "reserved"),
        ("192.0.2.1", "not a public"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::127.0.0.1", "loopback"),
        ("::ffff:0:10.0.0.1", "private"),
        ("64:ff9b::169.254.169.254", "metadata"),
        ("64:ff9b:1::1", "NAT64"),
        ("2002:7f00:1::", "6to4"),
        ("2001:0:4136:e378::1", "Teredo"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("fd00::1", "private"),
        ("ff02::1", "multicast"),
        ("2001:db8::1", "not a public"),
    ],
)
def test_an_address_that_is_not_public_is_refused_with_its_kind(address: str, kind: str) -> None:
    assert kind in (refusal(ip_address(address)) or "")


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::1.1.1.1"])
def test_a_public_address_is_not_refused(address: str) -> None:
    assert refusal(ip_address(address)) is None


def test_allowed_entries_are_hosts_networks_and_ports() -> None:
    names = ["Api.Internal", "db.internal:8080", "my_service.", "büro.example", "7.example"]
    allowed = Allowed.parse([*names, "10.0.0.0/8", "127.0.0.1:99", "[::1]:98", "[::2]", "fd00::/8"])
    assert allowed.name("api.internal.", 1)
    assert allowed.name("DB.internal", 8080)
    assert allowed.name("my_service", 1)
    assert allowed.name("büro.example", 1)
    assert allowed.name("7.example", 1)
    assert allowed.address(ip_address("::2"), 1)
    assert allowed.name("7.example", 1)
    assert allowed.address(ip_address("::2"), 1)
    assert not allowed.name("db.internal", 80)
    assert allowed.address(ip_address("10.9.9.9"), 1)
    assert allowed.address(ip_address("127.0.0.1"), 99)
    assert not allowed.address(ip_address("127.0.0.1"), 80)
    assert allowed.address(ip_address("::1"), 98)
    assert allowed.address(ip_address("fd12::1"), 1)


@pytest.mark.parametrize(
    "entry",
    [
        "host:port",
        "host:0",
        "host:70000",
        "10.0.0.0/99",
        "a/b",
        "???",
        "*.internal",
        "-",
        ":80",
        "10.0.0.300",
        "10.0",
        "a..b",
        "1",
        "db:",
    ],
)
def test_an_allowed_entry_that_means_nothing_names_the_setting(entry: str) -> None:
    with pytest.raises(ValueError, match="FLOWLEDGER_HTTP_ALLOW"):
        Allowed.parse([entry])


class Names:
    """A resolver that answers from a list of answers per name, one per question, and counts the questions."""

    def __init__(self, **answers: list[Sequence[str]]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self.answers[host.partition(".")[0]].pop(0)


def refused(url: str, names: Names, allow: Sequence[str] = ()) -> str:
    async def go() -> str:
        http = GuardedHttp(allow, resolve=names)
        try:
            with pytest.raises(AddressRefused) as caught:
                async with http.open(httpx.Request("GET", url)):
                    pass
            return str(caught.value)
        finally:
            await http.aclose()

    return asyncio.run(go())


def test_a_name_with_one_private_address_among_public_ones_is_refused() -> None:
    names = Names(mixed=[["93.184.216.34", "10.0.0.5"]])
    message = refused("http://mixed.example/", names)
    assert message == (
        "refused to connect to mixed.example (10.0.0.5): a private address. "
        "To allow it, add mixed.example or 10.0.0.5 to FLOWLEDGER_HTTP_ALLOW"
    )
    assert names.asked == ["mixed.example"]


def test_an_allowance_for_one_port_does_not_open_another() -> None:
    assert "loopback" in refused("http://me.example:81/", Names(me=[["127.0.0.1"]]), ["127.0.0.1:80", "me.example:82"])


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "[::ffff:127.0.0.1]", "[::1]", "0", "localhost"],
)
def test_no_spelling_of_loopback_gets_through(host: str) -> None:
    async def go() -> None:
        http = GuardedHttp(resolve=system_resolve)
        try:
            with pytest.raises((AddressRefused, httpx.ConnectError, httpx.InvalidURL)) as caught:
                async with http.open(httpx.Request("GET", f"http://{host}:9/")):
                    pass
            assert not isinstance(caught.value, httpx.ConnectError) or "cannot be resolved" in str(caught.value)
        finally:
            await http.aclose()

    asyncio.run(go())
