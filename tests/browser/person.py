"""Plays a person with a browser: clicks, reads, and waits for what a page should say."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

WAIT_SECONDS = 100.0
"""How long a page may take until it says something: a watch comes once a minute, and this machine
may be busy."""
WIDTH, HEIGHT = 1280, 800


@dataclass
class Answer:
    """What it cost to have a question answered, from the first page on."""

    question: str
    clicks: int
    seconds: float


@dataclass
class Person:
    """Pages are opened by links from `/`, or by an address where a person would have it in a
    message or a bookmark."""

    page: Page
    address: str
    pictures: Path | None = None
    """Folder for the pictures of the documentation; None takes none."""
    answers: list[Answer] = field(default_factory=list)
    _clicks: int = 0

    def open(self, path: str) -> None:
        self.page.goto(self.address + path)

    def click(self, what: str | Locator, *, role: str = "") -> None:
        """Click on a text, on what has this role and name, or on something found already."""
        if isinstance(what, str):
            what = self.find(what, role=role)
        what.click(timeout=WAIT_SECONDS * 1000)
        self._clicks += 1

    def find(self, what: str, *, role: str = "") -> Locator:
        if role:
            return self.page.get_by_role(role, name=what).first  # type: ignore[arg-type]
        return self.page.get_by_text(what, exact=True).first

    def sees(self, text: str | re.Pattern[str]) -> str:
        """Wait until the page says it; returns the whole piece of text that has it in it."""
        found = self.page.get_by_text(text).first
        expect(found).to_be_visible(timeout=WAIT_SECONDS * 1000)
        return found.inner_text()

    def sees_no_more(self, text: str | re.Pattern[str]) -> None:
        expect(self.page.get_by_text(text)).to_have_count(0, timeout=WAIT_SECONDS * 1000)

    def check_says(self, check: str, state: str) -> None:
        """Wait until the list of an asset's checks says this of one of them."""
        # Dagster writes the name of the check twice, to measure it.
        row = self.page.locator("a, div, button").filter(
            has_text=re.compile(rf"^({check}\s*)+{state}$")
        )
        expect(row.first).to_be_visible(timeout=WAIT_SECONDS * 1000)

    def looks_at(self, pipeline: str, asset: str) -> None:
        """On the page of the lineage: open the pipeline's group in the list, click on the asset."""
        self.click(self._listed(pipeline).get_by_role("img").first)
        self.click(self._listed(asset))

    def looks_at_checks(self, pipeline: str, asset: str) -> None:
        """From any page to the list of an asset's checks."""
        self.click("Lineage")
        self.looks_at(pipeline, asset)
        self.click("View all check details")

    def _listed(self, name: str) -> Locator:
        return (
            self.page.locator("[class*=AssetSidebarNode_itemContainer]").filter(has_text=name).first
        )

    def switch(self, automation: str, *, on: bool) -> None:
        """Switch a sensor or schedule on the page of automations."""
        self.open("/")
        self.click("Automation")
        row = self.page.locator("[class*=ListItem_listItem]").filter(has_text=automation).first
        label = row.locator("label[class*=formatSwitch]")
        switch = label.locator("input")
        # Until the row has its second line, the switch is off, whatever the sensor is.
        expect(row.get_by_text("Standard sensor")).to_be_visible(timeout=WAIT_SECONDS * 1000)
        expect(switch).to_be_checked(checked=not on, timeout=WAIT_SECONDS * 1000)
        self.click(label)
        expect(switch).to_be_checked(checked=on, timeout=WAIT_SECONDS * 1000)

    def launches(self, job: str, **config: str) -> None:
        """Launch a job from its launchpad, with these values written over those that stand there;
        ends on the page of its run."""
        self.click("Jobs")
        self.click(job)
        self.click("Launchpad")
        for name, value in config.items():
            self._writes(name, value)
        launch = self.find("Launch Run", role="button")
        expect(launch).to_be_enabled(timeout=WAIT_SECONDS * 1000)
        self.click(launch)
        if job.endswith("_replay"):
            self.click("Confirm", role="button")  # "without a partition?"
        self.page.wait_for_url("**/runs/*", timeout=WAIT_SECONDS * 1000)

    def materializes_all(self, asset: str) -> None:
        """Launch a backfill of all partitions of an asset, as its page offers it."""
        self.open(f"/assets/{asset}?view=partitions")
        self.click("Materialize", role="button")
        self.click("All")
        self.click("Launch backfill", role="button")

    def looks_at_partition(self, asset: str, number: str) -> None:
        """Open the page of an asset's partition by the number that its name ends with."""
        self.open(f"/assets/{asset}?view=partitions")
        partition = self.page.get_by_text(re.compile(rf"s\d+-0*{number}$")).first
        self.click(partition)

    def _writes(self, name: str, value: str) -> None:
        """Write over what stands in the line of this name."""
        line = self.page.locator("pre.CodeMirror-line").filter(has_text=re.compile(rf"^\s*{name}:"))
        self.click(line.first)
        keyboard = self.page.keyboard
        keyboard.press("End")
        keyboard.press("Shift+Home")
        keyboard.type(f"{name}: {value}")
        self.sees(f"{name}: {value}")

    def takes_a_picture(self, name: str, *, height: int = HEIGHT) -> None:
        if self.pictures is None:
            return
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(1000)  # animations
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": height}
        self.page.screenshot(path=self.pictures / f"{name}.png", clip=clip)  # type: ignore[arg-type]

    @contextmanager
    def asks(self, question: str) -> Iterator[None]:
        """From the first page on, until the answer is on the page: counts clicks and seconds."""
        self.open("/")
        self.find("Lineage").wait_for()
        self._clicks, began = 0, time.monotonic()
        yield
        self.answers.append(Answer(question, self._clicks, time.monotonic() - began))
