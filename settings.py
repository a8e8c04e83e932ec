"""Every setting once: type, default, help, range. A script's constants override them, then the command line.

Each script has one flat dataclass; the classes that several of them share stand first. Help, range checks,
docs/settings.md (`python settings.py`) and the rule for resuming a run are all derived from the fields.
"""

from __future__ import annotations

import atexit
import dataclasses
import difflib
import functools
import gc
import logging
import math
import re
import signal
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

log = logging.getLogger(__name__)

PROJECT = Path(__file__).parent
DATA_FOLDER = PROJECT / "playground" / "data"
ALIASES = {"blip": "encoder"}  # what settings were called before
DEFAULT_SPLITS = {"demo": "test-medium", "msrvtt": "1k-A"}  # the other datasets are used whole
HUB_SECONDS = 5  # longest wait for a sign of the hub

# Strategies that move words or a vector, so that a person can see and edit the query; then all of them.
MovingStrategyName = Literal[
    "original", "append", "append-anchored", "rewrite", "rewrite-original", "rewrite-anchored",
    "rewrite-chosen", "rocchio", "fusion", "slerp",
]  # fmt: skip
StrategyName = Literal[
    MovingStrategyName, "score-fusion", "rrf", "bayes", "bayes-captions", "itm", "bayes-itm",
    "bayes-captions-itm", "rewrite-bayes",
]  # fmt: skip
UserName = Literal["independent", "caption", "reference", "ground-truth", "random", "first"]
DatasetName = Literal["demo", "flickr30k", "mscoco", "msrvtt", "image_folder"]
RewritingName = Literal["guarded", "published"]
ProtocolName = Literal["honest", "tells", "reference", "paper", "chatir"]
IndexKind = Literal["auto", "flat", "hnsw", "ivf"]
Precision = Literal["int8", "int4", "fp16", "bf16", "fp32", "auto"]
PresetName = Literal[
    "demo", "laptop", "rtx3060-int4", "rtx3090-int4", "rtx3090-int8", "rtx3090-modern", "fp16-48gb"
]  # fmt: skip

# Models, precision and batch sizes that belong together; any constant overrides its preset's value.
PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "encoder": "BLIP/weights/demo",
        "caption_model": "BLIP/weights/demo",
        "rewrite_model": "smollm2-135m-instruct",
        "quantization": "auto",
        "image_batch": 64,
        "caption_batch": 32,
        "rewrite_batch": 64,
    },
    "laptop": {
        "encoder": "google/siglip2-base-patch16-224",
        "caption_model": "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        "caption_pixels": 512 * 512,
        "rewrite_model": "Qwen/Qwen2.5-0.5B-Instruct",
        "quantization": "auto",
        "image_batch": 16,
        "caption_batch": 2,
        "rewrite_batch": 8,
    },
    "rtx3090-int8": {
        "encoder": "BLIP/chatir_weights.ckpt",
        "caption_model": "llava-hf/llava-v1.6-mistral-7b-hf",
        "rewrite_model": "meta-llama/Llama-3.1-8B-Instruct",
        "quantization": "int8",
        "image_batch": 64,
        "caption_batch": 4,
        "rewrite_batch": 16,
    },
    "rtx3090-modern": {
        "encoder": "google/siglip2-so400m-patch14-384",
        "caption_model": "Qwen/Qwen3-VL-4B-Instruct",
        "caption_pixels": 768 * 768,
        "rewrite_model": "Qwen/Qwen3-8B",
        "quantization": "int8",
        "int8_threshold": 0.0,
        "image_batch": 64,
        "caption_batch": 8,
        "rewrite_batch": 16,
    },
}
PRESETS["rtx3090-int4"] = PRESETS["rtx3090-int8"] | {"quantization": "int4", "caption_batch": 8}
PRESETS["rtx3060-int4"] = PRESETS["rtx3090-int4"] | {"caption_batch": 4, "rewrite_batch": 8}
PRESETS["fp16-48gb"] = PRESETS["rtx3090-int8"] | {"quantization": "fp16", "caption_batch": 8}


