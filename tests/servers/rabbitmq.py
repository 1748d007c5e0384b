"""A private RabbitMQ on loopback, with its own epmd, cookie, folder, login and certificate.

The scripts in /usr/sbin change to the user `rabbitmq` and fail in somebody else's folder, so the
real ones beside the library are called; like that it works as root and as any other user. A
private epmd and a random node name keep it apart from every other RabbitMQ of the machine.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path

from tests.servers.ports import LOOPBACK, answers, free_port
from tests.servers.process import ServerProcess, binary

_PACKAGE = "rabbitmq-server"


class RabbitMQServer:
    """`start`, `stop` or `kill`, `start` again: ports, login and durable queues stay the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.tls_port = free_port(), free_port()
        self.user, self.password = f"user-{secrets.token_hex(4)}", secrets.token_urlsafe(12)
        self.ca_file = folder / "certificate.pem"
        self._epmd_port, self._dist_port, self._ctl_port = free_port(), free_port(), free_port()
        self._node = f"test-{secrets.token_hex(6)}@localhost"
        server = binary(
            "rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmq-server", package=_PACKAGE
        )
        self._scripts = Path(server).resolve().parent
        self._process = ServerProcess("RabbitMQ", folder / "console.log")
        self._epmd = ServerProcess("epmd", folder / "epmd.log")
        self._write_configuration()

    @property
    def url(self) -> str:
        return f"amqp://{self.user}:{self.password}@{LOOPBACK}:{self.port}/%2F"

    @property
    def log(self) -> Path:
        return self._process.log

    @property
    def running(self) -> bool:
        return self._process.running

    def start(self) -> None:
        """Return when it accepts logins."""
        if not self._epmd.running:
            self._epmd.start(
                [binary("epmd", package=_PACKAGE), "-port", str(self._epmd_port)],
                env=self._environment(),
                cwd=self.folder,
                ready=lambda: answers(self._epmd_port),
            )
        self._process.start(
            [str(self._scripts / "rabbitmq-server")],
            env=self._environment(),
            cwd=self.folder,
            ready=lambda: answers(self.port) and answers(self.tls_port),
            seconds=120,
        )

    def stop(self) -> None:
        """An orderly end of everything that was started."""
        self._process.stop()
        self._epmd.stop(5)

    def sync_definitions(self) -> None:
        """Bring the definitions of queues to the broker's disk.

        It confirms a declaration seconds before they are there (mnesia's log), so a broker that is
        killed in between forgets a durable queue with all its confirmed messages. No client can
        help that, so tests that kill the broker call this first.
        """
        self.ctl("eval", "mnesia:sync_log().")

    def kill(self) -> None:
        """kill -9 of the broker, as a crash of its machine would be."""
        self._process.kill()

    def pause(self) -> None:
        """The broker hangs: connections stay open, nobody answers."""
        self._process.pause()

    def resume(self) -> None:
        self._process.resume()

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl against this broker and return what it printed."""
        done = subprocess.run(
            [str(self._scripts / "rabbitmqctl"), "--quiet", *arguments],
            check=False,
            env=self._environment(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, f"rabbitmqctl {arguments[0]}: {done.stdout}{done.stderr}"
        return done.stdout

    def _environment(self) -> dict[str, str]:
        folder = self.folder
        return {
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            "HOME": str(folder),  # where Erlang looks for its cookie
            "RUNNING_UNDER_SYSTEMD": "1",  # the script then becomes the broker: one process id
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_CTL_DIST_PORT_MIN": str(self._ctl_port),
            "RABBITMQ_CTL_DIST_PORT_MAX": str(self._ctl_port + 20),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "env.conf"),
        }

    def _write_configuration(self) -> None:
        for name in ("data", "log"):
            (self.folder / name).mkdir(parents=True)
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        (self.folder / "enabled_plugins").write_text("[].\n")
        (self.folder / "env.conf").touch()
        key = self.folder / "key.pem"
        subprocess.run(
            [
                binary("openssl", package="openssl"),
                *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                *("-subj", "/CN=localhost", "-addext", f"subjectAltName=IP:{LOOPBACK}"),
                *("-keyout", str(key), "-out", str(self.ca_file)),
            ],
            check=True,
            capture_output=True,
        )
        settings = {
            "listeners.tcp.1": f"{LOOPBACK}:{self.port}",
            "listeners.ssl.1": f"{LOOPBACK}:{self.tls_port}",
            "ssl_options.cacertfile": self.ca_file,
            "ssl_options.certfile": self.ca_file,
            "ssl_options.keyfile": key,
            "default_user": self.user,
            "default_pass": self.password,
            "disk_free_limit.absolute": "50MB",
            "log.console": "true",
            "log.console.level": "info",
        }
        lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
        (self.folder / "rabbitmq.conf").write_text(lines)
