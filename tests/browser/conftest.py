"""One project and one browser for all of these tests: each of them looks after other messages.

`PICTURES=1` has them write the pictures of the documentation; a run without it changes no file of
the repository.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser.person import HEIGHT, WIDTH, Answer, Person
from tests.browser.project import Project
from tests.servers.dagster_dev import REPOSITORY
from tests.servers.process import binary
from tests.servers.swift import SwiftServer

ANSWERED = "question"
PICTURES = REPOSITORY / "docs" / "images"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium. Without a sandbox: it needs rights that a container does not have, and
    sees only pages of this machine."""
    program = binary("chromium", package="chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def project(swift: SwiftServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with Project(tmp_path_factory.mktemp("operator") / "project", swift) as running:
        yield running


@pytest.fixture
def person(
    chromium: Browser, project: Project, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Person]:
    """A person with an empty browser. A test that fails leaves a picture of what was seen."""
    page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    one = Person(page, project.address, PICTURES if os.environ.get("PICTURES") else None)
    yield one
    page.screenshot(path=tmp_path / "last.png")
    for answer in one.answers:
        said = (answer.question, answer.clicks, answer.seconds)
        request.node.user_properties.append((ANSWERED, said))
    page.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What it cost to have the operator's questions answered."""
    answers = [
        Answer(*said)
        for report in terminalreporter.getreports("")  # of setups and teardowns that passed
        for name, said in report.user_properties
        if name == ANSWERED and report.when == "teardown"
    ]
    if not answers:
        return
    terminalreporter.section("from the first page of the UI to the answer")
    for answer in answers:
        terminalreporter.write_line(
            f"{answer.question:45}{answer.clicks:>3} clicks{answer.seconds:>8.1f} s"
        )