def option(default: Any, help: str, *, min: float | None = None, max: float | None = None) -> Any:
    """Declares a setting on which results depend: a run is resumed with the same value only.

    Args:
        default: Its value when nobody names another; None where a preset or the dataset fills it in.
        help: For `--help` and docs/settings.md.
        min: Smallest value; of every item of a tuple.
        max: Largest value, likewise.
    """
    return _setting(default, help, min, max, changes_results=True)


def knob(default: Any, help: str, *, min: float | None = None, max: float | None = None) -> Any:
    """Declares a setting on which no results depend; arguments as `option`."""
    return _setting(default, help, min, max, changes_results=False)


def _setting(default: Any, help: str, min: float | None, max: float | None, changes_results: bool) -> Any:
    metadata = {"help": help, "min": min, "max": max, "changes_results": changes_results}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DatasetSettings:
    """A dataset, and the models that go with it."""

    dataset: DatasetName = option("flickr30k", "The pictures, see docs/datasets.md.")
    root: Path | None = option(None, "The dataset's folder; playground/data/DATASET when not given.")
    split: str | None = option(
        None,
        'Part of the dataset; when not given "test-medium" of the demo, "1k-A" of MSR-VTT, "all" of the '
        'others. Flickr30k and MSCOCO also have Karpathy\'s "test" and more, see docs/datasets.md.',
    )
    preset: PresetName | None = knob(
        None,
        'Models, precision and batch sizes; "demo" for the demo, "rtx3090-int8" for the others when not '
        "given.",
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_range(field, getattr(self, field.name))

    def resolved(self) -> Any:
        """Returns the same settings with every open one filled in, from the preset or the dataset."""
        preset = self.preset or ("demo" if self.dataset == "demo" else "rtx3090-int8")
        split = self.split or DEFAULT_SPLITS.get(self.dataset, "all")
        root = self.root or DATA_FOLDER / self.dataset
        values = PRESETS[preset] | {
            "preset": preset,
            "split": split,
            "root": root,
            "index": root / f"index-{split}",
            "caption_cache": DATA_FOLDER / "captions.sqlite",
        }
        names = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) is None]
        return dataclasses.replace(self, **{name: values[name] for name in names if name in values})


@dataclass(frozen=True)
class IndexSettings(DatasetSettings):
    """An index of a dataset's images, and the model that made it."""

    encoder: str | None = option(
        None,
        "Embeds queries and pictures: a BLIP checkpoint (file, folder or hub id), or the folder or hub id "
        "of a CLIP, SigLIP, SigLIP 2, MetaCLIP 2, Chinese-CLIP or ALIGN (docs/encoders.md); the preset's "
        "when not given. BLIP is another name for it.",
    )
    image_size: int | None = option(
        None,
        "Side in pixels to which a BLIP resizes images; the checkpoint's when not given, as of all others.",
        min=1,
    )
    index: str | Path | None = knob(
        None,
        "Folder of the index, ROOT/index-SPLIT when not given; or, for searching, a Milvus collection, "
        "milvus://HOST:19530/COLLECTION or milvus:///FOLDER/FILE.db/COLLECTION (docs/scale.md).",
    )
    image_batch: int | None = knob(None, "Images encoded at a time; the preset's when not given.", min=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.index, str):
            if not self.index.startswith("milvus:"):  # the command line gives words
                object.__setattr__(self, "index", Path(self.index))
            elif not re.fullmatch(r"milvus://([^/\s]+:\d{1,5}|/[^\0]+\.db)/\w+", self.index):
                raise ValueError(
                    f"index: got {self.index!r}, expected milvus://HOST:PORT/COLLECTION or "
                    "milvus:///FOLDER/FILE.db/COLLECTION"
                )


@dataclass(frozen=True)
class RaySettings(DatasetSettings):
    """Which machines go through a whole dataset."""

    engine: Literal["local", "ray"] = knob(
        "local", '"local", this process, or "ray", the workers of a Ray cluster (docs/scale.md).'
    )
    ray_address: str | None = knob(
        None,
        "Address of the cluster; when not given, the one that RAY_ADDRESS names or that runs on this "
        "machine, or else a new one of this machine alone.",
    )
    ray_workers: int | None = knob(None, "How many workers; one a GPU, or one a core, when not given.", min=1)


