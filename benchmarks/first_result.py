"""How long a person waits for the first results on the demo's page, from pressing Enter to the answer's end.

    python -m benchmarks.first_result

Serves the page on this machine as `interactive_search.py` does, asks for vague queries of the demo's test
split, one after the other, each as a person of their own, and fetches the ten pictures of the last, whose
thumbnails were never made before. Result: a table and ``first_result.json``. `benchmarks.start_up` times a
whole process, imports included.
"""

from __future__ import annotations

import http.client
import re
import statistics
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlencode

from evaluation.tables import as_markdown
from files import write_json
from settings import InteractiveSettings, run_script

GOAL_MILLISECONDS = 300
OUTPUT = Path("runs/benchmark-first-result")


def main() -> None:
    """Times the answers, prints a table and writes it."""
    import uvicorn

    from experiments.setup import Setup
    from interactive.guard import Guard
    from interactive.page import Page
    from interactive.server import open_context
    from interactive.session import Options

    settings = InteractiveSettings(dataset="demo", strategy="append")
    settings = settings.resolved()
    context, study = open_context(settings)
    words = [query.text for query in Setup.open(settings).queries]
    page = Page(context, Options("append"), study, describe=False)
    page.warm_up()
    server = uvicorn.Server(uvicorn.Config(Guard(page.app(), ()), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        host, port = server.servers[0].sockets[0].getsockname()
        milliseconds, html = [], ""
        for text in words:
            begun = time.perf_counter()
            html = _search(host, port, text)
            milliseconds.append(1000 * (time.perf_counter() - begun))
        begun = time.perf_counter()
        addresses = re.findall(r'/thumbnail/[^"]+', html)
        for address in addresses:
            _answer(host, port, "GET", address)
        pictures = 1000 * (time.perf_counter() - begun)
    finally:
        server.should_exit = True
        thread.join()
    milliseconds.sort()
    row = {
        "queries": len(milliseconds),
        "median, ms": statistics.median(milliseconds),
        "95th percentile, ms": milliseconds[int(0.95 * len(milliseconds))],
        "worst, ms": milliseconds[-1],
        "goal, ms": GOAL_MILLISECONDS,
        "thumbnails": len(addresses),
        "all of them, ms": pictures,
    }
    OUTPUT.mkdir(parents=True, exist_ok=True)
    write_json(OUTPUT / "first_result.json", {"command": "python -m benchmarks.first_result", "rows": [row]})
    cells = [f"{value:.0f}" if isinstance(value, float) else str(value) for value in row.values()]
    print(as_markdown([tuple(row), tuple(cells)]))


def _search(host: str, port: int, text: str) -> str:
    html = _answer(host, port, "POST", "/search", urlencode({"text": text}))
    if 'class="card' not in html:
        raise ValueError(f"no pictures in the answer to {text!r}")
    return html


def _answer(host: str, port: int, method: str, path: str, body: str | None = None) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=30)
    headers = {"X-Fragment": "1", "Origin": f"http://{host}:{port}"}
    connection.request(method, path, body, headers)
    data = connection.getresponse().read()
    connection.close()
    return data.decode("utf-8", errors="replace")


if __name__ == "__main__":
    sys.exit(run_script(main))
