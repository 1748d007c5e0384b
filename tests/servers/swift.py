"""A private OpenStack Swift with the S3 API, from the installed `swift` package.

One proxy, one account, container and object server, each its own process on a free port of
127.0.0.1, everything in one folder (which must be on a file system with user xattrs). Needs no
root. It rejects wrong signatures and wrong checksums and honours If-None-Match.

`kill` and `start` again keep the data: a store that goes away and comes back.
"""

from __future__ import annotations

import http.client
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.servers.s3_server import S3Server

SERVERS = ("account", "container", "object", "proxy")

_RINGS = """
import sys
from swift.common.ring import RingBuilder
for name, port in zip(sys.argv[2::2], sys.argv[3::2]):
    builder = RingBuilder(4, 1, 0)
    builder.add_dev({"id": 0, "region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port),
        "replication_ip": "127.0.0.1", "replication_port": int(port), "device": "d1",
        "weight": 1.0, "meta": ""})
    builder.rebalance()
    builder.get_ring().save(sys.argv[1] + "/" + name + ".ring.gz")
"""

_SERVE = """
import os, sys
import swift.common.utils as utils
from swift.common.utils import config
from swift.common import storage_policy
utils.SWIFT_CONF_FILE = config.SWIFT_CONF_FILE = os.environ["SWIFT_CONF"]
storage_policy.reload_storage_policies()
from swift.common.wsgi import run_wsgi
sys.exit(run_wsgi(sys.argv[2], sys.argv[1]))
"""

_SWIFT_CONF = """[swift-hash]
swift_hash_path_prefix = test
swift_hash_path_suffix = test
[storage-policy:0]
name = gold
policy_type = replication
default = yes
"""

_BACKEND_CONF = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {etc}
devices = {devices}
mount_check = false
log_udp_host =
fallocate_reserve = 0
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
conn_timeout = 30
node_timeout = 60
"""

_PROXY_CONF = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {etc}
[pipeline:main]
pipeline = catch_errors gatekeeper proxy-logging cache etag-quoter listing_formats s3api \
tempauth slo dlo versioned_writes symlink proxy-logging proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
conn_timeout = 30
node_timeout = 60
error_suppression_limit = 1000
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:proxy-logging]
use = egg:swift#proxy_logging
access_log_headers = false
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:etag-quoter]
use = egg:swift#etag_quoter
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_versioned_writes = true
allow_object_versioning = true
[filter:symlink]
use = egg:swift#symlink
"""


class SwiftServer(S3Server):
    """`start`, then use `endpoint`, `access_key`, `secret_key`; `stop` at the end."""

    access_key = "test:tester"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secret_key = "s" + os.urandom(8).hex()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = dict(zip(SERVERS, free_ports(len(SERVERS)), strict=True))
        self.endpoint = f"http://127.0.0.1:{self._ports['proxy']}"
        self._configured = False

    @property
    def port(self) -> int:
        return self._ports["proxy"]

    @property
    def running(self) -> bool:
        """Whether all of its processes are there."""
        return len(self._processes) == len(SERVERS) and all(
            process.poll() is None for process in self._processes.values()
        )

    def start(self) -> None:
        """Start (again) and return when requests are answered."""
        if not self._configured:
            self._configure()
            self._configured = True
        etc = self.folder / "etc"
        for name in SERVERS:
            with (self.folder / f"{name}.log").open("ab") as log:
                self._processes[name] = subprocess.Popen(
                    dying_with_us(
                        sys.executable, "-c", _SERVE, f"{name}-server", f"{etc}/{name}-server.conf"
                    ),
                    env={**os.environ, "SWIFT_CONF": str(etc / "swift.conf")},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        self._wait_until_ready()

    def stop(self) -> None:
        """Stop the processes started here; may be repeated."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9, as a crash would; data stays, `start` brings it back."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(number)
        for process in self._processes.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def _configure(self) -> None:
        etc, devices = self.folder / "etc", self.folder / "srv"
        (devices / "d1").mkdir(parents=True)
        etc.mkdir()
        (etc / "swift.conf").write_text(_SWIFT_CONF)
        values = {"user": pwd.getpwuid(os.getuid()).pw_name, "etc": etc, "devices": devices}
        rings = []
        for name in SERVERS[:-1]:
            port = self._ports[name]
            text = _BACKEND_CONF.format(name=name, port=port, **values)
            (etc / f"{name}-server.conf").write_text(text)
            rings += [name, str(port)]
        text = _PROXY_CONF.format(port=self.port, secret=self.secret_key, **values)
        (etc / "proxy-server.conf").write_text(text)
        command = [sys.executable, "-c", _RINGS, str(etc), *rings]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise RuntimeError(f"Swift's rings could not be built:\n{made.stderr}")

    def _wait_until_ready(self, timeout_seconds: float = 60) -> None:
        deadline = time.monotonic() + timeout_seconds
        for name, port in self._ports.items():
            while not answers_http(port):
                process = self._processes[name]
                if process.poll() is not None or time.monotonic() > deadline:
                    log = (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]
                    self.kill()
                    raise RuntimeError(f"Swift's {name} server did not start:\n{log}")
                time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def dying_with_us(*command: str) -> list[str]:
    """The command, run so that the kernel kills it when this process dies (where that is known)."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--", *command] if setpriv else list(command)


def answers_http(port: int) -> bool:
    """True when something on the port gives an HTTP answer of whatever status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/healthcheck")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True
