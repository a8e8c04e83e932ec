"""How close building an index comes to what the model alone can do, and what memory it takes.

    python -m benchmarks.index_build --root ~/Pictures --blip BLIP/chatir_weights.ckpt
    python -m benchmarks.index_build --memory 100000

The first times the pictures of a folder (the demo's when none is given) through the same encoder: the model
on pixels that lie ready (its bound), a plain loop over files, and `index.build`. On CPUs, decoding
takes time from the model; on a GPU it does not. The second builds an index of that many images with an
encoder that costs nothing, and compares the memory with that of a small one. Results: a table and
``index_build.json``.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from benchmarks.search import anonymous_mb
from evaluation.tables import as_markdown
from files import write_json
from index.build import build_index
from index.decode import open_image
from records import Image
from settings import PROJECT, run_script

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexBuildSettings:
    """Times embedding, or weighs it.

    Attributes:
        root: Folder of pictures; the demo's when not given.
        blip: Checkpoint of the encoder.
        images: At most so many of the pictures.
        batch: Pictures encoded at a time.
        workers: Threads that decode.
        memory: Instead of timing, build over so many images that cost nothing, and report the memory.
        output: Folder of the results.
    """

    root: Path | None = None
    blip: str = "BLIP/weights/demo"
    images: int = 1000
    batch: int = 64
    workers: int = 4
    memory: int | None = None
    output: Path = Path("runs/benchmark-index-build")


def main() -> None:
    """Runs from the command line."""
    import tyro

    settings = tyro.cli(IndexBuildSettings)
    rows = _timed(settings) if settings.memory is None else _weighed(settings.memory)
    settings.output.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python -m benchmarks.index_build", *sys.argv[1:]])
    write_json(settings.output / "index_build.json", {"command": command, "rows": rows})
    print(as_markdown([tuple(rows[0]), *(tuple(map(_cell, row.values())) for row in rows)]))


def _timed(settings: IndexBuildSettings) -> list[dict[str, Any]]:
    import torch

    from BLIP.model import BlipEncoder
    from playground import open_dataset

    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = BlipEncoder.open(PROJECT / settings.blip, None, device, batch_size=settings.batch)
    dataset = (
        open_dataset("demo", None, "test")
        if settings.root is None
        else open_dataset("image_folder", settings.root, "all")
    )
    images = dataset.images[: settings.images]
    ready = [encoder.prepare_image(open_image(image.path)) for image in images[: settings.batch]]
    encoder.encode_images(ready)  # so that nothing is set up on the clock

    def model_alone() -> None:
        from BLIP.images import to_pixels

        pixels = to_pixels(ready, encoder.image_size).to(encoder.model.device)
        for _ in range(-(-len(images) // len(ready))):
            encoder.image_features(encoder.image_hidden(pixels)).cpu()

    def plain_loop() -> None:
        for image in images:
            with PILImage.open(image.path) as picture:
                encoder.encode_images([picture])

    def one_after_another() -> None:
        for first in range(0, len(images), settings.batch):
            batch = images[first : first + settings.batch]
            encoder.encode_images([open_image(image.path) for image in batch])

    with tempfile.TemporaryDirectory() as folder:

        def ours() -> None:
            _build(images, encoder, Path(folder), settings.batch, settings.workers)

        return [
            _row("the model alone", model_alone, -(-len(images) // len(ready)) * len(ready)),
            _row("a plain loop, image by image", plain_loop, len(images)),
            _row("batches: decode, then encode", one_after_another, len(images)),
            _row("index.build", ours, len(images)),
        ]


def _row(name: str, work: Callable[[], None], count: int) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    row = {"way": name, "images": count, "images/s": count / wall, "images/CPU s": count / cpu}
    log.info("%s", row)
    return row


class _Costless:
    """Gives each picture a random vector."""

    dimension = 256
    fingerprint = "costless"

    def encode_images(self, images: Sequence[PILImage.Image]) -> np.ndarray:
        rows = np.random.default_rng(len(images)).standard_normal((len(images), 256), dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _weighed(count: int) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        PILImage.new("RGB", (2, 2)).save(picture)
        images = [Image(f"{number}.png", picture) for number in range(count)]
        for some in (count // 10, count):
            wall, before = time.perf_counter(), anonymous_mb()
            with _Highest() as highest:
                _build(images[:some], _Costless(), Path(folder) / str(some), 256, 2)
            rows.append(
                {
                    "images": some,
                    "vectors, MB": some * 256 * 4 / 1e6,
                    "memory before, MB": before,
                    "highest meanwhile, MB": highest.mb,
                    "seconds": time.perf_counter() - wall,
                }
            )
    return rows


class _Highest:
    """Watches the memory that is no mapped file, every few milliseconds."""

    def __init__(self) -> None:
        self.mb = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> _Highest:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.mb = max(self.mb, anonymous_mb())


def _build(images: Sequence[Image], encoder: Any, folder: Path, batch: int, workers: int) -> None:
    build_index(
        images,
        encoder,
        folder,
        model_name="benchmark",
        dataset="benchmark",
        image_folder=folder,
        batch_size=batch,
        workers=workers,
    )


def _cell(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
