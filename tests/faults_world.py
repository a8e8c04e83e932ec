"""A small collection, the commands that play the demo's experiment over it, and what must come of them.

The commands run in processes of their own, forked from one that has the libraries loaded already: what a kill
meets is the command's own work, not seconds of imports.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import runpy
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

PROJECT = Path(__file__).parent.parent
LOADED = (
    "torch", "transformers", "transformers.models.blip.modeling_blip",
    "transformers.models.llama.modeling_llama", "faiss", "matplotlib.figure", "jinja2", "tyro", "typeguard",
    "PIL.Image", "experiments.run", "BLIP.model", "generation.text_model", "tests.faults_world",
)  # fmt: skip
PLAYED = (
    "--protocol", "chatir", "--user", "reference", "--caption-numbers", "4", "--queries", "6",
    "--query-batch", "2", "--rounds", "3",
)  # fmt: skip
NOT_COMPARED = "costs.json"  # seconds, which differ
SCRIPTS = {
    "embed": "embed_image_as_faiss",
    "caption": "caption_images",
    "play": "multi_modal_query_expansion",
    "page": "interactive_search",
}
SHARD_SIZE = 16  # so that a small collection has several parts


@dataclass(frozen=True)
class World:
    """A folder with pictures, and another with all that is made of them.

    Attributes:
        home: Holds both.
        play_options: Of the experiment alone.
        places: Where index, captions and run go, if not below `made`: option and path.
    """

    home: Path
    play_options: tuple[str, ...] = (*PLAYED, "--strategy", "append")
    places: dict[str, Path] = field(default_factory=dict)

    @property
    def pictures(self) -> Path:
        return self.home / "pictures"

    @property
    def made(self) -> Path:
        return self.home / "made"

    def place(self, option: str) -> Path:
        names = {"--index": "index", "--caption-cache": "captions.sqlite", "--output": "run"}
        return self.places.get(option, self.made / names[option])

    def arguments(self, name: str) -> list[str]:
        """Returns a command: the script's name and its arguments."""
        arguments = [SCRIPTS[name], "--dataset", "image_folder", "--root", str(self.pictures)]
        arguments += ["--preset", "demo"]
        for option, names in {
            "--index": ("embed", "play", "page"), "--caption-cache": ("caption", "play", "page"),
            "--output": ("play", "page"),
        }.items():  # fmt: skip
            if name in names:
                arguments += [option, str(self.place(option))]
        if name != "caption":
            arguments += ["--image-batch", "8"]
        if name != "embed":
            arguments += ["--caption-batch", "8", "--quantization", "fp32"]
        return [*arguments, *(self.play_options if name == "play" else ())]

    def clear(self) -> None:
        """Removes all that was made, not the folders that are named in `places`."""
        shutil.rmtree(self.made, ignore_errors=True)
        self.made.mkdir()
        for place in self.places.values():
            if place.is_dir():
                shutil.rmtree(place)
            place.unlink(missing_ok=True)

    def result(self) -> dict[str, object]:
        """Returns all files there are, with their bytes, and the captions that are kept."""
        found: dict[str, object] = {}
        for option in ("--index", "--output"):
            folder = self.place(option)
            for path in folder.rglob("*"):
                name = f"{option} {path.relative_to(folder)}"
                found[name] = path.is_dir() or path.name == NOT_COMPARED or path.read_bytes()
        cache = self.place("--caption-cache")
        found["captions"] = captions_in(cache)
        beside = [path.name for path in cache.parent.glob(cache.name + "?*")]
        return found | {f"beside the captions: {name}": True for name in beside}


def make_pictures(folder: Path, count: int, side: int = 448) -> None:
    """Draws the first of the demo's test scenes, and writes what people say of them."""
    from playground.demo.drawing import render
    from playground.demo.generate import SPLITS, captions_of, image_name
    from playground.demo.scenes import make_scene

    folder.mkdir(parents=True)
    first_seed = SPLITS["test"][0]
    scenes = [make_scene(seed) for seed in range(first_seed, first_seed + count)]
    with (folder / "images_captions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image_name", "comment_number", "comment"))
        for scene in scenes:
            path = folder / image_name(scene)
            render(scene, side).save(path, quality=95, subsampling=0)
            os.utime(path, (1_700_000_000, 1_700_000_000))  # settled, as a collection is
            for number, (_, text) in enumerate(captions_of(scene)):
                writer.writerow((path.name, number, text))


