"""The steps of the Dockerfile, run without a container engine: only its own lines are executed.

Its absolute folders become folders of the test, and the environment is empty but for what a base
image has and how pip is set up here. The user and the folders of the last stage are made in a mount
namespace, with a copy of the lists of users.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deployment import REPOSITORY, Instruction, environment_of, stages, the

FOLDERS = ("/build", "/wheels", "/opt/build", "/opt/fuploader")
OF_PIP = ("PIP_", "HTTP", "http", "NO_PROXY", "no_proxy", "SSL_", "REQUESTS_")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root in which the first stage was run."""
    root = tmp_path_factory.mktemp("image")
    stage = stages()[0]
    work = root / the(stage, "WORKDIR").value.lstrip("/")
    work.mkdir()
    programs = root / "programs"
    programs.mkdir()
    python = programs / "python"  # what a base image calls so
    python.write_text(f'#!/bin/sh\nexec "{Path(sys.base_prefix) / "bin" / "python3"}" "$@"\n')
    python.chmod(0o755)
    outside = {k: v for k, v in os.environ.items() if k.startswith(OF_PIP)}
    own = {
        "HOME": os.environ["HOME"],
        "PATH": f"{programs}:/usr/bin:/bin",
        **environment_of(stage),
    }
    own.pop("PIP_NO_CACHE_DIR")  # it keeps the image small, and would only make the test slow
    for one in stage:
        if one.name == "COPY":
            copy(one, work)
        elif one.name == "RUN":
            succeeds("sh", "-e", "-c", moved(one.value, root), folder=work, env={**outside, **own})
    return root


def copy(instruction: Instruction, work: Path) -> None:
    """As Docker does: a folder's content into the target, links as they are."""
    *sources, target = instruction.value.split()
    for source in sources:
        path = REPOSITORY / source
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(path, work / target, symlinks=True, ignore=ignored)
        else:
            (work / target).mkdir(exist_ok=True)
            shutil.copy(path, work / target)


def moved(line: str, root: Path) -> str:
    """The line with the folders of the image below the root."""
    return re.sub(rf"(?<![\w/])(?=(?:{'|'.join(FOLDERS)})\b)", str(root), line)


def succeeds(*command: str, folder: Path, env: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.timeout(1200)
def test_the_steps_install_what_the_lock_lists_and_the_commands_of_the_image_start(
    image: Path, tmp_path: Path
) -> None:
    last = stages()[-1]
    (copied,) = (one.value for one in last if one.name == "COPY")
    assert copied == "--from=build /opt/fuploader /opt/fuploader"
    programs = image / "opt" / "fuploader" / "bin"
    listing = "from importlib.metadata import distributions as all\n"
    listing += "for one in all(): print(one.name, one.version)"
    env = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path)}
    lines = succeeds(str(programs / "python"), "-c", listing, folder=tmp_path, env=env)
    installed = dict(line.split() for line in lines.splitlines())
    lock = (REPOSITORY / "requirements" / "run.txt").read_text("utf-8")
    listed = {normal(one) for one in re.findall(r"^([\w.-]+)==", lock, re.M)}
    found = {normal(one) for one in installed}
    assert found - listed == {"fuploader-dagster"}
    assert {"dagster", "dagster-postgres", "boto3", "pika", "redis"} <= found
    for command in (["dagster", "--version"], ["dagster-daemon", "--version"]):
        succeeds(str(programs / command[0]), *command[1:], folder=tmp_path, env=env)
    succeeds(str(programs / "fuploader"), "init", "here", folder=tmp_path, env=env)
    compiled = "import crcmod._crcfunext"  # else it would be slow, and nobody would say so
    succeeds(str(programs / "python"), "-c", compiled, folder=tmp_path, env=env)
    assert not (programs / "pip").exists()
    assert the(last, "CMD").as_list()[0] in {path.name for path in programs.iterdir()}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_user_of_the_image_is_made_and_owns_its_folders_alone(tmp_path: Path) -> None:
    assert os.geteuid() == 0, "it makes a user: run it as root, in a container with --privileged"
    last = stages()[-1]
    (made,) = (one.value for one in last if one.name == "RUN")
    users = tmp_path / "etc"
    users.mkdir()
    for name in ("passwd", "group", "shadow", "gshadow", "login.defs"):
        if (path := Path("/etc") / name).exists():
            shutil.copy(path, users / name)
    script = (
        f'mount --bind "{users}" /etc\n'
        "mount -t tmpfs none /var/lib; mount -t tmpfs none /var/mail\n"
        f"{made}\n"
        "stat --format '%n %u %g %a' /var/lib/fuploader /var/lib/dagster /etc/fuploader\n"
        "setpriv --reuid 10001 --regid 10001 --clear-groups touch /var/lib/fuploader/slot\n"
        "grep ^fuploader: /etc/passwd\n"
    )
    path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    said = succeeds("unshare", "--mount", "sh", "-e", "-c", script, folder=tmp_path, env=path)
    assert said.splitlines() == [
        "/var/lib/fuploader 10001 10001 700",
        "/var/lib/dagster 10001 10001 700",
        "/etc/fuploader 0 0 755",
        "fuploader:x:10001:10001::/var/lib/dagster:/usr/sbin/nologin",
    ]
    user = the(last, "USER").value.split(":")
    assert user == ["10001", "10001"]
