"""A real OpenAI-compatible server on loopback, ``transformers serve``, and a proxy that does harm."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
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


class FaultProxy:
    """Stands before a server; each chat request takes the next fault, and is passed on when there is none.

    A fault is "cut", "slow", "drip", "garbage", "no-choices", "huge", "gone" (for good), or a status with
    headers and a body.
    """

    def __init__(self, upstream=None):
        self.faults = []
        self.gone_after = None
        self.arrivals, self.requests, self.headers = [], [], []
        self.under_way = self.max_under_way = 0
        self.hold = threading.Event()  # while it is clear, requests wait
        self.hold.set()
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                self.answer(*proxy.fetch(upstream, "GET", self.path, None))

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with proxy._lock:
                    proxy.arrivals.append(time.monotonic())
                    proxy.requests.append(json.loads(body))
                    proxy.headers.append({name.lower(): value for name, value in self.headers.items()})
                    proxy.under_way += 1
                    proxy.max_under_way = max(proxy.max_under_way, proxy.under_way)
                    fault = proxy.faults.pop(0) if proxy.faults else None
                    if proxy.gone_after is not None and len(proxy.requests) > proxy.gone_after:
                        fault = "gone"
                try:
                    proxy.hold.wait(30)
                    self.harm(fault, body)
                except OSError:
                    pass  # whoever asked has hung up
                finally:
                    with proxy._lock:
                        proxy.under_way -= 1

            def harm(self, fault, body):
                if isinstance(fault, tuple):
                    return self.answer(*fault)
                if fault == "gone":
                    self.close_connection = True
                    return self.connection.close()
                if fault == "slow":
                    time.sleep(3)
                if fault == "garbage":
                    return self.answer(200, {}, b"<html>an error page</html>")
                if fault == "no-choices":
                    return self.answer(200, {}, b'{"choices": []}')
                if fault == "huge":
                    return self.answer(200, {}, b" " * (5 << 20))
                status, headers, said = proxy.fetch(upstream, "POST", self.path, body)
                if fault in ("cut", "drip"):
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(said)))
                    self.end_headers()
                    if fault == "drip":
                        for letter in said[:30]:
                            self.wfile.write(bytes([letter]))
                            time.sleep(0.1)
                    self.wfile.write(said[: len(said) // 2])
                    self.close_connection = True
                    return None
                return self.answer(status, headers, said)

            def answer(self, status, headers, body):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @staticmethod
    def fetch(upstream, method, path, body):
        host = upstream.removeprefix("http://").partition("/")[0]
        connection = http.client.HTTPConnection(host, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, {"Content-Type": "application/json"}, response.read()
        finally:
            connection.close()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