def captions_in(cache: Path) -> list[tuple[str, str, str]]:
    """Returns captioner, picture and caption of all captions in a file; none if there is no file."""
    if not cache.is_file():
        return []
    with closing(sqlite3.connect(f"file:{cache}?mode=ro", uri=True)) as database:
        query = (
            "SELECT name, picture, caption FROM captions JOIN captioners ON number = captioner ORDER BY 1, 2"
        )
        return database.execute(query).fetchall()


def start(command: list[str], log: Path, die_at: int = 0, watched: Path | None = None) -> ForkServerProcess:
    """Starts a command in a process of its own, and a session of its own.

    Args:
        command: As `World.arguments`.
        log: Gets what it says.
        die_at: It kills itself before its n-th change to a file; 0: never.
        watched: Only changes below this folder count; their number is written to ``LOG.changes``.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LOADED))
    process = context.Process(target=_run, args=(command, log, die_at, watched))
    process.start()
    return process


def run(command: list[str], log: Path, **options) -> int:
    """Runs a command to its end; returns its status, negative for a signal."""
    process = start(command, log, **options)
    process.join()
    return process.exitcode


def kill(process: ForkServerProcess, number: int = signal.SIGKILL) -> bool:
    """Sends a signal, waits for the end, and says whether it was this signal that ended it."""
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)
    process.join()
    return process.exitcode == -number


def stop_when(process: ForkServerProcess, happened: Callable[[], bool]) -> None:
    """Halts a process, as Ctrl-Z does, as soon as something has happened.

    Raises:
        RuntimeError: If the process ended before.
    """
    while not happened():
        if not process.is_alive():
            raise RuntimeError(f"the process ended with {process.exitcode} before it could be halted")
        time.sleep(0.0005)
    os.kill(process.pid, signal.SIGSTOP)


def _run(command: list[str], log: Path, die_at: int, watched: Path | None) -> None:
    import index.build

    os.setsid()
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which the server of forks has switched off
    index.build.build_index.__kwdefaults__["shard_size"] = SHARD_SIZE
    if watched is not None:
        _count_changes(watched, die_at, log.with_name(log.name + ".changes"))
    os.chdir(PROJECT)
    _count_work(log.with_name("work"))
    sys.argv = list(command)
    runpy.run_path(f"{command[0]}.py", run_name="__main__")


def _count_work(counted: Path) -> None:
    """Notes each batch of pictures that is embedded or captioned, in a line of the file."""
    from BLIP.captioner import BlipCaptioner
    from BLIP.model import BlipEncoder

    def noting(what: str, work: Callable) -> Callable:
        def noted(self, images, *arguments, **options):
            done = work(self, images, *arguments, **options)
            with counted.open("a") as file:
                file.write(f"{what} {len(images)}\n")
            return done

        return noted

    BlipEncoder.encode_images = noting("embedded", BlipEncoder.encode_images)
    BlipCaptioner.caption = noting("captioned", BlipCaptioner.caption)


def work_done(counted: Path) -> Counter[str]:
    """Returns how many pictures were embedded and captioned since the file was removed."""
    done: Counter[str] = Counter()
    for line in counted.read_text().splitlines() if counted.exists() else ():
        what, count = line.split()
        done[what] += int(count)
    return done


def _count_changes(watched: Path, die_at: int, counted: Path) -> None:
    """Counts each file opened for writing, flushed, renamed or removed, each folder made; dies at one."""
    count = 0
    names = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")

    def change() -> None:
        nonlocal count
        count += 1
        if count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if not die_at:
            descriptor = os.open(counted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(descriptor, str(count).encode())
            os.close(descriptor)

    def hook(event: str, arguments: tuple) -> None:
        if event not in names or not isinstance(arguments[0], (str, os.PathLike)):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            return
        path = os.fspath(arguments[0])
        below_an_open_folder = event in ("os.remove", "os.rmdir") and not path.startswith("/")
        if path.startswith(str(watched)) or below_an_open_folder:
            change()

    flush = os.fsync

    def fsync(descriptor: int) -> None:
        change()
        flush(descriptor)

    os.fsync = fsync
    sys.addaudithook(hook)
