"""The README's picture: the page while the main job replays.

    .venv/bin/python -m tests.browser.picture docs/page.png
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from headrace import running
from tests.browser.conftest import CHROMIUM, DESK
from tests.scene import ROOT, eventually


def main(file: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "returns" / "stack.json"
        job = subprocess.Popen(
            [sys.executable, str(ROOT / "examples" / "returns" / "replay.py")],
            env={**os.environ, "HEADRACE_HOME": folder},
            stdout=subprocess.DEVNULL,
        )
        try:
            eventually(lambda: running.read(note) is not None, 200)
            found = running.read(note)
            assert found is not None
            take(found.gateway, file)
        finally:
            job.send_signal(signal.SIGINT)
            job.wait(60)


def take(gateway: str, file: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        page = browser.new_page(viewport=DESK, color_scheme="light")
        page.goto(gateway)
        expect(page.get_by_role("status")).to_have_text("live", timeout=60_000)
        chosen = page.get_by_role("button", name="ROC AUC")
        chosen.click()
        expect(chosen).to_have_attribute("aria-pressed", "true")
        # Some weeks of outcomes: before, every line is noise.
        measured = page.get_by_role("region", name="quality").locator("span", has_text="outcomes")
        expect(measured).to_have_text(re.compile(r"^[4-9]\d\.\dk outcomes"), timeout=300_000)
        page.mouse.move(0, 0)
        page.wait_for_timeout(1500)
        page.screenshot(path=file)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
