"""What training reads: pictures as one array on disk, captions, boxes, a tokenizer, deterministic batches."""

from __future__ import annotations

import csv
import logging
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import BertWordPieceTokenizer
from tqdm import tqdm

from BLIP.images import resize
from BLIP.tokenizer import REQUIRED
from index.decode import open_image
from records import Image, Skip

log = logging.getLogger(__name__)

COLUMNS = ("image_name", "label", "left", "top", "right", "bottom")  # of a file of boxes
MIN_SHARE = 0.25  # of a patch, that a box must cover to name it
_FILLERS = (
    "the image shows", "a photo of", "i want to see", "show me", "there is also", "a scene with",
    "in the picture", "looking for", "the picture with", "please find",
)  # fmt: skip


def cache_pixels(images: Sequence[Image], side: int, path: Path) -> np.ndarray:
    """Decodes and resizes all pictures once, as BLIP does, into one array at `path`; reused if it fits.

    Returns (n, side, side, 3) uint8, memory-mapped. ValueError if pictures cannot be read, naming the first.
    """
    shape = (len(images), side, side, 3)
    if path.is_file():
        pixels = np.load(path, mmap_mode="r")
        if pixels.shape == shape:
            log.info("reusing the decoded pictures in %s", path)
            return pixels
    unfinished = path.with_suffix(".unfinished.npy")
    pixels = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=shape)

    def decode(row: int) -> Skip | None:
        try:
            picture = open_image(images[row].path)
        except (ValueError, OSError) as error:
            return Skip(images[row].id, str(error))
        pixels[row] = np.asarray(resize(picture, side))
        return None

    with ThreadPoolExecutor(4) as pool:
        results = tqdm(
            pool.map(decode, range(len(images))), total=len(images), desc="decoding pictures", unit="image"
        )
        failed = [skip for skip in results if skip]
    pixels.flush()
    if failed:
        unfinished.unlink()
        raise ValueError(f"{len(failed)} pictures cannot be read, first {failed[0].what}: {failed[0].why}")
    unfinished.rename(path)
    return np.load(path, mmap_mode="r")


def train_vocabulary(captions: Iterable[str], extra_words: Sequence[str], size: int) -> list[str]:
    """Learns a WordPiece vocabulary of at most `size` entries; the special tokens come first.

    The extra words are common ones that captions may lack but people's queries will not.
    """
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    lines = [" ".join(extra_words[start : start + 20]) for start in range(0, len(extra_words), 20)] * 20
    tokenizer.train_from_iterator(
        [*captions, *lines],
        vocab_size=size,
        min_frequency=2,
        special_tokens=list(REQUIRED),
        show_progress=False,
    )
    return sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)


class WordTargets:
    """Which words an image's captions use, as a distribution: the target of the auxiliary loss.

    A word weighs (captions of the image that use it) x log(images / images that use it); words used by fewer
    than ``minimum`` images are left out.
    """

    def __init__(self, captions: Sequence[Sequence[str]], minimum: int = 20) -> None:
        counts = [Counter(word for text in texts for word in set(_words(text))) for texts in captions]
        frequency = Counter(word for count in counts for word in count)
        self.words = sorted(word for word, images in frequency.items() if images >= minimum)
        rank = {word: number for number, word in enumerate(self.words)}
        self._rows = [
            [
                (rank[word], n * np.log(len(counts) / frequency[word]))
                for word, n in count.items()
                if word in rank
            ]
            for count in counts
        ]

    def rows(self, indices: Sequence[int]) -> torch.Tensor:
        """Returns the distributions of images: (len(indices), len(self.words)) float32, rows sum to 1."""
        target = torch.zeros(len(indices), len(self.words))
        for row, index in enumerate(indices):
            for word, weight in self._rows[index]:
                target[row, word] = weight
        return target / target.sum(dim=1, keepdim=True).clamp(min=1e-6)