@dataclass(frozen=True)
class CaptionSettings(DatasetSettings):
    """The model that describes images, here or behind servers."""

    caption_model: str | None = option(None, "Describes images; the preset's when not given.")
    quantization: Precision | bool | None = option(
        None,
        'Precision of the models that write: "int8", "int4", "fp16", "bf16", "fp32", "auto" (16 bits '
        "where the hardware computes in them, else fp32), True for int8, False for fp16; the preset's "
        "when not given.",
    )
    int8_threshold: float | None = option(
        None,
        "With int8: numbers at least so large are multiplied in 16 bits (LLM.int8()'s outliers); 0 for none, "
        "which is twice as fast and may cost quality (docs/hardware.md); the preset's when not given, "
        "else 6.0.",
        min=0,
    )
    caption_pixels: int | None = option(
        None,
        "Pixels of a picture that a vision-language model reads at most, which bounds its tokens; the "
        "preset's when not given, and without one the model's own choice (docs/encoders.md).",
        min=1,
    )
    caption_batch: int | None = knob(None, "Images captioned at a time; the preset's when not given.", min=1)
    caption_cache: Path | None = knob(
        None,
        "File of all captions made so far, whatever the dataset and the run; "
        "playground/data/captions.sqlite when not given.",
    )
    caption_servers: tuple[str, ...] | None = knob(
        None,
        "Addresses of OpenAI-compatible servers that offer the caption model, such as "
        "http://127.0.0.1:8000/v1; the model is loaded here when not given. See docs/servers.md.",
    )
    caption_prices: tuple[float, float] | None = knob(
        None, "Price of a million tokens read and of a million written.", min=0
    )
    server_requests: int = knob(8, "Requests at a time, to each server.", min=1)
    server_seconds: float = knob(120.0, "Longest time for one answer.", min=0.001)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("caption_servers", "rewrite_servers"):
            _check_addresses(name, getattr(self, name, None))


@dataclass(frozen=True)
class CaptionVectorSettings(IndexSettings, CaptionSettings):
    """The system's captions beside an index, as vectors."""

    caption_encoder: str = option(
        "multilingual-e5-small",
        "Sentence encoder by which the system compares its captions: a packaged one "
        '("multilingual-e5-small" or "all-minilm-l6-v2"), a folder or a hub id; not the simulated user\'s.',
    )


@dataclass(frozen=True)
class SessionSettings(CaptionVectorSettings):
    """All models of a session, and where its results go."""

    rewrite_model: str | None = option(None, "Rewrites queries; the preset's when not given.")
    rewrite_batch: int | None = knob(None, "Queries rewritten at a time; the preset's when not given.", min=1)
    rewrite_servers: tuple[str, ...] | None = knob(
        None, "Addresses of servers that offer the rewrite model, as for caption_servers."
    )
    rewrite_prices: tuple[float, float] | None = knob(None, "As caption_prices.", min=0)
    search_captions: bool = option(
        False,
        "Search pictures by their vectors and by the system's captions together, in every round and with "
        "every strategy; needs an index embedded with --captions (docs/feedback.md).",
    )
    take_turns: bool = knob(
        False,
        "Keep only one of captioner and rewriter in memory; on a GPU that happens by itself where it cannot "
        "hold both.",
    )
    output: Path | None = knob(
        None, "Folder of the results; one under runs/, named after the settings, when not given."
    )
    seed: int = option(0, "Seed of everything random.")

    def resolved(self) -> Any:
        """Returns the same settings with every open one filled in."""
        settings = super().resolved()
        return dataclasses.replace(settings, output=settings.output or Path("runs") / settings.run_name())

    def run_name(self) -> str:
        """Returns the name of the run's folder."""
        return f"{self.dataset}-{self.split}" + ("-with-captions" if self.search_captions else "")


