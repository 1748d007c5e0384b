"""In a Dagster project of somebody else: from the built wheel, beside what it has already.

The host has packages named `resources` and `sensors`, an instance of its own and a sensor of its
own. Its environment sees what the tests' environment has installed, and of this project only what
is in the wheel.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

from fuploader_dagster.cli.init import write_project
from tests.settings import archived_files

REPOSITORY = Path(__file__).parents[2]
NOT_SOURCES = (".git", ".venv", "build", "dist", "*.egg-info", "data", ".dagster", "__pycache__")
TYPE = "fuploader_dagster.QueueToObjectStore"
HOST = {
    "dagster.yaml": "telemetry: {enabled: false}\n",
    "host/__init__.py": "",
    "host/sensors.py": """\
        import dagster as dg


        @dg.sensor(name="hosts_sensor", job_name="hosts_job", minimum_interval_seconds=30)
        def hosts_sensor(context):
            return dg.SkipReason("nothing to do")
        """,
    "resources/__init__.py": "class Warehouse:\n    pass\n",
    "sensors/__init__.py": "WHOSE = 'the host'\n",
    "host/definitions.py": """\
        import dagster as dg
        from fuploader_dagster import EmbeddedQueue, Local, Pipeline, SqliteState, build_definitions

        import sensors
        from host.sensors import hosts_sensor
        from resources import Warehouse


        @dg.asset
        def orders() -> None:
            assert sensors.WHOSE == "the host"


        hosts_job = dg.define_asset_job("hosts_job", selection=["orders"])
        documents = Pipeline(
            name="documents",
            source=EmbeddedQueue(path="data/queue"),
            state=SqliteState(path="data/state.sqlite"),
            store=Local(path="data/object-store"),
            min_free_bytes=1024,
        )
        defs = dg.Definitions.merge(
            dg.Definitions(
                assets=[orders],
                jobs=[hosts_job],
                sensors=[hosts_sensor],
                resources={"warehouse": dg.ResourceDefinition.hardcoded_resource(Warehouse())},
            ),
            build_definitions(documents),
        )
        """,
    "once.py": """\
        # One pass: messages, a worker until they are sealed, a tick, the run that it asks for.
        import json, time
        from pathlib import Path

        import dagster as dg
        import fuploader_dagster
        from fuploader_dagster.cli.publish import numbered_bodies
        from fuploader_dagster.delivery.recovery import seal_on_request
        from fuploader_dagster.intake.supervisor import Supervisor, supervisor_for
        from host.definitions import defs, documents

        lines = [b'{"file_name": "%d.json", "payload": {"n": %d}}' % (n, n) for n in range(200)]
        publisher = documents.source.publisher()
        publisher.publish((body, {}) for _, body in numbered_bodies(lines, documents))
        instance = dg.DagsterInstance.get()
        repository = defs.get_repository_def()
        sensor = repository.get_sensor_def("documents_drain")
        slowest, result, supervisor = 0.0, None, supervisor_for(documents.intake())
        deadline = time.monotonic() + 200
        asked = False
        while (result is None or not result.run_requests) and time.monotonic() < deadline:
            started = time.perf_counter()
            context = dg.build_sensor_context(
                instance=instance, resources=fuploader_dagster.build_resources(documents)
            )
            result = sensor(context)
            slowest = max(slowest, time.perf_counter() - started)
            if publisher.backlog() == 0 and not asked:
                asked = True
                seal_on_request(documents)
            time.sleep(0.3)
        supervisor.stop()
        publisher.close()
        for request in result.dynamic_partitions_requests:
            instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
        (request,) = result.run_requests
        job = repository.get_job("documents_ship")
        run = job.execute_in_process(instance=instance, tags=dict(request.tags))
        assets = [node for node in defs.resolve_asset_graph().asset_nodes]
        print(json.dumps({
            "from": fuploader_dagster.__file__,
            "success": run.success,
            "slowest_tick_seconds": slowest,
            "pools": sorted(str(p) for node in assets for p in (node.pools or ())),
            "tags": dict(request.tags),
            "hosts_sensor": str(repository.get_sensor_def("hosts_sensor").name),
            "checks": {e.check_name: e.passed for e in run.get_asset_check_evaluations()},
        }))
        """,
}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that has the wheel, which is made of the sdist."""
    folder = tmp_path_factory.mktemp("host-environment")
    sources = folder / "sources"
    shutil.copytree(REPOSITORY, sources, ignore=shutil.ignore_patterns(*NOT_SOURCES), symlinks=True)
    build = f"from setuptools import build_meta; print(build_meta.build_sdist({str(folder)!r}))"
    sdist = folder / run(sys.executable, "-c", build, folder=sources).splitlines()[-1]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(sdist))
    (wheel,) = folder.glob("fuploader_dagster-*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"))
    found = folder / "venv" / "bin" / "python"
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # Plain paths: the .pth files behind it, an editable install among them, are not followed.
    here = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(here) + "\n")
    run(*pip, "--python", str(found), "install", "-q", "--no-deps", "--no-index", str(wheel))
    return found


