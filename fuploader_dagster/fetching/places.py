"""Where a download may go.

What must always hold:

- Only http and https. A host is refused if `deny_hosts` has it, or if `allow_hosts` has entries and
  none matches.
- Nothing is sent to an IP address that is not public, unless `allow_hosts` names it: the address
  itself or its network, or, for private and loopback addresses, the host by its full name. An entry
  with `*`, `?` or `[` never opens one.
- An IP address in any spelling that the system would understand (`127.1`, `0x7f000001`,
  `2130706433`, `::ffff:127.0.0.1`, NAT64, 6to4, Teredo) is checked as the address that it is.

`checked` looks at an address as it is written; `check_ip` at each IP address that a name resolved
to, right before the connection (`connections.py`). Both run again for each redirect.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import lru_cache

from yarl import URL

from fuploader_dagster.fetching.failures import Refused
from fuploader_dagster.settings.safe_text import in_a_line

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

LONGEST_URL = 8000
"""What servers take, more or less."""
_NAME = re.compile(r"[a-z0-9_]([a-z0-9._-]{0,251}[a-z0-9_])?")
_AS_IT_IS = re.compile(r"[!#-;=?-\[\]_a-z~]+")
"""Characters that need no quoting: the address is sent exactly as it was given."""
_GLOB = re.compile(r"[*?\[]")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
_RESERVED = [
    ipaddress.ip_network(text)
    for text in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "3fff::/20")
]
"""For protocols and documentation; what `ipaddress` says of them depends on Python's version."""
_METADATA = frozenset({"168.63.129.16", "169.254.169.254", "100.100.100.200", "fd00:ec2::254"})
_OPENED_BY_NAME = frozenset({"private", "loopback"})


class Places:
    """The rules, and what they say about an address."""

    def __init__(self, allow_hosts: Iterable[str] = (), deny_hosts: Iterable[str] = ()) -> None:
        self._allowed = [_host(entry) for entry in allow_hosts]
        self._denied = [_host(entry) for entry in deny_hosts]
        self._allowed_networks = _networks(self._allowed)
        self._denied_networks = _networks(self._denied)
        self._named = {entry for entry in self._allowed if not _GLOB.search(entry)}

    def checked(self, text: str, base: URL | None = None) -> URL:
        """The address to fetch, its host in the one usual spelling. Raises `Refused`.

        `base`: what it is relative to, if it comes from a redirect; a login in it is dropped then.
        """
        url = _parsed(text, base)
        if url.scheme not in ("http", "https"):
            raise Refused(f"only http and https are fetched, not {in_a_line(url.scheme[:20])!r}")
        host = (url.raw_host or "").lower()
        if (ip := _ip_in(host)) is not None:
            host = str(ip)
        else:
            name = host.removesuffix(".")
            if not _NAME.fullmatch(name):
                raise Refused(f"{in_a_line(host[:80])!r} is not a host name")
            host = name
        url = url if url.raw_host == host else url.with_host(host)
        self._check_host(host, ip)
        if ip is not None:
            self.check_ip(host, str(ip))
        return url

    def check_ip(self, host: str, text: str) -> None:
        """Whether this IP address may be connected to, for this host. Raises `Refused`."""
        ip = ipaddress.ip_address(text.partition("%")[0])
        if any(ip in network for network in self._denied_networks):
            raise Refused(f"{host} leads to {ip}, which deny_hosts has")
        kind = kind_of(ip)
        if kind == "" or self.is_named(ip):
            return
        if kind in _OPENED_BY_NAME and host in self._named:
            return
        where = f"{ip}" if host == str(ip) else f"{host} leads to {ip}, which"
        raise Refused(f"{where} is a {kind} address; allow_hosts does not name it")

    def is_named(self, ip: IPAddress) -> bool:
        """Whether `allow_hosts` has this IP address, or a network that it is in."""
        return any(ip in network for network in self._allowed_networks)

    def _check_host(self, host: str, ip: IPAddress | None) -> None:
        if any(fnmatchcase(host, entry) for entry in self._denied) or (
            ip is not None and any(ip in network for network in self._denied_networks)
        ):
            raise Refused(f"deny_hosts has {host}")
        if self._allowed and not (
            any(fnmatchcase(host, entry) for entry in self._allowed)
            or (ip is not None and self.is_named(ip))
        ):
            raise Refused(f"allow_hosts does not have {host}")