@dataclass(frozen=True)
class LoopSettings(SessionSettings):
    """How simulated sessions run, whatever the strategy."""

    protocol: ProtocolName = option(
        "honest",
        'Rules: "honest" (unseen images each round), "tells" (the same, and the user says a new phrase each '
        'round), "reference" (the published code\'s), "paper" (unseen images, any relevant one satisfies) or '
        '"chatir" (all images, all rounds). See docs/evaluation.md.',
    )
    rewriting: RewritingName | None = option(
        None,
        'How a language model rewrites: "published" (as the published code: its demands, sampled at '
        'temperature 0.1 with SEED, whatever comes out, texts of up to 300 tokens) or "guarded" (the '
        "likeliest words, in one line, checked); when not given, published under the protocol reference.",
    )
    rounds: int = option(4, "Rounds, the first search included.", min=1)
    queries: int | None = option(
        None, "How many queries, spread evenly over the dataset; all when not given.", min=1
    )
    caption_numbers: tuple[str, ...] | None = option(
        None, "Which captions of an image serve as queries, by comment number; all when not given."
    )
    query_batch: int = knob(256, "Queries that advance together.", min=1)
    user_model: str = option(
        "all-minilm-l6-v2",
        'Sentence encoder of the users who judge by captions: a folder, a hub id, or "all-minilm-l6-v2".',
    )
    user_likes: int = option(
        1, "How many of the shown images a user who judges by nearness picks at most.", min=1
    )
    user_dislikes: int = option(0, "How many of the shown images a judging user also marks as wrong.", min=0)
    user_patience: int | None = option(
        None,
        "Rounds in a row without progress after which a judging user abandons the search; never when not "
        "given.",
        min=1,
    )
    restart: bool = knob(False, "Discard what the output folder holds of an earlier run.")

    def resolved(self) -> Any:
        """Returns the same settings with every open one filled in."""
        implied: RewritingName = "published" if self.protocol == "reference" else "guarded"
        settings = super().resolved()
        return dataclasses.replace(settings, rewriting=self.rewriting or implied)

    def run_name(self) -> str:
        """Returns the name of the run's folder."""
        return f"{super().run_name()}-{self.protocol}"


# One class a script


@dataclass(frozen=True)
class EmbeddingSettings(CaptionVectorSettings, RaySettings):
    """Embeds the images of a dataset and saves them as a FAISS index."""

    index_kind: IndexKind = option(
        "auto",
        '"flat" (exact), "hnsw" or "ivf" (approximate, for very many images), or "auto": the kind of the '
        "index that is there; for a new one flat below a million images, above it what fits into memory.",
    )
    workers: int = knob(4, "Processes that decode images.", min=1)
    max_failed_share: float = knob(
        0.1, "With more broken images than this share, no index is made.", min=0, max=1
    )
    captions: bool = knob(
        False,
        "Also caption all images, encode the captions and calibrate the index, for the strategies that "
        "compare captions (docs/feedback.md).",
    )
    calibration_split: str | None = option(
        None,
        "Another split of the dataset, embedded with --captions, to whose captions by people the user model "
        "and the fused search are fitted; when not given, they are fitted without labels.",
    )
    rebuild: bool = knob(
        False, "Embed all images again although an index is there; needed to replace another model's."
    )


@dataclass(frozen=True)
class CaptioningSettings(CaptionSettings, RaySettings):
    """Captions all images of a dataset ahead; runs then find the captions ready."""


@dataclass(frozen=True)
class ExperimentSettings(LoopSettings):
    """Runs the feedback loop over a dataset's queries; logs recall and F1 per round."""

    strategy: StrategyName = option(
        "rewrite",
        'How feedback moves the query: "original" (not at all), "append", "rewrite" (the paper\'s: '
        'the last query with the last caption), "rewrite-original" (the person\'s own words with all '
        'captions), "rewrite-anchored" (the same, and the own words stay in the query vector) or another '
        "of docs/feedback.md.",
    )
    user: UserName = option(
        "independent",
        'Simulated user: "independent" (judges by people\'s captions), "caption" (the same without the '
        'query among them), "reference" (judges with the retriever\'s own embedding; flatters), '
        '"ground-truth" (likes all that is relevant; protocol "paper"), "random" or "first" (controls).',
    )
    user_noise: float = option(
        0.0, "Share of the rounds in which a judging user picks a wrong image.", min=0, max=1
    )

    def run_name(self) -> str:
        """Returns the name of the run's folder."""
        habits = {
            "noise": self.user_noise,
            "likes": self.user_likes if self.user_likes > 1 else 0,
            "dislikes": self.user_dislikes,
            "patience": self.user_patience,
        }
        user = "-".join([self.user, *(f"{name}{value:g}" for name, value in habits.items() if value)])
        return f"{super().run_name()}-{user}-{self.strategy}"


