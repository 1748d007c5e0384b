"""The files of `deploy/` are well-formed, name what exists, and agree with each other."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._core.instance.ref import InstanceRef
from dagster._core.workspace.config_schema import process_workspace_config

from fuploader_dagster.cli.app import COMMANDS
from fuploader_dagster.front.server import LONGEST_ENDING_SECONDS
from fuploader_dagster.front.tokens import MASTER_VARIABLE
from fuploader_dagster.settings.loading import load_pipelines
from fuploader_dagster.settings.yaml_file import read_documents
from tests.deployment import (
    DEPLOY,
    DOCKERFILE,
    PROGRAMS,
    REPOSITORY,
    compose,
    environment_of,
    health_check_of_the_image,
    stages,
    the,
)

CONFIG = DEPLOY / "config"
SERVE: Any = next(one for one in COMMANDS if one.name == "serve").load()
UNITS = sorted((DEPLOY / "systemd").glob("fuploader*"))
SECRETS = re.findall(r"^(\w+)=", (DEPLOY / "env.example").read_text("utf-8"), re.M)
SERVICES = compose(dict.fromkeys(SECRETS, "abc123"))["services"]
OURS = {name: one for name, one in SERVICES.items() if one["image"] == "fuploader-dagster"}
OWN_BLOCKS = {"storage", "run_launcher", "local_artifact_storage", "compute_logs"}


def checked(*command: str) -> None:
    program = PROGRAMS / command[0]
    found = str(program) if program.exists() else shutil.which(command[0])
    assert found, f"the tests need {command[0]}"
    done = subprocess.run(
        [found, *command[1:]], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


@pytest.mark.parametrize("path", sorted({*REPOSITORY.glob("*.yaml"), *CONFIG.glob("*.yaml")}))
def test_nothing_is_said_twice_in_a_yaml_file(path: Path) -> None:
    """Of two the first is silently ignored."""
    assert read_documents(path)


def variables_of(name: str) -> set[str]:
    return set(re.findall(r"\{env: (\w+)\}", (CONFIG / name).read_text("utf-8")))


def example(name: str) -> dict[str, str]:
    text = (DEPLOY / "systemd" / name).read_text("utf-8")
    return dict(line.split("=", 1) for line in text.splitlines() if not line.startswith("#"))


def options(unit: str) -> dict[str, str]:
    text = (DEPLOY / "systemd" / unit).read_text("utf-8")
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.M))


def test_hadolint_has_nothing_to_say_of_the_dockerfile() -> None:
    checked("hadolint", "--failure-threshold", "style", str(DOCKERFILE))


def test_the_compose_file_is_as_its_schema_says() -> None:
    checked(
        "check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose.yaml")
    )


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    """With programs that exist here: it looks for them."""
    for unit in UNITS:
        text = unit.read_text("utf-8").replace("/opt/fuploader/bin", str(PROGRAMS))
        (tmp_path / unit.name).write_text(text)
    assert len(UNITS) == 5
    units = [str(tmp_path / unit.name) for unit in UNITS]
    checked("systemd-analyze", "verify", "--man=no", "--generators=no", *units)


def test_what_the_image_copies_exists_and_is_not_kept_from_it() -> None:
    copies = [one.value for stage in stages() for one in stage if one.name == "COPY"]
    sources = [one for copy in copies if "--from" not in copy for one in copy.split()[:-1]]
    assert len(sources) == 8
    admitted = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    assert "*" in admitted
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert f"!{source}" in admitted, source
    assert {one[1:] for one in admitted if one.startswith("!")} == set(sources)


def test_the_image_runs_as_the_user_that_it_makes_with_one_port() -> None:
    image = stages()[-1]
    user, group = the(image, "USER").value.split(":")
    made = next(one.value for one in image if one.name == "RUN")
    assert f"groupadd --gid {group} " in made
    assert f"useradd --uid {user} --gid {group} " in made
    assert int(user) > 0
    port = the(image, "EXPOSE").value
    command = the(image, "CMD").as_list()
    assert command[command.index("--port") + 1] == port
    assert health_check_of_the_image()[-2:] == ["--port", port]
    assert the(image, "STOPSIGNAL").value == "SIGTERM"


def test_no_secret_is_in_the_image_or_written_into_a_file() -> None:
    for stage in stages():
        assert not re.search(r"(?i)password|secret|token", str(environment_of(stage)))
    text = (DEPLOY / "compose.yaml").read_text("utf-8")
    values = re.findall(r"\w*(?:PASSWORD|PASS|SECRET_ACCESS_KEY|ACCESS_KEY_ID): (.*)", text)
    assert len(values) > 5
    assert [one for one in values if not re.fullmatch(r"\$\{\w+:\?[^}]+\}", one)] == []


def test_compose_asks_for_what_its_example_of_variables_has_and_for_nothing_else() -> None:
    text = (DEPLOY / "compose.yaml").read_text("utf-8")
    assert set(re.findall(r"(?<!\$)\$\{(\w+)", text)) == set(SECRETS)


def test_services_wait_for_others_by_conditions_that_those_can_meet() -> None:
    waits = [
        (other, wait["condition"])
        for service in SERVICES.values()
        for other, wait in service.get("depends_on", {}).items()
    ]
    assert len(waits) > 8
    for other, condition in waits:
        if condition == "service_healthy":
            assert "test" in SERVICES[other].get("healthcheck", {}) or other in OURS, other
        else:
            assert condition == "service_completed_successfully"
            assert SERVICES[other]["restart"] == "on-failure", other


def test_each_service_has_a_limit_for_its_end_and_is_started_again() -> None:
    for name, service in SERVICES.items():
        assert service["restart"] in ("unless-stopped", "on-failure"), name
        assert "stop_grace_period" in service or name == "bucket", name


def test_all_blocks_that_a_fleet_needs_no_others_of_are_those_of_the_repositorys_instance() -> None:
    ours, theirs = read(REPOSITORY / "dagster.yaml"), read(CONFIG / "dagster.yaml")
    shared = {key: value for key, value in ours.items() if key not in OWN_BLOCKS}
    assert {key: value for key, value in theirs.items() if key not in OWN_BLOCKS} == shared
    assert "run_launcher" not in theirs, "runs start where their slots are"


def test_the_instance_of_a_fleet_differs_from_the_others_in_its_history_alone() -> None:
    fleet = read(REPOSITORY / "dagster.fleet.yaml")
    assert fleet["storage"] == read(CONFIG / "dagster.yaml")["storage"]
    alone = read(REPOSITORY / "dagster.yaml")
    differ = {key for key in alone if alone[key] != fleet.get(key)}
    assert differ == {"storage", "run_launcher"}
    assert fleet.keys() == alone.keys() - {"run_launcher"}


@pytest.mark.parametrize("way", ["compose", "systemd"])
def test_dagster_loads_instance_and_workspace_with_the_environment_of_each_part(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = variables_of("dagster.yaml")
    reachable = variables_of("workspace.yaml")
    given = {
        "compose": [OURS[one]["environment"] for one in ("daemon", "webserver", "node1")],
        "systemd": [example("dagster.env.example")],
    }[way]
    for environment in given:
        assert wanted | reachable <= environment.keys()
        for name in wanted | reachable:
            monkeypatch.setenv(name, environment[name])
        reference = InstanceRef.from_dir(str(CONFIG))
        assert reference.storage_data is not None
        assert reference.storage_data.class_name == "PostgresHistory"
        workspace = process_workspace_config(read(CONFIG / "workspace.yaml"))
        assert workspace.success, workspace.errors


@pytest.mark.parametrize("way", ["compose", "systemd"])
def test_the_pipelines_load_with_the_environment_of_the_node(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {
        "compose": OURS["node1"]["environment"],
        "systemd": example("node.env.example"),
    }[way]
    wanted = variables_of("fuploader.yaml")
    assert wanted <= environment.keys()
    for name in {*wanted, "NODE_ID"}:
        monkeypatch.setenv(name, environment[name] or "abc123")
    pipelines = load_pipelines(CONFIG / "fuploader.yaml")
    assert [one.node for one in pipelines.values()] == ["node1"]
    assert "abc123" not in repr(pipelines)


def test_folders_of_the_configuration_are_volumes_and_state_directories_of_those_who_write() -> (
    None
):
    slots = str(read(CONFIG / "fuploader.yaml")["storage_root"])
    instance = read(CONFIG / "dagster.yaml")
    history = instance["local_artifact_storage"]["config"]["base_dir"]
    assert instance["compute_logs"]["config"]["base_dir"].startswith(history)
    assert f"node1:{slots}" in OURS["node1"]["volumes"]
    for name in ("node1", "daemon", "webserver"):
        assert f"dagster:{history}" in OURS[name]["volumes"]
        directories = options(f"fuploader-{name.rstrip('1')}.service")["StateDirectory"].split()
        assert history.removeprefix("/var/lib/") in directories
        assert slots.removeprefix("/var/lib/") in directories or name != "node1"
    made = next(one.value for one in stages()[-1] if one.name == "RUN")
    assert f"{slots} {history}" in made


@pytest.mark.parametrize("part", ["node", "daemon", "webserver", "serve"])
def test_a_unit_runs_what_the_container_runs_and_has_as_long_to_end(part: str) -> None:
    service = OURS[{"node": "node1"}.get(part, part)]
    unit = options(f"fuploader-{part}.service")
    command = " ".join(service.get("command") or the(stages()[-1], "CMD").as_list())
    assert unit["ExecStart"] == f"/opt/fuploader/bin/{command}".replace("0.0.0.0", "127.0.0.1")
    assert f"{unit['TimeoutStopSec']}s" == service["stop_grace_period"]
    assert unit["KillMode"] == "mixed", "as in a container: the others are told by the first"


def test_the_front_door_runs_where_the_node_does_and_has_time_to_answer() -> None:
    unit, node = options("fuploader-serve.service"), options("fuploader-node.service")
    for name in ("User", "KillMode", "RequiresMountsFor"):
        assert unit[name] == node[name]
    assert unit["StateDirectory"] in node["StateDirectory"].split()
    assert float(unit["TimeoutStopSec"]) > LONGEST_ENDING_SECONDS
    command = unit["ExecStart"].removeprefix("/opt/fuploader/bin/fuploader ").split()
    assert {*command[1::2]} <= {one for each in SERVE.params for one in each.opts}
    service, node1 = OURS["serve"], OURS["node1"]
    assert f"node1:{read(CONFIG / 'fuploader.yaml')['storage_root']}" in service["volumes"]
    shared = {name: node1["environment"][name] for name in ("NODE_ID", "RABBITMQ_URL", "REDIS_URL")}
    assert shared.items() <= service["environment"].items()


def test_the_front_door_has_a_token_a_port_and_a_health_check_that_agree() -> None:
    service = OURS["serve"]
    command = service["command"]
    port = command[command.index("--port") + 1]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"http://127.0.0.1:{port}/health/ready" in service["healthcheck"]["test"][-1]
    assert service["environment"][MASTER_VARIABLE] == "abc123", "of .env"
    assert set(example("serve.env.example")) == {MASTER_VARIABLE}
    served = [one["serve"] for one in read(CONFIG / "fuploader.yaml")["pipelines"].values()]
    assert served == [True]


def test_what_the_page_names_of_these_files_exists() -> None:
    page = (REPOSITORY / "docs" / "deployment.md").read_text("utf-8")
    named = re.findall(r"`?(deploy/[\w./-]*\w)", page)
    assert len(named) > 10
    assert [one for one in named if not list(REPOSITORY.glob(one.rstrip(".") + "*"))] == []
    files = {path.name for path in DEPLOY.iterdir()} - {"Dockerfile.dockerignore"}
    assert [one for one in files if f"deploy/{one}" not in page] == []
    grace = OURS["node1"]["stop_grace_period"].removesuffix("s")
    assert f"({grace} s)" in page
