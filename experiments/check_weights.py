"""Checks a preset's weights: embeds a known picture, captions it, rewrites a query; prints times and memory.

make check-weights PRESET=rtx3090-int8
python -m experiments.check_weights --preset demo --quantization fp32  # any model or precision, overridden
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from settings import PRESETS, PROJECT, Precision, SessionSettings, run_script

if TYPE_CHECKING:  # opened late, so that --help answers at once
    from PIL.Image import Image

PICTURE = PROJECT / "docs" / "pictures" / "check.jpg"
WORDS = "there is a dog with a kite inside a house"
OTHER_WORDS = ("a pig under a night sky", "two buses on a street", "a cake on the beach")
QUERY = "an animal inside a house"

Result = TypeVar("Result")


@dataclass(frozen=True)
class CheckSettings:
    """Checks a preset's weights with one picture and one query.

    Attributes:
        preset: Set of models, precision and batch sizes.
        encoder: Embeds the picture; the preset's when not given.
        caption_model: Describes the picture; the preset's when not given.
        rewrite_model: Rewrites the query; the preset's when not given.
        quantization: Of the models that write; the preset's when not given.
    """

    preset: str = "rtx3090-int8"
    encoder: str | None = None
    caption_model: str | None = None
    rewrite_model: str | None = None
    quantization: Precision | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset: got {self.preset!r}, expected one of {', '.join(PRESETS)}")


@dataclass(frozen=True)
class Use:
    """Seconds of opening and first use, and of the second; the most memory used, in words."""

    first_seconds: float
    second_seconds: float
    peak: str


@dataclass(frozen=True)
class Check:
    """What came of one model: its id, with the precision where there is a choice, and what it said."""

    model: str
    said: str
    use: Use


def check_weights(settings: CheckSettings) -> dict[str, Check]:
    """Uses the search model, the captioner and the rewriter of a preset twice each, one at a time.

    Raises:
        FileNotFoundError: If weights are missing.
        ValueError: If they cannot be used, a model says nothing, or the picture's own words are not first.
        ModuleNotFoundError: If a package is missing.
    """
    from experiments.models import open_captioner, open_rewriter
    from index.decode import open_image

    values = {name: value for name, value in vars(settings).items() if value is not None}
    session = SessionSettings(**values).resolved()
    picture = open_image(PICTURE)
    checks = {"search": _check_search(session, picture)}

    captioner = open_captioner(session)
    captions, use = _twice(lambda: captioner.caption([picture]))
    if captioner.empty:
        raise ValueError(f"{session.caption_model} found no words for {PICTURE}, expected a sentence")
    checks["captioner"] = Check(f"{session.caption_model} {captioner.quantization}", captions[0], use)
    captioner.release()

    rewriter = open_rewriter(session)
    queries, use = _twice(lambda: rewriter.rewrite([QUERY], captions))
    if not queries[0]:
        raise ValueError(f"{session.rewrite_model} rewrote {QUERY!r} to nothing, expected a query")
    checks["rewriter"] = Check(rewriter.name, queries[0], use)
    return checks


def _check_search(session: SessionSettings, picture: Image) -> Check:
    from experiments.models import open_encoder

    encoder = cache(lambda: open_encoder(session))  # opened with the first use

    def cosines() -> list[float]:
        texts = encoder().encode_texts([WORDS, *OTHER_WORDS])
        return (texts @ encoder().encode_images([picture])[0]).tolist()

    (own, *others), use = _twice(cosines)
    if not own > max(others):
        raise ValueError(
            f"{session.encoder}: {WORDS!r} should be nearest to {PICTURE}, got a cosine of {own:.3f} against"
            f" {max(others):.3f} of other words: this is no trained retrieval model, or it is read as another"
            " kind; see python -m tests.verify_blip"
        )
    return Check(str(session.encoder), f"its words {own:.2f}, other words {max(others):.2f} at most", use)


def _twice(work: Callable[[], Result]) -> tuple[Result, Use]:
    """Works twice; the memory is the GPU's since the last call, else the process's so far."""
    import torch

    on_gpu = torch.cuda.is_available()
    times, results = [time.perf_counter()], []
    for _ in range(2):
        results.append(work())
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter())
    peak = "not known"
    if on_gpu:
        peak = f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB (GPU)"
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
        peak = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB (process)"
    return results[-1], Use(times[1] - times[0], times[2] - times[1], peak)


def format_checks(checks: Mapping[str, Check]) -> str:
    """Formats what came of the models, by their part, as a Markdown table."""
    from evaluation.tables import as_markdown

    rows = [["", "Model", "Said", "Opening and first use, s", "Second use, s", "Peak memory"]]
    for part, check in checks.items():
        times = (f"{check.use.first_seconds:.2f}", f"{check.use.second_seconds:.2f}")
        rows.append([part, check.model, check.said, *times, check.use.peak])
    return as_markdown(rows, left=3)


def main() -> None:
    """Reads the command line, and checks."""
    import tyro

    print(format_checks(check_weights(tyro.cli(CheckSettings))))  # noqa: T201  the table is the script's answer


if __name__ == "__main__":
    raise SystemExit(run_script(main))
