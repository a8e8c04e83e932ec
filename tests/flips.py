"""Changes bytes of each kind of file at random, and looks what is made of it: ``python -m tests.flips``.

Of every kind so many. A changed file must be refused by name, or give what it gave before, or be made again;
anything else is a silent wrong result, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation.runs import append_rounds, read_rounds
from generation.captions import CaptionCache
from index.caption_vectors import CaptionVectors, open_caption_vectors, write_caption_vectors
from index.faiss_index import FaissIndex
from index.shards import Shard, ShardStore
from records import Round
from tests.index_world import random_rows, save_index

COUNT = 40
NAMES = [f"pictures/{number:03}.jpg" for number in range(COUNT)]
RECORD = Round(
    "q#0", 0, "a dog", NAMES[3], (NAMES[3],), tuple(NAMES[:10]), tuple(n / 16 for n in range(10)), 10, 4,
    liked=(NAMES[1],), captions=("a brown dog",),
)  # fmt: skip


class Kind:
    """A kind of file: how a folder of it is made, and what is read out of the folder."""

    def __init__(self, make: Callable[[Path], None], read: Callable[[Path], Any], pattern: str = "*") -> None:
        self.make, self.read, self.pattern = make, read, pattern


def make_index(folder: Path) -> None:
    save_index(folder, NAMES, random_rows(0, COUNT), kind="hnsw")


def read_index(folder: Path) -> Any:
    index = FaissIndex.open(folder, "f00d", 8)
    assert index.manifest is not None
    return index.ids, index.vectors.tobytes(), index.manifest.effort, index.manifest.image_folder


def make_shards(folder: Path) -> None:
    store = ShardStore(folder / "parts", "f00d", 8)
    store.save(0, Shard(NAMES[:20], random_rows(0, 20), sizes=[1] * 20))
    store.save(1, Shard(NAMES[20:], random_rows(1, 20), sizes=[1] * 20))


def read_shards(folder: Path) -> Any:
    shards = ShardStore(folder / "parts", "f00d", 8).load_all()
    return {number: (list(one.ids), one.vectors.tobytes()) for number, one in shards.items()}


def make_records(folder: Path) -> None:
    append_rounds(folder / "rounds.jsonl", [replace(RECORD, query_id=f"q#{n}") for n in range(20)])


def make_captions(folder: Path) -> None:
    CaptionCache(folder / "captions.sqlite").keep("one", {f"{n:064x}": f"a dog, {n}" for n in range(COUNT)})


def read_captions(folder: Path) -> Any:
    cache = CaptionCache(folder / "captions.sqlite")
    return cache.find("one", [f"{n:064x}" for n in range(COUNT)])


def make_caption_vectors(folder: Path) -> None:
    make_index(folder)
    rows = random_rows(3, COUNT)
    write_caption_vectors(folder, CaptionVectors(rows, "c", "s", "0" * 64, {"query": 20.0}, "system"))


def read_caption_vectors(folder: Path) -> Any:
    there = open_caption_vectors(folder, "c", "s")
    return there.vectors.tobytes(), dict(there.calibration), there.captions_sha256


KINDS = {
    "finished index": Kind(make_index, read_index),
    "parts of an index": Kind(make_shards, read_shards, "parts/*"),
    "rounds.jsonl": Kind(make_records, lambda folder: read_rounds(folder / "rounds.jsonl")),
    "captions.sqlite": Kind(make_captions, read_captions, "captions.sqlite"),
    "vectors of captions": Kind(make_caption_vectors, read_caption_vectors, "caption*"),
}


def outcome(kind: Kind, whole: Path, damaged: Path, expected: Any, chance: random.Random) -> str:
    """Changes one bit or one byte; says what came of it."""
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(whole, damaged)
    path = chance.choice(sorted(path for path in damaged.glob(kind.pattern) if path.is_file()))
    data = bytearray(path.read_bytes())
    place = chance.randrange(len(data))
    data[place] ^= chance.choice([1 << chance.randrange(8), chance.randrange(1, 256)])
    path.write_bytes(data)
    try:
        got = kind.read(damaged)
    except (ValueError, FileNotFoundError) as error:
        return "refused by name" if str(damaged) in str(error) else f"refused without a name: {error}"
    if got == expected:
        return "the same"
    is_less = isinstance(got, dict) and got.items() <= expected.items()
    is_less = is_less or (isinstance(got, list) and got == expected[: len(got)])  # a torn last line
    return "made again" if is_less else f"WRONG: {path.name}, byte {place}"


def run(name: str, flips: int, seed: int = 0) -> Counter[str]:
    """Changes bytes of a kind of file so often; returns how often what came of it."""
    kind, chance, outcomes = KINDS[name], random.Random(f"{seed} {name}"), Counter[str]()
    with tempfile.TemporaryDirectory() as home:
        whole = Path(home) / "whole"
        whole.mkdir()
        kind.make(whole)
        expected = kind.read(whole)
        for _ in range(flips):
            outcomes[outcome(kind, whole, Path(home) / "damaged", expected, chance)] += 1
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--flips", type=int, default=2000, help="of each kind of file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    wrong = 0
    for name in KINDS:
        outcomes = run(name, options.flips, options.seed)
        sys.stdout.write(f"{name}: {dict(outcomes)}\n")
        sys.stdout.flush()
        wrong += sum(count for said, count in outcomes.items() if said.startswith("WRONG"))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