def run(*command: str, folder: Path | None = None, **environment: str) -> str:
    """Run a command; its output. Fails with what it said."""
    kept = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    answer = subprocess.run(
        command,
        cwd=folder,
        env={**kept, "COLUMNS": "200", "PYTHONWARNINGS": "ignore", **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_sdist_and_wheel_hold_every_file_and_start_a_project(python: Path, tmp_path: Path) -> None:
    (packages,) = (python.parents[1] / "lib").glob("python*/site-packages")
    assert files_in(packages / "fuploader_dagster") == files_in(REPOSITORY / "fuploader_dagster")
    run(str(python.with_name("fuploader")), "init", "orders", folder=tmp_path)
    write_project(tmp_path / "here" / "orders")
    started = files_in(tmp_path / "orders")
    assert started == files_in(tmp_path / "here" / "orders")
    assert {"dagster.yaml", "workspace.yaml", "fuploader.yaml", ".gitignore"} <= started.keys()


def files_in(folder: Path) -> dict[str, bytes]:
    """Names and contents of all files below, also behind links to folders."""
    found = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        if Path(parent).name != "__pycache__":
            paths = [Path(parent, name) for name in names]
            found |= {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return found


def test_a_host_project_with_packages_of_the_same_names_ships_messages_and_keeps_its_own(
    python: Path, tmp_path: Path
) -> None:
    for name, text in HOST.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    module = ["-m", "host.definitions"]
    said = run(str(python), "-m", "dagster", "definitions", "validate", *module, folder=tmp_path)
    assert "Traceback" not in said
    instance = (tmp_path / "dagster.yaml").read_text()
    home = {"DAGSTER_HOME": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    found = json.loads(run(str(python), "once.py", folder=tmp_path, **home).splitlines()[-1])
    assert str(python.parents[1]) in found["from"]
    assert found["success"] is True
    assert found["hosts_sensor"] == "hosts_sensor"
    assert found["pools"] == []
    assert not [tag for tag in found["tags"] if "concurrency" in tag or "pool" in tag]
    assert found["checks"] == {"archive_matches_seal": True, "store_reachable": True}
    assert found["slowest_tick_seconds"] < 10  # it never waits for queue, disk or store
    files = archived_files(tmp_path / "data" / "object-store")
    assert files == {f"{n}.json": [b'{"n":%d}' % n] for n in range(200)}
    assert (tmp_path / "dagster.yaml").read_text() == instance


def test_dagsters_tools_find_the_component_without_being_told(python: Path, tmp_path: Path) -> None:
    package = tmp_path / "src" / "host"
    (package / "defs").mkdir(parents=True)
    for module in (package / "__init__.py", package / "defs" / "__init__.py"):
        module.touch()
    (package / "definitions.py").write_text(
        "from pathlib import Path\nimport dagster as dg\n\n\n@dg.definitions\ndef defs():\n"
        "    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)\n"
    )
    (tmp_path / "pyproject.toml").write_text(
        '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "host"\n'
    )
    listing = (
        "from dagster.components.core import package_entry\n"
        "found = package_entry.discover_entry_point_package_objects()\n"
        "print([f'{key.namespace}.{key.name}' for key in found])"
    )
    assert f"'{TYPE}'" in run(str(python), "-c", listing)
    if find_spec("dagster_dg_cli") is None:
        return

    def dg(*arguments: str) -> str:
        program = "from dagster_dg_cli.cli import main; main()"
        path = {"PYTHONPATH": str(package.parent)}
        return run(str(python), "-c", program, *arguments, folder=tmp_path, **path)

    assert TYPE in dg("list", "components")
    dg("scaffold", "defs", TYPE, "documents")
    assert "documents/uploaded_archive" in dg("list", "defs", "--json")
