"""The report in a real browser (Debian's Chromium, headless): every picture loads, no error, nothing from outside."""

import json
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import run_pipeline
from tests.conftest import SHORT

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium is installed: apt-get install chromium")
# It opens the page beside it in a frame and leaves, as its own text, what became of each picture there.
PROBE = """<!DOCTYPE html><html><head><link rel="icon" href="data:,"></head><body><pre id="found">nothing</pre>
<iframe id="page" src="/page.html" width="1200" height="900"></iframe><script>
document.getElementById("page").addEventListener("load", event => {
  const page = event.target.contentDocument;
  const all = [...page.images].map(one => ({alt: one.alt, width: one.naturalWidth, height: one.naturalHeight}));
  const fetched = event.target.contentWindow.performance.getEntriesByType("resource").map(one => one.name);
  const found = {title: page.title, images: all, fetched: fetched.filter(name => !name.startsWith("data:")),
                 wide: page.documentElement.scrollWidth};
  document.getElementById("found").textContent = JSON.stringify(found);
});</script></body></html>"""


class Site:
    """A server on 127.0.0.1 of a page and its probe, and, as the browser's proxy, of all else that it asks for."""

    def __init__(self, page):
        self.asked, pages = [], {"/": PROBE.encode(), "/page.html": page}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler):
                content = pages.get(handler.path)
                if content is None:
                    self.asked.append(handler.path)
                handler.send_response(200 if content else 404)
                handler.send_header("Content-Type", "text/html; charset=utf-8")
                handler.end_headers()
                handler.wfile.write(content or b"")

            def do_CONNECT(handler):
                self.asked.append(handler.path)
                handler.send_error(404)

            def log_message(handler, *words):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def opened(page, profile):
    """What a browser finds in a page: the probe's answer, its console's errors, and what it asked others for."""
    site = Site(page)
    words = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions")
    where = (f"--user-data-dir={profile}", f"--proxy-server={site.address}")
    told = ("--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom")
    run = subprocess.run(
        [BROWSER, *words, *quiet, *where, *told, f"http://{site.address}/"], capture_output=True, text=True, timeout=100
    )
    site.server.shutdown()
    found = re.search(r'<pre id="found">(.*?)</pre>', run.stdout, re.DOTALL)
    assert found and found[1] != "nothing", run.stderr
    console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    # The browser's own errands are not the page's.
    outside = [path for path in site.asked if not re.search(r"google|gvt1|chrom", path)]
    return json.loads(found[1]), console, outside


def test_the_report_opens_as_it_should(_finished, tmp_path):
    workspace = shutil.copytree(_finished, tmp_path / "here")
    for stage, more in (("train", ("train.record=true",)), ("evaluate", ()), ("inspect", ("inspect.rows=60",))):
        words = [word for setting in more for word in ("--set", setting)]
        base = ["--stage", stage, *SHORT, "--device", "cpu", "--workspace", str(workspace)]
        assert run_pipeline.main([*base, *words]) == 0
    page = (workspace / "data/runs/quick/inspect/report.html").read_bytes()
    found, console, outside = opened(page, tmp_path / "profile")
    assert found["title"] == "quick" and len(found["images"]) == page.count(b"<img") >= 15
    assert all(one["width"] > 300 and one["height"] > 150 and one["alt"] for one in found["images"])
    assert not console and not outside and not found["fetched"]
    assert found["wide"] <= 1200  # nothing to scroll sideways for on a laptop


@pytest.mark.parametrize(
    "body",
    [
        '<img alt="x" src="data:image/png;base64,AAAA">',
        '<img alt="x" src="http://example.invalid/x.png">',
        '<link rel="stylesheet" href="http://fonts.googleapis.com/css"><img alt="x" src="data:,">',
        "<script>undefined_name.x</script>",
    ],
    ids=["broken", "outside", "font", "error"],
)
def test_the_browser_would_tell(body, tmp_path):
    """A page with a fault is told from one without."""
    found, console, outside = opened(f"<!DOCTYPE html><title>t</title>{body}".encode(), tmp_path / "profile")
    if "script" in body:
        assert console
    else:
        assert found["images"][0]["width"] == 0
    assert bool(outside) == ("example" in body)
    assert bool(found["fetched"]) == ("http:" in body)
