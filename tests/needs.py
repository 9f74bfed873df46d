"""What some tests need and not every machine has: a browser, and what `make book` makes."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import NoReturn

import pytest
from playwright.sync_api import Browser, sync_playwright

# No window, and no word to anybody but the pages that it opens.
QUIET = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync""".split()


def missing(what: str) -> NoReturn:
    """A visible skip on a reader's machine, a failure in continuous integration."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium as it is installed here."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    if not (program := next(filter(None, map(shutil.which, names)), None)):
        missing("no browser: install Chromium, in Debian `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=QUIET)
        yield browser
        browser.close()
