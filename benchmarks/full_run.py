"""How long a full Flickr30k run would take on one RTX 3090: an estimate, measured on no GPU.

    python -m benchmarks.full_run
    python -m benchmarks.full_run --set rewrite_tokens 60 caption_tokens 40

Operations and bytes follow from the models' configurations (`benchmarks.model_work`), what a GPU makes of
them from published figures, the processor's stages from this project's benchmarks; all of these are in
``benchmarks/constants.yaml``, with their sources. Prints a table, in hours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.constants import read_constants
from benchmarks.model_work import Machine, Work, reads_image, reads_text, step_bytes, writes_tokens
from evaluation.tables import as_markdown
from settings import PRESETS, run_script

BLIP = "Salesforce/blip-itm-base-coco"
PRESET = "rtx3090-int8"


@dataclass(frozen=True)
class FullRunSettings:
    """Estimates a full Flickr30k run on one RTX 3090.

    Attributes:
        set: Constants by name and value, in the place of the file's.
    """

    set: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Way:
    """A way of playing the run.

    Attributes:
        name: For the table.
        number_bytes: Of a weight: 1 for int8, 2 for fp16.
        caption_batch: Pictures captioned at a time.
        rewrite_batch: Queries rewritten at a time.
        keeps: Whether a picture is captioned once and embedded once, and ranks are counted.
        ideal: Whether every GPU stage takes its floor.
    """

    name: str
    number_bytes: int
    caption_batch: int
    rewrite_batch: int
    keeps: bool = True
    ideal: bool = False


_BATCHES = (PRESETS[PRESET]["caption_batch"], PRESETS[PRESET]["rewrite_batch"])
WAYS = (
    Way("one query at a time, int8", 1, 1, 1, keeps=False),
    Way("one query at a time, fp16", 2, 1, 1, keeps=False),
    Way(f"this project, `{PRESET}`", 1, *_BATCHES),
    Way("this project, fp16, captions made ahead", 2, *_BATCHES),
    Way("the same, 32 rewrites at a time", 2, _BATCHES[0], 32),
    Way("the floor of the last", 2, _BATCHES[0], 32, ideal=True),
)


def main() -> None:
    """Runs from the command line."""
    import tyro

    print(table(read_constants(tyro.cli(FullRunSettings).set)))


def counts(constants: Mapping[str, float]) -> tuple[float, float]:
    """Returns how many searches and rewrites all queries need together.

    A query goes on until it is a hit, for four rounds at most. Those that the published protocol stops since
    their rank got worse are not known, so they are counted as going on.
    """
    missed = [1 - constants[f"hits_round_{number}"] for number in (1, 2, 3)]
    rewrites = constants["flickr30k_queries"] * sum(missed)
    return constants["flickr30k_queries"] + rewrites, rewrites


def seconds_each(way: Way, constants: Mapping[str, float], gpu: str) -> dict[str, float]:
    """Estimates what a GPU takes for one item of each stage.

    Args:
        way: The precision and the batches.
        constants: From `read_constants`.
        gpu: "rtx3090" or "a10g".

    Returns:
        Seconds: "embed" and "caption" a picture, "encode" and "rewrite" a query.
    """
    from generation.footprint import configuration

    blip = configuration(BLIP)
    captioner = configuration(PRESETS[PRESET]["caption_model"])
    rewriter = configuration(PRESETS[PRESET]["rewrite_model"])
    memory = constants[f"{gpu}_memory"]
    writing_share = f"writing_share_{'int8' if way.number_bytes == 1 else 'fp16'}"
    encoding, prompt, writing = (
        1.0 if way.ideal else constants[name] for name in ("encoding_share", "prompt_share", writing_share)
    )
    plain = Machine(constants[f"{gpu}_fp32"] * encoding, memory)
    reading = Machine(constants[f"{gpu}_fp16"] * prompt, memory)
    stepping = Machine(constants[f"{gpu}_fp16"], memory * writing)

    def answer(config: Any, prompt: float, steps: float, batch: int, seen: Work) -> float:
        written = writes_tokens(config, steps, prompt, batch, step_bytes(config, way.number_bytes), 2)
        return reading.seconds(seen + reads_text(config, prompt)) + stepping.seconds(written)

    text = captioner.get_text_config()
    photo, sentence = constants["photo_tokens"], constants["caption_tokens"]
    sights = reads_image(captioner.vision_config) * constants["photo_tiles"]
    asked, written = constants["prompt_tokens"], constants["rewrite_tokens"]
    # A batch of captions goes on until its longest ends; a rewrite that ends makes room (generation.greedy).
    longest = sentence * (1 if way.caption_batch == 1 else constants["longest_answer"])
    return {
        "embed": plain.seconds(reads_image(blip.vision_config)),
        "encode": plain.seconds(reads_text(blip.text_config, constants["query_tokens"], causal=False)),
        "caption": answer(text, photo, longest, way.caption_batch, sights),
        "rewrite": answer(rewriter, asked, written, way.rewrite_batch, Work(0)),
    }


def hours(way: Way, constants: Mapping[str, float]) -> dict[str, float]:
    """Estimates the stages of a run.

    Args:
        way: How it is played.
        constants: From `read_constants`.

    Returns:
        Hours by stage: "embed", "caption", "rewrite", "search", and "all".
    """
    searches, rewrites = counts(constants)
    images = constants["flickr30k_images"]
    each = seconds_each(way, constants, "rtx3090")
    if way.keeps:
        captioned, embedded = images, images
        search = constants["search_31k_ms"] + constants["rank_31k_ms"]
    else:
        captioned, embedded = rewrites, images + rewrites  # the target again in every round
        search = constants["faiss_31k_ms"]
    decode = 0.0 if way.ideal else constants["decode_ms"] / 1000
    found = {
        "embed": max(each["embed"], decode) * embedded,
        "caption": each["caption"] * captioned,
        "rewrite": each["rewrite"] * rewrites,
        "search": (each["encode"] + (search + constants["record_ms"]) / 1000) * searches,
    }
    return {stage: seconds / 3600 for stage, seconds in (found | {"all": sum(found.values())}).items()}


def table(constants: Mapping[str, float]) -> str:
    """Lays out the estimate of all ways, as Markdown, in hours."""
    rows: list[tuple[str, ...]] = [
        ("Way of playing", "embed", "caption", "rewrite", "search", "all, h", "times faster")
    ]
    first = hours(WAYS[0], constants)["all"]
    for way in WAYS:
        found = hours(way, constants)
        cells = [_cell(found[stage]) for stage in ("embed", "caption", "rewrite", "search", "all")]
        rows.append((way.name, *cells, f"{first / found['all']:.1f}"))
    return as_markdown(rows)


def _cell(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 0.1 else f"{value:.2f}"


if __name__ == "__main__":
    raise SystemExit(run_script(main))