class PatchTargets:
    """Which label (n in `labels` is class n + 1) each patch shows: the box that covers most of it, or 0.

    The file has the columns ``image_name,label,left,top,right,bottom``, the box in shares of the picture's
    width and height from the upper left corner. Boxes of any detection dataset can be written so.
    """

    def __init__(self, path: Path, image_ids: Sequence[str]) -> None:
        """Reads the boxes of some images, which are later asked for by their place here.

        FileNotFoundError if there is no such file; ValueError if a line is malformed, or no box is of the
        images.
        """
        row_of = {image_id: row for row, image_id in enumerate(image_ids)}
        names: dict[str, int] = {}
        rows, classes, boxes = [], [], []
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for line in reader:
                try:
                    if line["image_name"] not in row_of:
                        continue
                    boxes.append([float(line[side]) for side in COLUMNS[2:]])
                except (KeyError, TypeError, ValueError) as error:
                    raise ValueError(
                        f"{path}: line {reader.line_num}: {error}, expected the columns {', '.join(COLUMNS)}"
                    ) from error
                rows.append(row_of[line["image_name"]])
                classes.append(names.setdefault(line["label"], len(names)) + 1)
        if not rows:
            raise ValueError(f"{path}: got no box for the {len(image_ids)} images, expected some")
        self.labels = tuple(names)
        order = np.argsort(rows, kind="stable")
        self._classes = np.array(classes)[order]
        self._boxes = np.array(boxes, dtype=np.float32)[order]
        self._starts = np.searchsorted(np.array(rows)[order], np.arange(len(image_ids) + 1))

    def rows(self, indices: Sequence[int], side: int) -> torch.Tensor:
        """Returns the classes of the patches, line by line: (len(indices), side * side) int64."""
        return torch.from_numpy(np.stack([self._patches(index, side) for index in indices]))

    def _patches(self, index: int, side: int) -> np.ndarray:
        own = slice(self._starts[index], self._starts[index + 1])
        if own.start == own.stop:
            return np.zeros(side * side, dtype=np.int64)
        left, top, right, bottom = (self._boxes[own] * side).T[:, :, None]
        edges = np.arange(side)
        wide = (np.minimum(right, edges + 1) - np.maximum(left, edges)).clip(min=0)  # (boxes, columns)
        high = (np.minimum(bottom, edges + 1) - np.maximum(top, edges)).clip(min=0)  # (boxes, lines)
        cover = (high[:, :, None] * wide[:, None, :]).reshape(len(wide), -1)
        best = cover.argmax(axis=0)
        return np.where(cover.max(axis=0) >= MIN_SHARE, self._classes[own][best], 0).astype(np.int64)


@dataclass(frozen=True)
class Batch:
    """One training batch: image rows, a caption of each for matching, and one for the captioner."""

    rows: list[int]
    queries: list[str]
    captions: list[str]


def make_batch(
    captions: Sequence[Sequence[str]], extra_words: Sequence[str], size: int, seed: int, step: int
) -> Batch:
    """Draws the batch of a step; the same for one seed and step, so that a resumed run goes on exactly.

    Images come in a fresh random order each epoch. The matching text is one of the image's captions or, as
    the queries of later rounds are, several joined; sometimes with foreign words or a filler put in, as
    rewritten queries have. The captioner learns the longest caption.
    """
    per_epoch = len(captions) // size
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng((seed, epoch)).permutation(len(captions))
    rows = sorted(int(row) for row in order[place * size : (place + 1) * size])
    rng = random.Random(f"{seed} {step}")
    queries = [_query(captions[row], extra_words, rng) for row in rows]
    return Batch(rows, queries, [max(captions[row], key=len) for row in rows])


def _query(captions: Sequence[str], extra_words: Sequence[str], rng: random.Random) -> str:
    if len(captions) > 1 and rng.random() < 0.25:
        text = ", ".join(rng.sample(captions, rng.randint(2, min(4, len(captions)))))
    else:
        text = rng.choice(captions)
    if extra_words and rng.random() < 0.25:
        words = text.split(" ")
        for _ in range(rng.randint(1, 3)):
            words.insert(rng.randint(0, len(words)), rng.choice(extra_words))
        text = " ".join(words)
    return f"{rng.choice(_FILLERS)} {text}" if rng.random() < 0.15 else text


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