def shown(url: URL | str) -> str:
    """The address for people: without login, query and fragment."""
    try:
        url = url if isinstance(url, URL) else URL(url)
        if not url.raw_host:
            return in_a_line(str(url.with_query(None).with_fragment(None))[:200])
        bare = url.with_user(None).with_query(None).with_fragment(None)
    except (ValueError, TypeError):
        return "an address that cannot be read"
    return in_a_line(str(bare)[:500]) + ("?..." if url.raw_query_string else "")


def host_problem(entry: str) -> str:
    """Why an entry of `allow_hosts` or `deny_hosts` is unusable; empty if it is not."""
    host = _host(entry)
    if _networks([host]):
        return ""
    if "/" in host or ":" in host or "@" in host or not host:
        return "it must be a host without a scheme, port or path, an IP address, or a network"
    return "" if host.isascii() and host.isprintable() and " " not in host else "it is no host"


@lru_cache(4096)
def kind_of(ip: IPAddress) -> str:  # noqa: PLR0911  a list of cases
    """What kind of address this is; empty for a public one."""
    if isinstance(ip, ipaddress.IPv6Address):
        inner = _embedded(ip)
        if inner is not None:
            return kind_of(inner)
    if str(ip) in _METADATA:
        return "metadata"
    if ip.is_unspecified:
        return "unspecified"
    if ip.is_loopback:
        return "loopback"
    if ip.is_link_local:
        return "link-local"
    if ip.is_multicast:
        return "multicast"
    if isinstance(ip, ipaddress.IPv4Address) and ip in _THIS_NETWORK:
        return "unspecified"
    if not ip.is_global or (isinstance(ip, ipaddress.IPv6Address) and ip not in _GLOBAL_UNICAST):
        return "private" if ip.is_private else "reserved"
    return "reserved" if ip.is_reserved or any(ip in one for one in _RESERVED) else ""


def _embedded(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that packets for this one reach."""
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip.sixtofour is not None:
        return ip.sixtofour
    if ip.teredo is not None:
        return ip.teredo[1]
    if ip in _NAT64 or (ip in _COMPATIBLE and int(ip) > 1):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return None


def _parsed(text: str, base: URL | None) -> URL:
    if len(text) > LONGEST_URL:
        raise Refused(f"the address has more than {LONGEST_URL:,} characters")
    try:
        url = URL(text, encoded=_AS_IT_IS.fullmatch(text) is not None)
        if base is not None:
            url = base.join(url)
            if url.raw_user is not None or url.raw_password is not None:
                url = url.with_user(None)
        if url.scheme in ("http", "https") and (not url.raw_host or url.port == 0):
            raise ValueError
        return url.with_fragment(None)
    except (ValueError, TypeError, UnicodeError):
        raise Refused("this is not an address such as https://host/path") from None


def _ip_in(host: str) -> IPAddress | None:
    """The IP address that the system would take this host for. Raises `Refused` if it is broken."""
    if ":" in host:
        try:
            if "%" in host:
                raise ValueError
            return ipaddress.IPv6Address(host)
        except ValueError:
            raise Refused(f"{in_a_line(host[:80])!r} is not an IP address") from None
    if not _NUMBER.fullmatch(host.removesuffix(".").rpartition(".")[2].lower()):
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host.removesuffix(".")))
    except OSError:
        raise Refused(f"{in_a_line(host[:80])!r} is not an IP address") from None


def _host(entry: str) -> str:
    entry = entry.strip().lower().removesuffix(".")
    entry = entry[1:-1] if entry.startswith("[") and entry.endswith("]") and ":" in entry else entry
    if not entry.isascii():
        try:
            return URL.build(scheme="http", host=entry).raw_host or entry
        except (ValueError, UnicodeError):
            return entry
    return entry


def _networks(entries: Iterable[str]) -> list[IPNetwork]:
    found = []
    for entry in entries:
        try:
            found.append(ipaddress.ip_network(entry))
        except ValueError:
            continue  # the name of a host
    return found
