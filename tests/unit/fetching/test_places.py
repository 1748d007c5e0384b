"""Where a download may go."""

from __future__ import annotations

import ipaddress

import pytest
from yarl import URL

from fuploader_dagster.fetching.failures import Refused
from fuploader_dagster.fetching.places import Places, host_problem, kind_of, shown


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://127.0.0.1./",
        "http://2130706433/",
        "http://017700000001/",
        "http://0x7f000001/",
        "http://0X7F.0.0.1/",
        "http://0/",
        "http://0.0.0.0/",
        "http://0.1.2.3/",
        "http://[::]/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[64:ff9b:1::1]/",
        "http://[2002:7f00:1::]/",
        "http://[2001:0:1:1:1:1:80ff:fffe]/",
        "http://[fe80::1]/",
        "http://[fc00::1]/",
        "http://[fec0::1]/",
        "http://[ff02::1]/",
        "http://[fd00:ec2::254]/",
        "http://10.0.0.1/",
        "http://172.16.0.1/",
        "http://192.168.1.1/",
        "http://169.254.169.254/",
        "http://168.63.129.16/",
        "http://100.100.100.200/",
        "http://100.64.0.1/",
        "http://192.0.0.192/",
        "http://192.0.2.1/",
        "http://198.18.0.1/",
        "http://224.0.0.1/",
        "http://240.0.0.1/",
        "http://255.255.255.255/",
        "http://\u0661\u0662\u0667.0.0.1/",
        "http://\uff11\uff12\uff17.0.0.1/",
        "http://\u2460\u2461\u2466.0.0.1/",
    ],
)
@pytest.mark.parametrize("allowed", [[], ["*"]], ids=["any", "star"])
def test_an_address_that_is_not_public_is_refused_in_every_spelling(
    url: str, allowed: list[str]
) -> None:
    with pytest.raises(Refused):
        Places(allowed).checked(url)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://h/",
        "gopher://h/",
        "data:text/plain,x",
        "javascript:alert(1)",
        "/etc/passwd",
        "//h/x",
        "h/x",
        "",
        " ",
        "http://",
        "http:///x",
        "http://h:0/",
        "http://h:70000/",
        "http://h:x/",
        "http://[::1/",
        "http://[fe80::1%25eth0]/",
        "http://1.2.3.4.5/",
        "http://999.1.1.1/",
        "http://0xzz.1/",
        "http://a b/",
        "http://a\\@b/",
        "http://ex%61mple.com/",
        "http://h\r\nX: y/",
        "http://-h/",
        "http://" + "a" * 300 + "/",
        "http://h/" + "a" * 9000,
        "http://*/",
    ],
)
def test_what_is_no_address_of_http_is_refused(url: str) -> None:
    with pytest.raises(Refused):
        Places().checked(url)


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("HTTP://EXAMPLE.com./a%41?b=%2F+x#y", "http://example.com/a%41?b=%2F+x"),
        ("https://h:8443/ä b?ü", "https://h:8443/%C3%A4%20b?%C3%BC"),
        ("http://bücher.de/", "http://xn--bcher-kva.de/"),
        ("http://8.8.8.8/", "http://8.8.8.8/"),
        ("http://0x8.8.8.8/", "http://8.8.8.8/"),
        ("http://[2606:4700:0::1111]/", "http://[2606:4700::1111]/"),
        ("http://[64:ff9b::808:808]/", "http://[64:ff9b::808:808]/"),
        ("http://user:pw@h/x", "http://user:pw@h/x"),
    ],
)
def test_a_public_address_is_sent_as_it_was_given(url: str, sent: str) -> None:
    assert str(Places().checked(url)) == sent


