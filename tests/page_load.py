"""Many people at the demo's page at once: searches a second, and how long a refinement takes.

    python embed_image_as_faiss.py --dataset demo --split test
    python -m tests.page_load --people 1 10 50

Starts the page in a process of its own. Everybody searches; then all like the first picture and refine at
the same moment, several rounds. Nothing is described besides, so that only what people wait for is measured.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlencode

import numpy as np

from playground import open_dataset
from settings import PROJECT


class Person:
    """One browser: its cookie, and what it is answered."""

    def __init__(self, port: int, number: int) -> None:
        self.number, self.cookie, self.port = number, "", port
        self.statuses: Counter[int] = Counter()

    def ask(self, path: str, **fields: str) -> str:
        """Asks once, on a connection of its own; counts the status."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        headers = {"Cookie": self.cookie, "Origin": f"http://127.0.0.1:{self.port}"}
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        connection.request("POST" if fields else "GET", path, urlencode(fields) or None, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        self.statuses[answer.status] += 1
        self.cookie = (answer.headers["Set-Cookie"] or self.cookie).split(";")[0]
        connection.close()
        return text

    def act(self, path: str, **fields: str) -> str:
        """Asks, and waits until the page says that it is done."""
        text = self.ask(path, **fields)
        if "data-busy" not in text:
            return text
        while json.loads(self.ask("/progress"))["busy"]:
            time.sleep(0.5)  # as the page does
        return self.ask("/view")

    def like_first(self, text: str) -> None:
        number = re.findall(r'data-number="(\d+)"', text)[0]
        self.ask("/mark", picture=number, mark="like")


def timed(people: list[Person], work) -> tuple[np.ndarray, float]:
    """Has all do something at the same moment; returns the seconds of each, and of all together."""
    seconds = np.zeros(len(people))

    def one(place: int) -> None:
        begun = time.monotonic()
        work(people[place])
        seconds[place] = time.monotonic() - begun

    threads = [threading.Thread(target=one, args=(place,)) for place in range(len(people))]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds, time.monotonic() - begun


def play(port: int, words: Iterator[str], count: int, rounds: int) -> str:
    """Plays sessions of people, each with words of their own: rewrites are kept, and would cost nothing."""
    people = [Person(port, number) for number in range(count)]
    texts: dict[int, str] = {}

    def search(person: Person) -> None:
        texts[person.number] = person.act("/search", text=next(words))

    def refine(person: Person) -> None:
        texts[person.number] = person.act("/more", go="on")

    searches = [timed(people, search) for _ in range(3)]
    refinements = []
    for _ in range(rounds):
        for person in people:
            person.like_first(texts[person.number])
        refinements.append(timed(people, refine)[0])
    first, moved = np.concatenate([seconds for seconds, _ in searches]), np.concatenate(refinements)
    statuses = sum((person.statuses for person in people), Counter())
    refused = sum(count for status, count in statuses.items() if status != 200)
    return (
        f"| {count} | {len(first) / sum(wall for _, wall in searches):.0f} "
        f"| {np.median(first):.2f} | {np.quantile(first, 0.95):.2f} "
        f"| {np.median(moved):.1f} | {np.quantile(moved, 0.95):.1f} | {refused} of {statuses.total()} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--people", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--rounds", type=int, default=3, help="refinements of each")
    options = parser.parse_args()
    words = iter(dict.fromkeys(query.text for query in open_dataset("demo", None, "test").queries))
    command = [sys.executable, "interactive_search.py", "--dataset", "demo", "--split", "test"]
    command += ["--strategy", "rewrite-anchored", "--port", "0", "--no-describe"]
    with subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True) as page:
        try:
            assert page.stderr is not None
            port = next(
                int(found[1]) for line in page.stderr if (found := re.search(r"open \S+:(\d+)/", line))
            )
            threading.Thread(target=page.stderr.read, daemon=True).start()
            play(port, words, 1, 2)  # until then the models are loaded
            for count in options.people:
                sys.stdout.write(play(port, words, count, options.rounds) + "\n")
                sys.stdout.flush()
        finally:
            page.terminate()


if __name__ == "__main__":
    main()
