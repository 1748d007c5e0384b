"""A private Ceph object gateway over http and TLS: the S3 server that is most like the real one.

One monitor, one OSD in memory and one gateway from Debian's packages (`ceph-mon ceph-osd radosgw
ceph-common`), each a child process in the foreground, on free ports of 127.0.0.1, everything else
in one folder. Ceph's own authentication stays on: without it the gateway hangs.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path

from tests.servers.s3_server import S3Server
from tests.servers.swift import answers_http, dying_with_us, free_ports

PACKAGES = "ceph-mon ceph-osd radosgw ceph-common"

_CONF = """[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
public network = 127.0.0.0/8
keyring = {folder}/keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
run dir = {folder}/run
log file = {folder}/log/$name.log
admin socket = {folder}/run/$name.asok
pid file = {folder}/run/$name.pid
crash dir = {folder}/run
osd objectstore = memstore
memstore device bytes = 4294967296
osd class load list = *
osd class default list = *
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{http} ssl_endpoint=127.0.0.1:{tls} \
ssl_certificate={folder}/tls.crt ssl_private_key={folder}/tls.key
rgw data = {folder}/rgw
rgw dns name = s3.test
rgw run sync thread = false
rgw gc obj min wait = 1
rgw gc processor period = 2
rgw crypt require ssl = false
rgw crypt s3 kms backend = testing
rgw crypt s3 kms encryption keys = testkey={kms_key}
"""


class RadosGateway(S3Server):
    """`start`, then use `endpoint` or `tls_endpoint` with `ca_bundle`; `stop` at the end."""

    dns_name = "s3.test"
    """Buckets are also at `{bucket}.s3.test`, which no resolver knows: a proxy must lead there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.access_key = "AKIA" + os.urandom(6).hex().upper()
        self.secret_key = "s" + os.urandom(12).hex()
        mon_v2, mon_v1, self.port, tls = free_ports(4)
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.tls_endpoint = f"https://127.0.0.1:{tls}"
        self.ca_bundle = str(folder / "tls.crt")
        self._ports = {"mon_v2": mon_v2, "mon_v1": mon_v1, "http": self.port, "tls": tls}
        self._processes: list[subprocess.Popen[bytes]] = []

    def another_user(self) -> tuple[str, str, str]:
        """Its name, access key and secret key: it may do nothing in anybody's bucket."""
        name, key, secret = (prefix + os.urandom(6).hex() for prefix in ("user", "AKIA", "s"))
        keys = [f"--access-key={key}", f"--secret-key={secret}"]
        self._run("radosgw-admin", "user", "create", f"--uid={name}", "--display-name=x", *keys)
        return name, key, secret

    def start(self) -> None:
        """Start and return when requests are answered."""
        missing = [name for name in ("ceph-mon", "ceph-osd", "radosgw") if not shutil.which(name)]
        if missing:
            raise RuntimeError(
                f"{missing} not found: apt-get install -y --no-install-recommends {PACKAGES}"
            )
        try:
            self._start()
        except (RuntimeError, subprocess.TimeoutExpired):
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the processes started here; may be repeated. What they held is gone."""
        for process in reversed(self._processes):
            process.send_signal(signal.SIGKILL)  # nothing to save: the data was in memory
            process.wait()
        self._processes.clear()

    def _start(self) -> None:
        folder = self.folder
        for name in ("mon", "osd", "rgw", "run", "log"):
            (folder / name).mkdir(parents=True)
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        kms_key = base64.b64encode(os.urandom(32)).decode()
        text = _CONF.format(fsid=fsid, folder=folder, kms_key=kms_key, **self._ports)
        (folder / "ceph.conf").write_text(text)
        self._make_certificate()
        keyring = str(folder / "keyring")
        self._run("ceph-authtool", "--create-keyring", keyring, *_key("mon.", mon="allow *"))
        rights = {"mon": "allow *", "osd": "allow *"}
        for name in ("client.admin", "osd.0", "client.rgw"):
            self._run("ceph-authtool", keyring, *_key(name, **rights))
        ports = f"[v2:127.0.0.1:{self._ports['mon_v2']},v1:127.0.0.1:{self._ports['mon_v1']}]"
        monmap = str(folder / "monmap")
        self._run("monmaptool", "--create", "--addv", "a", ports, "--fsid", fsid, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._spawn("ceph-mon", "-f", "-i", "a")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._run("ceph", "osd", "new", osd)
        self._spawn("ceph-osd", "-f", "-i", "0")
        user = ["--uid=ci", "--display-name=ci"]
        keys = [f"--access-key={self.access_key}", f"--secret-key={self.secret_key}"]
        self._run("radosgw-admin", "user", "create", *user, *keys)
        gateway = self._spawn("radosgw", "-f", "-n", "client.rgw")
        deadline = time.monotonic() + 60
        while not answers_http(self.port):
            if gateway.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"radosgw did not start:\n{self._log('radosgw')}")
            time.sleep(0.2)

    def _make_certificate(self) -> None:
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        known_as = "subjectAltName=IP:127.0.0.1,DNS:s3.test,DNS:*.s3.test"
        names = ["-subj", "/CN=127.0.0.1", "-addext", known_as, "-days", "2"]
        files = ["-keyout", str(self.folder / "tls.key"), "-out", self.ca_bundle]
        self._run(*command.split(), *names, *files)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "CEPH_CONF": str(self.folder / "ceph.conf")}

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command,
            env=self._environment(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command[:3])} failed:\n{done.stdout}\n{done.stderr}")

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{command[0]}.log").open("ab") as log:
            process = subprocess.Popen(
                dying_with_us(*command),
                env=self._environment(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def _log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]


def _key(name: str, **rights: str) -> list[str]:
    """Arguments of ceph-authtool for a new key."""
    arguments = ["--gen-key", "-n", name]
    for service, right in rights.items():
        arguments += ["--cap", service, right]
    return arguments