@dataclass(frozen=True)
class ComparisonSettings(LoopSettings):
    """Runs several strategies with several simulated users over the same queries, and compares them."""

    strategies: tuple[StrategyName, ...] = option(
        ("append", "rewrite", "rewrite-original", "rewrite-anchored"),
        "Strategies to run; scrolling, the control, is always added.",
    )
    users: tuple[UserName, ...] = option(("independent", "reference", "random", "first"), "Simulated users.")
    noises: tuple[float, ...] = option(
        (0.0,), "Shares of wrong picks; every judging user runs once with each.", min=0, max=1
    )
    seeds: int = option(1, "How often what is random runs: with the seeds SEED, SEED + 1, ...", min=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("strategies", "users", "noises"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}: got {' '.join(map(str, values)) or 'none'}, expected each once")

    def run_name(self) -> str:
        """Returns the name of the comparison's folder."""
        return f"compare-{super().run_name()}"


@dataclass(frozen=True)
class DialogueSettings(IndexSettings):
    """Evaluates other people's dialogues about images: ChatIR's and PlugIR's files as they are."""

    dialogues: Path | None = option(
        None, 'JSON list of {"img": path, "dialog": [caption, "question? answer", ...]}.'
    )
    search_space: Path | None = option(
        None, "JSON list of the image paths searched, below ROOT; the dataset's images when not given."
    )
    turns: Literal["joined", "alone"] = option(
        "joined",
        'What a round searches: the turns so far "joined" by commas, or the last one "alone", as '
        "PlugIR's reformulated dialogues need it.",
    )
    rounds: int | None = option(
        None,
        "Rounds, the first caption's included; as many as the longest dialogue has when not given.",
        min=1,
    )
    query_batch: int = knob(256, "Dialogues searched together.", min=1)
    output: Path | None = knob(
        None, "Folder of the results; one under runs/, named after the dialogue file, when not given."
    )
    restart: bool = knob(False, "Discard what the output folder holds of an earlier run.")

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
    """Opens a page on which a person searches, or the same in the terminal."""

    strategy: StrategyName | Literal["auto"] = option(
        "auto",
        'How feedback moves the query, until the person chooses another; "auto": "bayes-captions" over an '
        'index embedded with --captions, "rewrite-anchored" over a Milvus collection, else "bayes".',
    )
    shown: int = option(10, "Pictures shown a round, until the person chooses another number.", min=1)
    conditions: tuple[StrategyName, ...] = option(
        (),
        "Strategies that a study compares; a Latin square balances their order over the participants. "
        "STRATEGY alone when not given.",
    )
    study_pictures: int = option(
        4, "Pictures that a study's participant looks for with each strategy, after one for practice.", min=1
    )
    consent: Path | None = knob(None, "Text file that a study's participants agree to before they begin.")
    host: str = knob("127.0.0.1", "Address to listen on; any other lets others in who have the token.")
    token: Literal["auto", "always", "never"] = knob(
        "auto",
        'Whether whoever opens the page must have the token of the printed address: "auto" where other '
        'machines can reach it, "always" or "never".',
    )
    port: int = knob(7860, "Port to listen on; 0 takes a free one.", min=0, max=65535)
    names: tuple[str, ...] = knob((), "Names by which browsers may call this machine, besides localhost.")
    describe: bool = knob(
        True, "Caption every shown picture while nothing else is to be done, for alt texts and the terminal."
    )
    terminal: bool = knob(False, "Search in the terminal instead of on a page.")
    text: str | None = knob(None, "Search once with these words, print the best files, and end.")
    picture: Path | None = knob(None, "Search once with this picture, alone or together with `text`.")

    def resolved(self) -> Any:
        """Returns the same settings with every open one filled in.

        Raises:
            ValueError: If the words are blank.
        """
        if self.text is not None and not self.text.strip():
            raise ValueError(f"text: got {self.text!r}, expected words, such as --text 'a dog on a beach'")
        settings = super().resolved()
        if settings.strategy != "auto":
            return settings
        strategy = "rewrite-anchored"
        if isinstance(settings.index, Path):
            captioned = (settings.index / "captions.json").is_file()
            strategy = "bayes-captions" if captioned else "bayes"
        # From here on the run's name tells which one it is.
        return dataclasses.replace(self, strategy=strategy).resolved()

    def run_name(self) -> str:
        """Returns the name of the find-this-picture study's folder."""
        return "-".join(("study", super().run_name(), *(self.conditions or (self.strategy,))))


Settings = TypeVar("Settings", bound=DatasetSettings)


def read_settings(
    kind: type[Settings], constants: Mapping[str, Any], arguments: Sequence[str] | None = None
) -> Settings:
    """Puts defaults, a script's constants and the command line together; the settings are not yet resolved.

    Args:
        kind: The settings' class.
        constants: A script's globals; the upper-case names are its constants.
        arguments: The command line; `sys.argv`'s when None.

    Raises:
        ValueError: If a constant is unknown, mistyped or out of range, or an argument out of range.
        SystemExit: If the command line is wrong, or asks for help.
    """
    import tyro

    values = _checked_constants(kind, constants)
    hints = typing.get_type_hints(kind)
    described = dataclasses.make_dataclass(  # tyro reads the help from annotations, not from metadata
        kind.__name__,
        [
            (
                field.name,
                Annotated[
                    hints[field.name],
                    tyro.conf.arg(
                        help=field.metadata["help"],
                        aliases=[f"--{old}" for old, new in ALIASES.items() if new == field.name] or None,
                    ),
                ],
                dataclasses.field(default=values.get(field.name, field.default)),
            )
            for field in dataclasses.fields(kind)
        ],
    )
    parsed = tyro.cli(described, args=arguments, description=kind.__doc__)
    return kind(**vars(parsed))


def result_settings(kind: type[DatasetSettings]) -> frozenset[str]:
    """Returns the names of the settings on which a run's results depend."""
    return frozenset(field.name for field in dataclasses.fields(kind) if field.metadata["changes_results"])


def find_model(name: str) -> Path | None:
    """Finds a model's file or folder: from where the person stands, or else below the project's folder.

    None where there is none, so that the name is a hub id or a packaged model's.
    """
    for path in (Path(name).expanduser(), PROJECT / name):
        if name and path.exists():
            return path
    return None


@functools.cache
def reach_hub() -> None:
    """Looks once whether the hub of models answers; without it, only models fetched before are looked for.

    Its own library tries each file again for half a minute.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception as error:  # of whichever library it speaks HTTP with
        log.info("%s does not answer (%s): only models fetched before are used", constants.ENDPOINT, error)
        constants.HF_HUB_OFFLINE = True


class Terminated(KeyboardInterrupt):
    """SIGTERM has come: as Ctrl-C, with another exit status."""


def run_script(main: Callable[[], None], stopped: str = "the same command goes on from here") -> int:
    """Runs a script: logging set up, a user's mistake as one line, SIGINT and SIGTERM as a word (`stopped`).

    Returns:
        The exit status: 0, 2 after a mistake, 130 when interrupted, 143 when terminated.
    """
    # Importing torch makes much and drops little: looking for garbage then, and at the end, takes 0.5 s.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_Handler()])
    # faiss tells which of its builds it tries, the HTTP clients every request, matplotlib of its fonts.
    for chatty in ("faiss", "httpx", "httpx2", "openai", "matplotlib"):
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


class _Handler(logging.StreamHandler):
    """Writes log lines to stderr: above a progress bar, with paths relative to where the person stands."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.args, tuple):
            record.args = tuple(as_seen(value) for value in record.args)
        tqdm = sys.modules.get("tqdm")  # no bar without it
        if tqdm is None:
            super().emit(record)
            return
        with tqdm.tqdm.external_write_mode(file=sys.stderr):
            super().emit(record)


def as_seen(value: object) -> object:
    """Returns a path relative to where the person stands, if it lies below; anything else as it is."""
    if isinstance(value, Path) and value.is_absolute() and value.is_relative_to(Path.cwd()):
        return value.relative_to(Path.cwd())
    return value


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _checked_constants(kind: type, constants: Mapping[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in constants.items():
        if not name.isupper() or name.startswith("_"):
            continue
        field = ALIASES.get(name.lower(), name.lower())
        if field in values:
            raise ValueError(f"constants: got {field.upper()} by two names; keep {field.upper()} alone")
        if field not in hints:
            near = difflib.get_close_matches(field, hints, n=1)
            hint = f"; did you mean {near[0].upper()}?" if near else ""
            raise ValueError(f"unknown constant {name}{hint}")
        if not _is_of(value, hints[field]):
            raise ValueError(f"constant {name} = {value!r}: expected {_in_words(hints[field])}")
        values[field] = value
    return values


def _is_of(value: Any, hint: Any) -> bool:
    """Tells whether a value is of a type, for the types that settings have; True is no number here."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, one) for one in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        items = arguments[:1] * len(value) if arguments[-1] is ... and isinstance(value, tuple) else arguments
        return isinstance(value, tuple) and len(value) == len(items) and all(map(_is_of, value, items))
    if hint is float:
        return type(value) in (int, float)
    return isinstance(value, Path) if hint is Path else type(value) is hint


def _in_words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_in_words, arguments))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is tuple:
        return f"a tuple of {_in_words(arguments[0])}"
    return "None" if hint is type(None) else hint.__name__


def _check_range(field: dataclasses.Field, value: Any) -> None:
    low, high = field.metadata["min"], field.metadata["max"]
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, int | float):
            continue
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"{field.name}: got {number}, expected a finite number")
        if low is not None and number < low:
            raise ValueError(f"{field.name}: got {number}, expected at least {low:g}")
        if high is not None and number > high:
            raise ValueError(f"{field.name}: got {number}, expected at most {high:g}")


def _check_addresses(name: str, addresses: tuple[str, ...] | None) -> None:
    if addresses is None:
        return
    if not addresses:
        raise ValueError(f"{name}: got none, expected at least one address")
    for address in addresses:
        if not re.fullmatch(r"https?://(\[[\da-fA-F:]+\]|[^\s/@?#:]+)(:\d{1,5})?(/[^\s?#]*)?", address):
            # What follows such a sign may be a password.
            shown = "one with '@', '?' or '#'" if any(sign in address for sign in "@?#") else repr(address)
            raise ValueError(
                f"{name}: got {shown}, expected an address such as http://127.0.0.1:8000/v1, without "
                "user, password or query"
            )


SCRIPTS = {
    "embed_image_as_faiss.py": EmbeddingSettings,
    "caption_images.py": CaptioningSettings,
    "multi_modal_query_expansion.py, ..._mscoco.py, ..._msrvtt.py": ExperimentSettings,
    "compare.py": ComparisonSettings,
    "interactive_search.py": InteractiveSettings,
    "python -m experiments.dialogues": DialogueSettings,
}
HEAD = """# Settings

Printed by `settings.py`. A constant at the top of a script is the setting in capitals,
an argument the setting with dashes: `CAPTION_BATCH = 8`, `--caption-batch 8`. A run is resumed only with the
same values of the settings marked with a dot, on which its results depend.
"""


def settings_table() -> str:
    """Returns docs/settings.md: every setting of every script."""
    parts = [HEAD]
    seen: set[str] = set()
    for script, kind in SCRIPTS.items():
        fields = dataclasses.fields(kind)
        rows = [_table_row(kind, field) for field in fields if field.name not in seen]
        parts.append(f"## {script}\n\n{kind.__doc__}\n\n| Setting | Default | |\n| --- | --- | --- |")
        parts[-1] += "".join(f"\n{row}" for row in rows) + "\n"
        if known := [f"`{field.name}`" for field in fields if field.name in seen]:
            parts.append(f"Also, as above: {', '.join(known)}.\n")
        seen |= {field.name for field in fields}
    return "\n".join(parts)


def _table_row(kind: type, field: dataclasses.Field) -> str:
    mark = " •" if field.metadata["changes_results"] else ""
    text = field.metadata["help"].replace("|", "\\|")
    hint = typing.get_type_hints(kind)[field.name]
    choices = [one for one in get_args(hint) if isinstance(one, str)]
    if not all(choice in text for choice in choices):
        text += f" One of {', '.join(map(repr, choices))}."
    return f"| `{field.name}`{mark} | `{field.default!r}` | {text} |"


if __name__ == "__main__":
    print(settings_table(), end="")  # noqa: T201  the table is the command's answer
