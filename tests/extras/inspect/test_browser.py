"""The report of a network in a real browser (headless Chromium): every picture loads, nothing fails or is fetched."""

import json
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.extras.inspect import report
from pipeline.recipes.config import load_recipe
from tests.extras.inspect.studies import make_study

DRAWS = True
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium is installed: apt-get install chromium")
# Opens the page in a frame, and writes the state of each picture as its own text.
PROBE = """<!DOCTYPE html><html><head><link rel="icon" href="data:,"></head><body><pre id="result">nothing</pre>
<iframe id="page" src="/page.html" width="1200" height="900"></iframe><script>
document.getElementById("page").addEventListener("load", event => {
  const page = event.target.contentDocument;
  const measure = image => ({alt: image.alt, width: image.naturalWidth, height: image.naturalHeight});
  const names = event.target.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name);
  const fetched = names.filter(name => !name.startsWith("data:"));
  const result = {title: page.title, images: [...page.images].map(measure), fetched: fetched,
                  width: page.documentElement.scrollWidth};
  document.getElementById("result").textContent = JSON.stringify(result);
});</script></body></html>"""


class Site:
    """A server on 127.0.0.1 for a page and its probe, which is also the browser's proxy for everything else."""

    def __init__(self, page):
        self.requests, pages = [], {"/": PROBE.encode(), "/page.html": page}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler):
                content = pages.get(handler.path)
                if content is None:
                    self.requests.append(handler.path)
                handler.send_response(200 if content else 404)
                handler.send_header("Content-Type", "text/html; charset=utf-8")
                handler.end_headers()
                handler.wfile.write(content or b"")

            def do_CONNECT(handler):
                self.requests.append(handler.path)
                handler.send_error(404)

            def log_message(handler, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def open_page(page, profile):
    """Open a page in a browser; returns the probe's result, errors in the console, and requests to other servers."""
    site = Site(page)
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
    options += (
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-extensions",
    )
    options += (f"--user-data-dir={profile}", f"--proxy-server={site.address}")
    options += ("--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom")
    run = subprocess.run([BROWSER, *options, f"http://{site.address}/"], capture_output=True, text=True, timeout=100)
    site.server.shutdown()
    result = re.search(r'<pre id="result">(.*?)</pre>', run.stdout, re.DOTALL)
    assert result and result[1] != "nothing", run.stderr
    console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    # Requests of the browser itself are not the page's.
    outside = [path for path in site.requests if not re.search(r"google|gvt1|chrom", path)]
    return json.loads(result[1]), console, outside


def test_the_report_opens_without_errors(tmp_path):
    study = make_study().study
    evaluation = {"rows": 0, "accuracy": None, "why_none": "trained on all rows"}
    training = {"numbers": {"networks": []}, "settings": {"train.epochs": 3}}
    numbers = {"network": "", **study.numbers()}
    page = report.render(load_recipe("quick"), report.draw(study), numbers, evaluation, training, "", "")
    result, console, outside = open_page(page, tmp_path / "profile")
    assert result["title"] == "quick" and len(result["images"]) == page.count(b"<img") == 9
    assert all(image["width"] > 300 and image["height"] > 150 and image["alt"] for image in result["images"])
    assert not console and not outside and not result["fetched"]
    assert result["width"] <= 1200  # no horizontal scrolling on a laptop


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
def test_faults_of_a_page_are_found(body, tmp_path):
    page = f"<!DOCTYPE html><title>t</title>{body}".encode()
    result, console, outside = open_page(page, tmp_path / "profile")
    if "script" in body:
        assert console
    else:
        assert result["images"][0]["width"] == 0
    assert bool(outside) == ("example" in body)
    assert bool(result["fetched"]) == ("http:" in body)
