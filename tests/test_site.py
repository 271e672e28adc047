"""Every page of the built documentation, as a reader's browser shows it."""

import functools
import http.server
import importlib.util
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urljoin

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# What a page tells of itself: its own overflow, what of it is cut, its anchors, the links it holds.
FACTS = """() => ({
    overflow: document.documentElement.scrollWidth - innerWidth,
    cut: [...document.querySelectorAll("pre > code, .md-typeset__scrollwrap")]
        .filter(box => box.scrollWidth > box.clientWidth + 1).map(box => box.innerText.slice(0, 60)),
    anchors: [...document.querySelectorAll("[id], a[name]")].map(spot => spot.id || spot.name),
    links: [...document.querySelectorAll("a[href]")].map(link => link.href),
})"""


@pytest.fixture(scope="module")
def site(root: Path) -> Path:
    """The built documentation; skipped, or failed where a browser is required, if it cannot be opened."""
    missing = [
        what
        for what, there in (
            ("site/ (nox -s docs builds it)", (root / "site" / "index.html").is_file()),
            ("chromium or google-chrome", BROWSER is not None),
            ("playwright (pip install playwright)", importlib.util.find_spec("playwright") is not None),
        )
        if not there
    ]
    if missing and os.environ.get("REQUIRE_BROWSER"):
        pytest.fail(f"missing: {', '.join(missing)}")
    if missing:
        pytest.skip(f"missing: {', '.join(missing)}")
    return root / "site"


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Silent, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def opened(address: str, site: Path, width: int, scheme: str) -> dict[str, dict[str, Any]]:
    """Open every page in a window of this width; return what each tells, with the errors of its console."""
    from playwright.sync_api import sync_playwright

    pages = {}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        errors: list[str] = []
        tab.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        for file in sorted(site.rglob("*.html")):
            if file.name != "404.html":
                errors.clear()
                url = address + file.relative_to(site).as_posix().removesuffix("index.html")
                tab.goto(url)
                pages[url] = tab.evaluate(FACTS) | {"errors": list(errors)}
        browser.close()
    return pages


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_pages_fit_the_window_and_their_links_lead_somewhere(
    address: str, site: Path, width: int, scheme: str
) -> None:
    pages = opened(address, site, width, scheme)
    assert len(pages) > 30
    for url, page in pages.items():
        assert page["overflow"] <= 0, f"{url} is {page['overflow']} px wider than {width} px"
        assert not page["errors"], f"{url}: {page['errors']}"
        assert width < 1280 or not page["cut"], f"{url}: cut at {width} px: {page['cut']}"
        for link in page["links"]:
            target, anchor = urldefrag(urljoin(url, link))
            if target in pages:
                assert not anchor or anchor in pages[target]["anchors"], f"{url} links to no place: {link}"
            elif target.startswith(address):
                assert (site / target.removeprefix(address)).is_file(), f"{url} links to no file: {link}"
