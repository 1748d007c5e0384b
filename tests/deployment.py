"""The files of `deploy/` as an engine of containers reads them, and their parts as processes.

No engine is needed: what they say (commands, environment, ports, addresses) is taken from the files
themselves, and only places are replaced: folders by folders of the test, addresses by those of its
servers. So a test that uses this fails if the files say something that does not work.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[1]
DEPLOY = REPOSITORY / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
PROGRAMS = Path(sys.executable).parent
_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?::\?[^}]*)?\})")


@dataclass(frozen=True)
class Instruction:
    """One line of a Dockerfile, continued lines joined."""

    name: str
    value: str

    def as_list(self) -> list[str]:
        """The exec form."""
        found: list[str] = json.loads(self.value)
        return found


def stages() -> list[list[Instruction]]:
    """The instructions of each stage, its FROM first; what stands before the first is left out."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text("utf-8"), flags=re.M)
    lines = [line.strip() for line in re.sub(r"\\\n", " ", text).splitlines() if line.strip()]
    found: list[list[Instruction]] = []
    for line in lines:
        name, value = line.split(maxsplit=1)
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append(Instruction(name, " ".join(value.split())))
    return found


def environment_of(stage: list[Instruction]) -> dict[str, str]:
    pairs = [word for one in stage if one.name == "ENV" for word in shlex.split(one.value)]
    return dict(pair.split("=", 1) for pair in pairs)


def the(stage: list[Instruction], name: str) -> Instruction:
    """The only one of this name."""
    (found,) = (one for one in stage if one.name == name)
    return found


def health_check_of_the_image() -> list[str]:
    check = the(stages()[-1], "HEALTHCHECK").value
    return Instruction("CMD", check.split(" CMD ", 1)[1]).as_list()


def compose(secrets: Mapping[str, str]) -> dict[str, Any]:
    """compose.yaml with its variables filled in; one without a value raises `KeyError`."""

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [filled(inner) for inner in value]
        if isinstance(value, str):
            return _VARIABLE.sub(lambda match: secrets[match[1]] if match[1] else "$", value)
        return value

    read: dict[str, Any] = filled(yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8")))
    return read


@dataclass(frozen=True)
class Part:
    """A service of compose.yaml that runs our image, as a process of this machine."""

    command: list[str]
    environment: dict[str, str]
    health_check: list[str]
    stop_seconds: float

    def run(self, *command: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """As `docker compose exec` does."""
        return subprocess.run(
            command or self.command,
            env=self.environment,
            cwd=self.environment["HOME"],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )


class Installation:
    """Our services of compose.yaml, in a folder."""

    def __init__(
        self, folder: Path, secrets: Mapping[str, str], addresses: Mapping[str, str]
    ) -> None:
        """`addresses`: what takes the place of what: of an address like `rabbitmq:5672` wherever it
        stands, of a host's name or a port only where it is the whole value."""
        self.slots, self.history = folder / "slots", folder / "dagster"
        self._etc = folder / "etc"
        for made in (self.slots, self.history, folder / "tmp"):
            made.mkdir(parents=True)
        self._places = {
            "/etc/fuploader": str(self._etc),
            "/var/lib/fuploader": str(self.slots),
            "/var/lib/dagster": str(self.history),
            "/opt/fuploader/bin": str(PROGRAMS),
        }
        self._addresses = addresses
        self._temporary = folder / "tmp"
        shutil.copytree(DEPLOY / "config", self._etc)
        for file in self._etc.iterdir():
            file.write_text(self.placed(file.read_text()))
        self._services = compose(secrets)["services"]

    def placed(self, text: str) -> str:
        """With folders and addresses of the test."""
        addresses = {old: new for old, new in self._addresses.items() if ":" in old or old == text}
        for old, new in {**self._places, **addresses}.items():
            text = re.sub(rf"(?<![\w.]){re.escape(old)}(?!\w)", new, text)
        return text

    def configuration(self) -> dict[str, bytes]:
        """Files alone: Dagster tries to make folders there, and goes on where it cannot."""
        return {path.name: path.read_bytes() for path in self._etc.iterdir() if path.is_file()}

    def part(self, name: str) -> Part:
        image = stages()[-1]
        service = self._services[name]
        check = service.get("healthcheck", {}).get("test", ["CMD", *health_check_of_the_image()])
        assert check[0] == "CMD", "a program of the image, not a line of a shell"
        values = {**environment_of(image), **service["environment"]}
        return Part(
            command=[
                self.placed(one) for one in service.get("command") or the(image, "CMD").as_list()
            ],
            environment={
                "HOME": str(self.history),
                "TMPDIR": str(self._temporary),
                **{key: self._value(key, value) for key, value in values.items()},
            },
            health_check=[self.placed(one) for one in check[1:]],
            stop_seconds=float(service.get("stop_grace_period", "10s").removesuffix("s")),
        )

    def _value(self, name: str, value: str) -> str:
        return value if name == "NODE_ID" else self.placed(value)  # not the name of a host