@pytest.mark.parametrize(
    ("allow", "deny", "host", "good"),
    [
        ([], [], "a.example.com", True),
        (["example.com"], [], "example.com", True),
        (["example.com"], [], "a.example.com", False),
        (["*.example.com"], [], "a.example.com", True),
        (["*.example.com"], [], "example.com", False),
        (["EXAMPLE.com."], [], "example.com", True),
        ([], ["*.example.com"], "a.example.com", False),
        (["*"], ["*.example.com"], "b.de", True),
        (["8.8.8.8"], [], "8.8.8.8", True),
        (["8.8.8.8"], [], "8.8.4.4", False),
        (["8.8.0.0/16"], [], "8.8.4.4", True),
        ([], ["8.8.0.0/16"], "8.8.4.4", False),
        (["127.0.0.1"], [], "127.0.0.1", True),
        (["127.0.0.1"], [], "127.1", True),
        (["127.0.0.1"], ["127.0.0.0/8"], "127.0.0.1", False),
        (["10.0.0.0/8"], [], "10.2.3.4", True),
        (["[::1]"], [], "[::1]", True),
        (["::1"], [], "[::1]", True),
        (["169.254.169.254"], [], "169.254.169.254", True),
        (["127.0.0.1"], [], "[::ffff:127.0.0.1]", False),
        (["127.*"], [], "127.0.0.1", False),
    ],
)
def test_allow_and_deny(allow: list[str], deny: list[str], host: str, good: bool) -> None:
    places = Places(allow, deny)
    if good:
        places.checked(f"http://{host}/")
    else:
        with pytest.raises(Refused):
            places.checked(f"http://{host}/")


@pytest.mark.parametrize(
    ("allow", "ip", "good"),
    [
        ([], "93.184.216.34", True),
        ([], "10.0.0.1", False),
        (["*"], "10.0.0.1", False),
        (["inner.example.com"], "10.0.0.1", True),
        (["inner.example.com"], "127.0.0.1", True),
        (["inner.example.com"], "fd00::1", True),
        (["inner.example.com"], "169.254.169.254", False),
        (["inner.example.com"], "fd00:ec2::254", False),
        (["inner.example.com"], "0.0.0.0", False),
        (["inner.example.com"], "224.0.0.1", False),
        (["*.example.com"], "10.0.0.1", False),
        (["*.example.com", "10.0.0.0/8"], "10.0.0.1", True),
        ([], "fe80::1%eth0", False),
    ],
)
def test_what_a_name_may_lead_to(allow: list[str], ip: str, good: bool) -> None:
    places = Places(allow)
    if good:
        places.check_ip("inner.example.com", ip)
    else:
        with pytest.raises(Refused):
            places.check_ip("inner.example.com", ip)


def test_a_denied_network_holds_for_what_names_lead_to() -> None:
    with pytest.raises(Refused, match=r"leads to 8\.8\.8\.8, which deny_hosts has"):
        Places(deny_hosts=["8.8.0.0/16"]).check_ip("h", "8.8.8.8")


def test_a_redirect_may_be_relative_and_brings_no_login() -> None:
    places, base = Places(), URL("https://h/a/b")
    assert str(places.checked("../c?d", base)) == "https://h/c?d"
    assert str(places.checked("//other/c", base)) == "https://other/c"
    assert str(places.checked("http://user:pw@other/c", base)) == "http://other/c"


def test_every_special_network_of_the_standard_library_is_no_public_one() -> None:
    for text in ("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
                 "172.16.0.0/12", "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15",
                 "224.0.0.0/4", "240.0.0.0/4"):  # fmt: skip
        network = ipaddress.IPv4Network(text)
        for ip in (network[0], network[1], network[-1]):
            assert kind_of(ip), ip
            assert kind_of(ipaddress.IPv6Address(f"::ffff:{ip}")), ip
            assert kind_of(ipaddress.IPv6Address(f"64:ff9b::{ip}")), ip


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://user:pw@h:81/a?b=c#d", "http://h:81/a?..."),
        ("http://h/a", "http://h/a"),
        ("http://h/\x1b[31m", "http://h/%1B%5B31m"),
        ("http://[::1", "an address that cannot be read"),
        ("file:///etc/x", "file:///etc/x"),
        ("http://h:99999/", "an address that cannot be read"),
    ],
)
def test_an_address_is_shown_without_secrets(url: str, text: str) -> None:
    assert shown(url) == text


@pytest.mark.parametrize("entry", ["http://h", "h:80", "h/x", "a@b", "", "a b", "10.0.0.1/8"])
def test_entries_that_would_never_match_are_unusable(entry: str) -> None:
    assert host_problem(entry)


@pytest.mark.parametrize(
    "entry", ["h", "*.h.de", "::1", "[::1]", "10.0.0.0/8", "bücher.de", "1.2.3.4"]
)
def test_usable_entries(entry: str) -> None:
    assert host_problem(entry) == ""
