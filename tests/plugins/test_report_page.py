"""The report in a real browser, as wide as a desk and as a phone, in the sandbox that the artifact pages give it."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from include.home import PROJECT
from include.laptop.home import python_of
from plugins.artifact_pages import _SANDBOX

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    subprocess.run(
        [str(python_of("jobs")), "-m", "tests.jobs.report.world", str(folder)], cwd=PROJECT, check=True, timeout=120
    )
    return folder


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser, pages):
    """Open one of the pages; returns it and every address that it asked for, with what its console said."""
    context = browser.new_context()

    def open_page(name: str, width: int, scheme: str = "light"):
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        noise: list[str] = []
        page.on("console", lambda message: noise.append(message.text))
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("dialog", lambda dialog: noise.append("a dialog"))
        body = (pages / f"{name}.html").read_text()

        def answer(route):
            if route.request.url == "http://anemone.test/":
                route.fulfill(body=body, headers={**_SANDBOX, "Content-Type": "text/html; charset=utf-8"})
            else:
                noise.append(route.request.url)
                route.abort()

        page.route("**/*", answer)
        page.goto("http://anemone.test/")
        return page, noise

    yield open_page
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["promoted", "stopped"])
def test_opens_quietly_and_fits(opened, name, width, scheme):
    page, noise = opened(name, width, scheme)
    assert noise == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("h1").inner_text() in ("Live: toy version 2", "Stopped by the data-quality gate")


def test_text_of_charts_keeps_its_size_on_a_phone(opened):
    page, _ = opened("promoted", 390)
    sizes = page.evaluate(
        """[...document.querySelectorAll('svg text')].filter(text => text.getBoundingClientRect().width > 0)
           .map(text => text.getBoundingClientRect().height)"""
    )
    assert len(sizes) > 20 and min(sizes) >= 11


def test_prints(opened):
    page, _ = opened("promoted", 1280)
    assert page.pdf(format="A4").startswith(b"%PDF")
