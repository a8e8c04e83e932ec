"""How close building an index comes to the encoder alone, and how much memory it takes.

    python -m benchmarks.index_build --root ~/Pictures --blip BLIP/chatir_weights.ckpt
    python -m benchmarks.index_build --photographs 200 --blip random-base
    python -m benchmarks.index_build --memory 100000

The first times the pictures of a folder (the demo's if none is given) through one encoder: the model alone on
pixels that lie ready, `index.build`, and loading as clip-retrieval does it: torch's DataLoader, whose workers
decode whole pictures without limits. On CPUs decoding takes time from the model; on a GPU it does not. The
second does it with made-up photographs of 12 megapixels and a BLIP base of random weights. The third builds
indexes of so many images, and of a tenth, with an encoder that costs nothing, and compares their memory.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from benchmarks.timing import Watch, anonymous_mb, in_turns, parser, report
from records import Image
from settings import PROJECT, run_script

DIMENSION = 256
RANDOM_BASE = "random-base"
PHOTOGRAPH = (4000, 3000)  # pixels: 12 megapixels


def main() -> None:
    """Runs from the command line."""
    read = parser(__doc__)
    read.add_argument("--root", type=Path, help="folder of pictures; the demo's if not given")
    read.add_argument(
        "--blip", default="BLIP/weights/demo", help=f"checkpoint of the encoder, or {RANDOM_BASE}"
    )
    read.add_argument("--photographs", type=int, help="make so many of 12 megapixels, and take these")
    read.add_argument("--split", default="test", help="of the demo")
    read.add_argument("--images", type=int, default=1000, help="at most so many of the pictures")
    read.add_argument("--batch", type=int, default=64, help="pictures encoded at a time")
    read.add_argument("--workers", type=int, default=4, help="threads or processes that decode")
    read.add_argument("--repeats", type=int, default=3, help="turns of each way; their median counts")
    read.add_argument("--memory", type=int, help="instead: build over so many costless images, report memory")
    arguments = read.parse_args()
    rows = time_ways(arguments) if arguments.memory is None else weigh(arguments.memory)
    report("index_build", arguments, rows)


def time_ways(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Embeds the same pictures in each way; returns a row a way."""
    import torch

    from BLIP.images import to_pixels
    from BLIP.model import BlipEncoder
    from index.decode import open_image
    from playground import open_dataset

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        checkpoint = PROJECT / arguments.blip
        if arguments.blip == RANDOM_BASE:
            checkpoint = save_random_base(scratch / "base")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        encoder = BlipEncoder.open(checkpoint, None, device, batch_size=arguments.batch)
        if arguments.photographs:
            images = take_photographs(scratch / "photographs", arguments.photographs)
        elif arguments.root is None:
            images = open_dataset("demo", None, arguments.split).images[: arguments.images]
        else:
            images = open_dataset("image_folder", arguments.root, "all").images[: arguments.images]
        ready = [open_image(image.path, side=encoder.image_size) for image in images[: arguments.batch]]
        pixels = to_pixels(ready, encoder.image_size).to(encoder.model.device)
        encoder.encode_images(ready)  # so that nothing is set up on the clock

        def model_alone() -> None:
            for first in range(0, len(images), len(ready)):
                batch = pixels[: len(images) - first]
                encoder.image_features(encoder.image_hidden(batch)).cpu()

        def ours() -> None:
            with tempfile.TemporaryDirectory() as index:
                _build(images, encoder, Path(index), arguments.batch, arguments.workers)

        def loader() -> None:
            """Source: clip-retrieval's FilesReader, whose workers and batches are those of a DataLoader."""
            batches = torch.utils.data.DataLoader(
                _Files([image.path for image in images], encoder.image_size),  # type: ignore[arg-type]
                batch_size=arguments.batch,
                num_workers=arguments.workers,
                prefetch_factor=2,
            )
            for batch in batches:
                encoder.image_features(encoder.image_hidden(batch)).cpu()

        ways = {"the model alone": model_alone, "index.build": ours, "DataLoader": loader}
        timed = in_turns(ways, arguments.repeats)
    alone = timed["the model alone"].wall
    return [
        {
            "way": way,
            "images": len(images),
            "images/s": len(images) / one.wall,
            "images/CPU s": len(images) / one.cpu,
            "of the model's images/s": alone / one.wall,
        }
        for way, one in timed.items()
    ]


class _Files:
    """Pictures for a DataLoader: decoded whole, resized, normalised."""

    def __init__(self, paths: Sequence[Path], side: int) -> None:
        self._paths, self._side = paths, side

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, place: int) -> Any:
        from BLIP.images import to_pixels

        with PILImage.open(self._paths[place]) as picture:
            return to_pixels([picture.convert("RGB")], self._side)[0]


def take_photographs(folder: Path, count: int) -> list[Image]:
    """Makes JPEG files of the size and the detail of a telephone's photographs, about 4 MB each."""
    folder.mkdir()
    images = []
    for number in range(count):
        random = np.random.default_rng(number)
        shapes = PILImage.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        picture = np.asarray(shapes.resize(PHOTOGRAPH, PILImage.Resampling.BICUBIC), dtype=np.int16)
        grain = random.integers(-12, 13, picture.shape, dtype=np.int16)
        path = folder / f"{number}.jpg"
        PILImage.fromarray(np.clip(picture + grain, 0, 255).astype(np.uint8)).save(path, quality=90)
        images.append(Image(path.name, path))
    return images


def save_random_base(folder: Path) -> Path:
    """Saves a BLIP base of random weights, with the demo's vocabulary; returns the folder."""
    from transformers import BlipConfig, BlipForImageTextRetrieval

    vocabulary = (PROJECT / "BLIP/weights/demo/vocab.txt").read_text(encoding="utf-8")
    size = len(vocabulary.splitlines()) + 2  # [DEC] and [ENC] come with the tokenizer
    config = BlipConfig(text_config={"vocab_size": size})  # all else is BLIP base
    BlipForImageTextRetrieval(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    return folder


class _Costless:
    """Gives each picture a random vector."""

    dimension = DIMENSION
    fingerprint = "costless"

    def encode_images(self, images: Sequence[PILImage.Image]) -> np.ndarray:
        rows = np.random.default_rng(len(images)).standard_normal((len(images), DIMENSION), dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def weigh(count: int) -> list[dict[str, Any]]:
    """Builds an index over a tenth of so many images, then over all; returns a row a size."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        PILImage.new("RGB", (2, 2)).save(picture)
        images = [Image(f"{number}.png", picture) for number in range(count)]
        for size in (count // 10, count):
            watch, before = Watch(), anonymous_mb()
            peak = peak_mb(partial(_build, images[:size], _Costless(), Path(folder) / str(size), 256, 2))
            rows.append(
                {
                    "images": size,
                    "vectors, MB": size * DIMENSION * 4 / 1e6,
                    "memory before, MB": before,
                    "peak meanwhile, MB": peak,
                    "seconds": watch.wall(),
                }
            )
    return rows


def peak_mb(work: Callable[[], None]) -> float:
    """Runs something and returns the peak of this process's memory meanwhile, without mapped files."""
    done, peaks = threading.Event(), [anonymous_mb()]

    def look() -> None:
        while not done.wait(0.005):
            peaks[0] = max(peaks[0], anonymous_mb())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return peaks[0]


def _build(images: Sequence[Image], encoder: Any, folder: Path, batch: int, workers: int) -> None:
    from index.build import build_index

    build_index(
        images, encoder, folder, model_name="benchmark", dataset="benchmark", image_folder=folder,
        batch_size=batch, workers=workers,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(run_script(main))
