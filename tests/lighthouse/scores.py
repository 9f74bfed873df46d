"""Lighthouse's scores of six built pages on a phone: fast, and next to no fault in what every reader needs."""

import functools
import gzip
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HTML = HERE.parents[1] / "build" / "book" / "_build" / "html"
PROGRAM = HERE / "node_modules" / ".bin" / "lighthouse"
PAGES = "intro foundations/bayes_predictors prompting/two_coins mechanism/longer_prefixes theory/entropy notation"
WANTED = {"performance": 0.90, "accessibility": 0.95, "best-practices": 0.95, "seo": 0.95}
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="`make lighthouse` installs it")


class Compressing(http.server.SimpleHTTPRequestHandler):
    """Sends texts compressed and keeps connections open, as hosts of pages do."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return super().do_GET()
        kind, body = self.guess_type(path), path.read_bytes()
        self.send_response(200)
        if re.search("text|javascript|json|svg", kind):
            body = gzip.compress(body)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if kind.startswith("text/") else kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "max-age=600")
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def site():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Compressing, directory=HTML)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize("name", PAGES.split())
def test_scores_on_a_phone(site, tmp_path, name):
    programs = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    chrome = next(filter(None, map(shutil.which, programs)))
    out = tmp_path / "report.json"
    command = [
        PROGRAM,
        f"{site}{name}.html",
        "--quiet",
        "--output=json",
        f"--output-path={out}",
        f"--chrome-flags={FLAGS}",
    ]
    subprocess.run(
        [*command, f"--only-categories={','.join(WANTED)}"], env={**os.environ, "CHROME_PATH": chrome}, check=True
    )
    report = json.loads(out.read_text())
    scores = {category: report["categories"][category]["score"] for category in WANTED}
    print(name, scores)
    lost = [
        audit["title"] for audit in report["audits"].values() if audit["score"] is not None and audit["score"] < 0.9
    ]
    assert [category for category, score in scores.items() if score < WANTED[category]] == [], (scores, lost)
