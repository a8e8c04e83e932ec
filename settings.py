"""Every setting once: type, default, range, help. Scripts' constants override them, then the command line."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import logging
import signal
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeVar

log = logging.getLogger(__name__)

PROJECT = Path(__file__).parent
DATA_FOLDER = PROJECT / "playground" / "data"

DEFAULT_SPLITS = {"demo": "test", "msrvtt": "1k-A"}  # of the other datasets all is used

# Strategies that move words or a vector, so that a person can see and edit what is searched; and all of them.
MovingStrategyName = Literal[
    "original", "append", "append-anchored", "rewrite", "rewrite-original", "rewrite-anchored",
    "rewrite-chosen", "rocchio", "fusion", "slerp",
]  # fmt: skip
StrategyName = Literal[
    MovingStrategyName, "score-fusion", "rrf", "bayes", "bayes-captions", "itm", "bayes-itm",
    "bayes-captions-itm", "rewrite-bayes",
]  # fmt: skip
UserName = Literal["independent", "caption", "reference", "ground-truth", "random", "first"]
ProtocolName = Literal["honest", "reference", "paper", "chatir"]
IndexKind = Literal["auto", "flat", "hnsw", "ivf", "ivfpq"]
EngineName = Literal["local", "ray"]

PresetName = Literal["demo", "cpu-small", "rtx3060-int4", "rtx3090-int4", "rtx3090-int8", "fp16-48gb"]

# Model ids, precision and batch sizes that belong together; any single constant overrides its preset's.
PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "blip": "BLIP/weights/demo",
        "caption_model": "BLIP/weights/demo",
        "rewrite_model": "smollm2-135m-instruct",
        "quantization": "auto",
        "image_batch": 64,
        "caption_batch": 32,
        "rewrite_batch": 64,
    },
    "cpu-small": {
        "blip": "Salesforce/blip-itm-base-coco",
        "caption_model": "HuggingFaceTB/SmolVLM-256M-Instruct",
        "rewrite_model": "Qwen/Qwen2.5-0.5B-Instruct",
        "quantization": "auto",
        "image_batch": 16,
        "caption_batch": 2,
        "rewrite_batch": 8,
    },
    "rtx3090-int8": {
        "blip": "BLIP/chatir_weights.ckpt",
        "caption_model": "llava-hf/llava-v1.6-mistral-7b-hf",
        "rewrite_model": "meta-llama/Llama-3.1-8B-Instruct",
        "quantization": "int8",
        "image_batch": 64,
        "caption_batch": 4,
        "rewrite_batch": 16,
    },
}
PRESETS["rtx3090-int4"] = PRESETS["rtx3090-int8"] | {"quantization": "int4", "caption_batch": 8}
PRESETS["rtx3060-int4"] = PRESETS["rtx3090-int4"] | {"caption_batch": 4, "rewrite_batch": 8}
PRESETS["fp16-48gb"] = PRESETS["rtx3090-int8"] | {"quantization": "fp16", "caption_batch": 8}

_COUNTS = (
    "image_size", "image_batch", "workers", "caption_batch", "rewrite_batch", "query_batch", "queries",
    "rounds", "server_requests", "ray_workers",
)  # fmt: skip


@dataclass(frozen=True)
class DatasetSettings:
    """A dataset, and the models that go with it.

    Attributes:
        dataset: "demo", "flickr30k", "mscoco", "msrvtt", "image_folder", "image_tars" or "image_parquet".
        root: The dataset's folder; playground/data/DATASET when not given. Of the last three also an address,
            such as s3://BUCKET/FOLDER; of tars and Parquet files a file, or 'FOLDER/{00000..00009}.tar'.
        split: Part of the dataset; "test" for the demo, "1k-A" for MSR-VTT and "all" for the others when not
            given. Flickr30k and MSCOCO also have Karpathy's: "test" and more, see docs/datasets.md.
        preset: Set of models, precision and batch sizes; "demo" for the demo and "rtx3090-int8" for the
            others when not given.
    """

    dataset: str = "flickr30k"
    root: Path | None = None
    split: str | None = None
    preset: PresetName | None = None

    def __post_init__(self) -> None:
        _check_at_least(self, 1, *_COUNTS)

    def resolved(self) -> Any:
        """Returns the same settings with every open one filled in, from the preset or the dataset."""
        is_demo = self.dataset == "demo"
        preset = self.preset or ("demo" if is_demo else "rtx3090-int8")
        split = self.split or DEFAULT_SPLITS.get(self.dataset, "all")
        root = self.root or DATA_FOLDER / self.dataset
        open_ones = PRESETS[preset] | {
            "preset": preset,
            "split": split,
            "root": root,
            "index": _index_folder(root, split, DATA_FOLDER / self.dataset),
            "caption_cache": DATA_FOLDER / "captions.sqlite",
        }
        names = {field.name for field in dataclasses.fields(self)}
        filled = {
            name: value for name, value in open_ones.items() if name in names and getattr(self, name) is None
        }
        return dataclasses.replace(self, **filled)


@dataclass(frozen=True)
class IndexSettings(DatasetSettings):
    """Embeds the images of a dataset and saves them as a FAISS index.

    Attributes:
        blip: BLIP checkpoint, a file or a folder; the preset's when not given.
        image_size: Side in pixels to which images are resized; the checkpoint's when not given.
        index: Folder of the index, or a Milvus collection, milvus://HOST:19530/COLLECTION or
            milvus:///FOLDER/FILE.db/COLLECTION (docs/scale.md); ROOT/index-SPLIT when not given.
        image_batch: Images encoded at a time; the preset's when not given.
        index_kind: "flat" (exact), "hnsw", "ivf" or "ivfpq" (approximate, for very many images), or "auto":
            flat below a million images, above it what fits into memory.
        workers: Threads that decode images.
        max_failed_share: With more broken images than this share of all, no index is made.
        rebuild: Embed again although an index of the same images and model is there.
    """

    blip: str | None = None
    image_size: int | None = None
    index: str | Path | None = None
    image_batch: int | None = None
    index_kind: IndexKind = "auto"
    workers: int = 4
    max_failed_share: float = 0.1
    rebuild: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.index, str):
            if self.index.startswith("milvus:"):
                from scale.milvus_address import MilvusAddress

                MilvusAddress.parse(self.index)
                if self.root and _index_folder(self.root, "", Path()).parent != self.root:
                    raise ValueError(
                        f"index: got a Milvus collection for {self.root}, which is no folder of this machine;"
                        " the vectors go into the dataset's folder first: name one with --root"
                    )
            else:  # the command line gives words
                object.__setattr__(self, "index", Path(self.index))
        if not 0 <= self.max_failed_share <= 1:
            raise ValueError(f"max_failed_share: got {self.max_failed_share}, expected a share from 0 to 1")


@dataclass(frozen=True)
class SearchSettings(IndexSettings):
    """Searches a dataset once, without feedback.

    Attributes:
        text: What to search for.
        shown: Pictures listed.
    """

    text: str | None = None
    shown: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_least(self, 1, "shown")

    def resolved(self) -> Any:
        """Returns the same settings with every open one filled in.

        Raises:
            ValueError: If there are no words.
        """
        if not (self.text or "").strip():
            raise ValueError(f"text: got {self.text!r}, expected words, such as --text 'a dog on a beach'")
        return super().resolved()


@dataclass(frozen=True)
class CaptionSettings(DatasetSettings):
    """Captions all images of a dataset ahead; runs then find the captions ready.

    Attributes:
        caption_model: Describes images; the preset's when not given.
        quantization: Of the models that write: "int8", "int4", "fp16", "bf16", "fp32", "auto" (16 bits where
            the hardware computes in them, else fp32), or True for int8 and False for fp16; the preset's when
            not given.
        caption_batch: Images captioned at a time; the preset's when not given.
        caption_cache: File of all captions made so far, whatever the dataset and the run;
            playground/data/captions.sqlite when not given.
        caption_servers: Addresses of OpenAI-compatible servers that offer the caption model, such as
            http://127.0.0.1:8000/v1; it is loaded here when not given. See docs/servers.md.
        caption_prices: What they take for a million tokens read and a million written, for the costs.
        server_requests: Requests at a time, to each server.
        server_seconds: Longest time for one answer.
    """

    caption_model: str | None = None
    quantization: Literal["int8", "int4", "fp16", "bf16", "fp32", "auto"] | bool | None = None
    caption_batch: int | None = None
    caption_cache: Path | None = None
    caption_servers: tuple[str, ...] | None = None
    caption_prices: tuple[float, float] | None = None
    server_requests: int = 8
    server_seconds: float = 120.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_servers(self, "caption_servers", "caption_prices")
        if not 0 < self.server_seconds < float("inf"):
            raise ValueError(f"server_seconds: got {self.server_seconds}, expected more than 0")


@dataclass(frozen=True)
class EngineSettings(DatasetSettings):
    """Who goes through a whole dataset.

    Attributes:
        engine: "local", this process, or "ray", the workers of a Ray cluster (docs/scale.md).
        ray_address: Of the cluster; when not given the one that RAY_ADDRESS names or that runs on this
            machine, or else one of this machine alone.
        ray_workers: How many; one a GPU, or without GPUs as many as the cores allow, when not given.
    """

    engine: EngineName = "local"
    ray_address: str | None = None
    ray_workers: int | None = None


@dataclass(frozen=True)
class EmbeddingSettings(IndexSettings, EngineSettings):
    """Embeds the images of a dataset and saves them as a FAISS index."""


@dataclass(frozen=True)
class CaptioningSettings(CaptionSettings, EngineSettings):
    """Captions all images of a dataset ahead; runs then find the captions ready."""


@dataclass(frozen=True)
class SessionSettings(IndexSettings, CaptionSettings):
    """How sessions are played, whatever the strategy and the user.

    Attributes:
        user_model: Sentence encoder of the users who judge by captions: a folder, a hub id, or
            "all-minilm-l6-v2".
        user_dislikes: How many of the shown images a judging user also turns down.
        user_patience: Rounds in a row without progress after which a judging user gives up; never when not
            given.
        protocol: Rules: "honest" (unseen images each round), "reference" (the published code's), "paper"
            (unseen images, any relevant one satisfies) or "chatir" (all images, all rounds played).
        rounds: Rounds played, the first search included.
        rewrite_model: Rewrites queries; the preset's when not given.
        rewrite_batch: Queries rewritten at a time; the preset's when not given.
        rewrite_servers: Addresses of servers that offer the rewrite model, as for caption_servers.
        rewrite_prices: As caption_prices.
        query_batch: Queries that advance together.
        queries: How many queries, spread evenly over the dataset; all when not given.
        caption_numbers: Which captions of an image serve as queries, by comment number; all when not given.
        output: Folder of the run; one under runs/, named after the settings, when not given.
        restart: Throw away what the output folder holds of an earlier run.
        seed: Of everything random.
    """

    user_model: str = "all-minilm-l6-v2"
    user_dislikes: int = 0
    user_patience: int | None = None
    protocol: ProtocolName = "honest"
    rounds: int = 4
    rewrite_model: str | None = None
    rewrite_batch: int | None = None
    rewrite_servers: tuple[str, ...] | None = None
    rewrite_prices: tuple[float, float] | None = None
    query_batch: int = 256
    queries: int | None = None
    caption_numbers: tuple[str, ...] | None = None
    output: Path | None = None
    restart: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_servers(self, "rewrite_servers", "rewrite_prices")

    def resolved(self) -> Any:
        """Returns the same settings with every open one filled in."""
        settings = super().resolved()
        return dataclasses.replace(settings, output=settings.output or Path("runs") / settings.run_name())

    def run_name(self) -> str:
        """Returns the name of the run's folder."""
        return f"{self.dataset}-{self.split}-{self.protocol}"


@dataclass(frozen=True)
class ExperimentSettings(SessionSettings):
    """Plays rounds of feedback over a dataset's queries; logs recall and F1 per round.

    Attributes:
        strategy: How feedback moves the query: "original" (none), "append", "rewrite" (the paper's: the last
            query with the last caption), "rewrite-original" (the person's own words with all captions),
            "rewrite-anchored" (the same, and the own words stay in the query vector) or another of
            docs/refinement.md.
        user: Who gives feedback: "independent" (judges by people's captions), "caption" (the same without the
            query among them), "reference" (judges with the retriever's own embedding; flatters),
            "ground-truth" (likes all that is relevant; protocol "paper"), "random" or "first" (controls).
        user_noise: Share of the rounds in which a judging user points at a wrong image.
    """

    strategy: StrategyName = "rewrite"
    user: UserName = "independent"
    user_noise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_habits(self, self.user_noise)

    def run_name(self) -> str:
        """Returns the name of the run's folder."""
        habits = {"noise": self.user_noise, "dislikes": self.user_dislikes, "patience": self.user_patience}
        user = "-".join([self.user, *(f"{name}{value:g}" for name, value in habits.items() if value)])
        return f"{super().run_name()}-{user}-{self.strategy}"


@dataclass(frozen=True)
class ComparisonSettings(SessionSettings):
    """Plays several strategies with several simulated users over the same queries, and compares them.

    Attributes:
        strategies: Strategies to play; scrolling, the control, always comes along.
        users: Users to play them with.
        noises: Shares of wrong picks; every judging user plays once with each.
        seeds: How often what is random is played: with the seeds SEED, SEED + 1, ...
    """

    strategies: tuple[StrategyName, ...] = ("append", "rewrite", "rewrite-original", "rewrite-anchored")
    users: tuple[UserName, ...] = ("independent", "reference", "random", "first")
    noises: tuple[float, ...] = (0.0,)
    seeds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_least(self, 1, "seeds")
        _check_habits(self, *self.noises)
        for name in ("strategies", "users", "noises"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}: got {' '.join(map(str, values)) or 'none'}, expected each once")

    def run_name(self) -> str:
        """Returns the name of the comparison's folder."""
        return f"compare-{super().run_name()}"


@dataclass(frozen=True)
class DialogueSettings(IndexSettings):
    """Evaluates other people's dialogues about images: ChatIR's and PlugIR's files as they are.

    Attributes:
        dialogues: JSON list of {"img": path, "dialog": [caption, "question? answer", ...]}.
        search_space: JSON list of the image paths searched, below ROOT; the dataset's images when not given.
        turns: What a round searches: the turns so far "joined" by commas, or the last one "alone", as
            PlugIR's reformulated dialogues want it.
        rounds: Rounds, the first caption's included; as many as the longest dialogue has when not given.
        query_batch: Dialogues searched together.
        output: Folder of the run; one under runs/, named after the dialogue file, when not given.
        restart: Throw away what the output folder holds of an earlier run.
    """

    dialogues: Path | None = None
    search_space: Path | None = None
    turns: Literal["joined", "alone"] = "joined"
    rounds: int | None = None
    query_batch: int = 256
    output: Path | None = None
    restart: bool = False

    def resolved(self) -> Any:
        """Returns the same settings with every open one filled in.

        Raises:
            ValueError: If there is no dialogue file, or a search space without its folder.
        """
        if self.dialogues is None:
            raise ValueError("dialogues: got none, expected a JSON file; name it with --dialogues")
        index, space = self.index, self.search_space
        if space is not None and self.root is None:
            raise ValueError(f"root: got none, expected the folder below which the images of {space} lie")
        if space is not None and self.root is not None:
            index = index or self.root / f"index-{space.stem}"
        name = f"chatir-{self.dialogues.stem}" + ("-alone" if self.turns == "alone" else "")
        output = self.output or Path("runs") / name
        return IndexSettings.resolved(dataclasses.replace(self, index=index, output=output))


@dataclass(frozen=True)
class InteractiveSettings(SessionSettings):
    """Opens a page on which a person searches, or the same in the terminal.

    Of the inherited settings, those of simulated sessions (user_model, protocol, rounds, queries,
    query_batch, caption_numbers) have no meaning here; output is the folder of the find-this-picture study.

    Attributes:
        strategy: How feedback moves the query, until the person chooses another.
        shown: Pictures shown a round, until the person chooses another number.
        host: Address to listen on; any other than 127.0.0.1 lets others in, without a password.
        port: Port to listen on; 0 takes a free one.
        names: Names by which browsers may call this machine, besides localhost and plain addresses.
        describe: Caption every shown picture while nothing else is to be done, for alt texts and the
            terminal; if not, only liked ones.
        terminal: Search in the terminal instead of on a page.
    """

    strategy: StrategyName = "rewrite-anchored"
    shown: int = 10
    host: str = "127.0.0.1"
    port: int = 7860
    names: tuple[str, ...] = ()
    describe: bool = True
    terminal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_least(self, 1, "shown")
        _check_at_least(self, 0, "port")

    def run_name(self) -> str:
        """Returns the name of the study's folder."""
        return f"study-{self.dataset}-{self.split}-{self.strategy}"


Settings = TypeVar("Settings", bound=DatasetSettings)


def read_settings(
    kind: type[Settings], constants: Mapping[str, Any], arguments: Sequence[str] | None = None
) -> Settings:
    """Puts defaults, a script's constants and the command line together.

    Args:
        kind: The settings' class.
        constants: A script's globals; the upper-case names are its constants.
        arguments: The command line; `sys.argv`'s when None.

    Returns:
        The settings, not yet resolved.

    Raises:
        ValueError: If a constant is unknown, mistyped or out of range.
        SystemExit: If the command line is wrong, or asks for help.
    """
    import tyro

    return tyro.cli(kind, default=kind(**_checked_constants(kind, constants)), args=arguments)


class Terminated(KeyboardInterrupt):
    """SIGTERM has come: as Ctrl-C, of another status."""


def run_script(main: Callable[[], None], stopped: str = "the same command goes on from here") -> int:
    """Runs a script: logging set up, a user's mistake as one line, SIGINT and SIGTERM as a word.

    Args:
        main: Does the work.
        stopped: What to tell somebody who has stopped it.

    Returns:
        The exit status: 0, 2 after a mistake, 130 when interrupted, 143 when terminated.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # faiss tells which of its builds it tries, the others every request
    for chatty in ("faiss", "httpx", "httpx2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it prints by itself: everything would come twice
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        log.error("error: %s", error)
        log.debug("where it came from", exc_info=True)
        return 2
    except KeyboardInterrupt as error:
        log.error("stopped; %s", stopped)
        return 143 if isinstance(error, Terminated) else 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _checked_constants(kind: type, constants: Mapping[str, Any]) -> dict[str, Any]:
    from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

    hints = typing.get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(kind)}
    values = {}
    for name, value in constants.items():
        if not name.isupper() or name.startswith("_"):
            continue
        field = name.lower()
        if field not in fields:
            near = difflib.get_close_matches(field, fields, n=1)
            hint = f"; did you mean {near[0].upper()}?" if near else ""
            raise ValueError(f"unknown constant {name}{hint}")
        try:
            check_type(value, hints[field], collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError as error:
            reason = "; ".join(line.strip() for line in str(error).splitlines())
            raise ValueError(f"constant {name} = {value!r}: {reason}") from error
        if isinstance(value, bool) and bool not in (hints[field], *typing.get_args(hints[field])):
            raise ValueError(f"constant {name} = {value!r}: expected no bool")
        values[field] = value
    return values


def _index_folder(root: Path, split: str, home: Path) -> Path:
    """Returns where a dataset's index goes: into its folder, or beside what is no folder here."""
    from scale.places import CONTAINERS, address_of, is_remote

    if not is_remote(root) and root.suffix not in CONTAINERS:
        return root / f"index-{split}"
    name = f"index-{split}-{hashlib.sha256(address_of(root).encode()).hexdigest()[:8]}"
    return (home if is_remote(root) else root.parent) / name


def _check_habits(settings: SessionSettings, *noises: float) -> None:
    _check_at_least(settings, 0, "user_dislikes")
    _check_at_least(settings, 1, "user_patience")
    for noise in noises:
        if not 0 <= noise <= 1:
            raise ValueError(f"noise: got {noise}, expected a share from 0 to 1")


def _check_servers(settings: object, addresses: str, prices: str) -> None:
    if getattr(settings, addresses) is not None:
        from generation.server_endpoint import check_address

        if not getattr(settings, addresses):
            raise ValueError(f"{addresses}: got none, expected at least one address")
        for address in getattr(settings, addresses):
            check_address(address)
    for price in getattr(settings, prices) or ():
        if not 0 <= price < float("inf"):
            raise ValueError(f"{prices}: got {price}, expected at least 0")


def _check_at_least(settings: object, least: int, *names: str) -> None:
    for name in names:
        value = getattr(settings, name, None)  # not every kind of settings has them all
        if value is not None and value < least:
            raise ValueError(f"{name}: got {value}, expected at least {least}")
