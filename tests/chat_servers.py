"""OpenAI-compatible servers on loopback: a real one, ``transformers serve``, and one that does harm."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 40
START_SECONDS = 180  # of the server, on a busy machine


def into_hub_cache(cache, model_id, folder):
    """Lays a model's folder out as a download from the hub would: that is what the server lists."""
    repository = cache / f"models--{model_id.replace('/', '--')}"
    for part in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (repository / part).mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    for file in folder.iterdir():
        (repository / "blobs" / file.name).symlink_to(file)
        (repository / f"snapshots/{COMMIT}" / file.name).symlink_to(file)


@contextlib.contextmanager
def transformers_serve(cache, log):
    """Runs the server with the models of a hub cache; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(port):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def answers(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


class FaultServer:
    """Answers each chat request by its content, until a fault is due.

    Each request takes the next fault: "cut", "slow", "drip", "gone", or a status with headers and a body.
    """

    def __init__(self, *models):
        self.faults = []
        self.gone_after = None
        self.models = (200, {}, json.dumps({"data": [{"id": name} for name in models]}).encode())
        self.arrivals, self.requests, self.headers = [], [], []
        self.under_way = self.max_under_way = 0
        self.hold = threading.Event()  # while it is clear, requests wait
        self.hold.set()
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                self.answer(*server.models)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.arrivals.append(time.monotonic())
                    server.requests.append(body)
                    server.headers.append({name.lower(): value for name, value in self.headers.items()})
                    server.under_way += 1
                    server.max_under_way = max(server.max_under_way, server.under_way)
                    fault = server.faults.pop(0) if server.faults else None
                    if server.gone_after is not None and len(server.requests) > server.gone_after:
                        fault = "gone"
                server.hold.wait(30)
                with contextlib.suppress(OSError):  # whoever asked has hung up
                    self.harm(fault, completion(body))
                with server._lock:
                    server.under_way -= 1

            def harm(self, fault, said):
                self.close_connection = isinstance(fault, str)
                if fault == "gone":
                    self.connection.close()
                elif isinstance(fault, tuple):
                    self.answer(*fault)
                else:
                    whole = fault in (None, "slow")
                    time.sleep(3 if fault == "slow" else 0)
                    self.answer(
                        200, {}, said if whole else said[: len(said) // 2], len(said), fault == "drip"
                    )

            def answer(self, status, headers, body, length=None, drips=False):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(length or len(body)))
                self.end_headers()
                for letter in body[:30] if drips else b"":
                    self.wfile.write(bytes([letter]))
                    time.sleep(0.1)
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def completion(body):
    """What such a server says: two words of its own for every content."""
    number = zlib.crc32(json.dumps(body["messages"]).encode())
    answer = {"choices": [{"message": {"content": f"a red dog number {number}"}}]}
    return json.dumps(answer | {"usage": {"prompt_tokens": 10, "completion_tokens": 5}}).encode()
