"""Checks a preset's weights: embeds a known picture, captions it, rewrites a query; prints times and memory.

make check-weights PRESET=rtx3090-int8
python -m experiments.check_weights --preset demo --quantization fp32  # any model or precision, overridden
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from settings import PRESETS, PROJECT, Precision, SessionSettings, run_script

if TYPE_CHECKING:  # opened late, so that --help answers at once
    from PIL.Image import Image

PICTURE = PROJECT / "docs" / "pictures" / "check.jpg"
WORDS = "there is a dog with a kite inside a house"
OTHER_WORDS = ("a pig under a night sky", "two buses on a street", "a cake on the beach")
QUERIES = ("an animal inside a house", "a dog indoors")  # the first call also loads the model

Result = TypeVar("Result")


@dataclass(frozen=True)
class CheckSettings:
    """Checks a preset's weights with one picture and one query.

    Attributes:
        preset: Set of models, precision and batch sizes.
        blip: BLIP checkpoint; the preset's when not given.
        caption_model: Describes the picture; the preset's when not given.
        rewrite_model: Rewrites the query; the preset's when not given.
        quantization: Of the models that write; the preset's when not given.
    """

    preset: str = "rtx3090-int8"
    blip: str | None = None
    caption_model: str | None = None
    rewrite_model: str | None = None
    quantization: Precision | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset: got {self.preset!r}, expected one of {', '.join(PRESETS)}")


@dataclass(frozen=True)
class Check:
    """What came of one model.

    Attributes:
        model: Its id, and the precision where there is a choice.
        said: What it said.
        first_seconds: Opening and using it.
        second_seconds: Using it again.
        peak: The most memory used, in words.
    """

    model: str
    said: str
    first_seconds: float
    second_seconds: float
    peak: str


def check_weights(settings: CheckSettings) -> dict[str, Check]:
    """Uses each model of a preset twice, one model at a time.

    Args:
        settings: Which.

    Returns:
        What came of the search model, the captioner and the rewriter.

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
    (caption,), first = _timed(lambda: captioner.caption([picture]))
    _, second = _timed(lambda: captioner.caption([picture]))
    if captioner.empty:
        raise ValueError(f"{session.caption_model} found no words for {PICTURE}, expected a sentence")
    model = f"{session.caption_model} {captioner.quantization}"
    checks["captioner"] = Check(model, caption, first, second, _peak())
    captioner.release()

    rewriter = open_rewriter(session)
    _, first = _timed(lambda: rewriter.rewrite([QUERIES[0]], [caption]))
    (query,), second = _timed(lambda: rewriter.rewrite([QUERIES[1]], [caption]))
    if not query:
        raise ValueError(f"{session.rewrite_model} rewrote {QUERIES[1]!r} to nothing, expected a query")
    checks["rewriter"] = Check(rewriter.name, query, first, second, _peak())
    return checks


def _check_search(session: SessionSettings, picture: Image) -> Check:
    from experiments.models import open_encoder

    def cosines() -> list[float]:
        texts = encoder.encode_texts([WORDS, *OTHER_WORDS])
        return (texts @ encoder.encode_images([picture])[0]).tolist()

    encoder, opening = _timed(lambda: open_encoder(session))
    (own, *others), first = _timed(cosines)
    _, second = _timed(cosines)
    if not own > max(others):
        raise ValueError(
            f"{session.blip}: {WORDS!r} should be nearest to {PICTURE}, got a cosine of {own:.3f} against"
            f" {max(others):.3f} of other words: this is no trained retrieval model, or it is read as another"
            " kind; see python -m tests.verify_blip"
        )
    said = f"its words {own:.2f}, other words {max(others):.2f} at most"
    return Check(str(session.blip), said, opening + first, second, _peak())


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    import torch

    started = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


def _peak() -> str:
    """Says the most memory used so far: the GPU's since the last call, else the process's."""
    import torch

    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return f"{peak / 2**30:.2f} GiB (GPU)"
    if sys.platform == "win32":
        return "not known"
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB (process)"


def format_checks(checks: Mapping[str, Check]) -> str:
    """Formats what came of the models as a Markdown table.

    Args:
        checks: By the model's part.
    """
    head = ("", "Model", "Said", "Opening and first use, s", "Second use, s", "Peak memory")
    rows = [head, ["---"] * 3 + ["---:"] * 3]
    for part, check in checks.items():
        times = (f"{check.first_seconds:.2f}", f"{check.second_seconds:.2f}")
        rows.append((part, check.model, check.said, *times, check.peak))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Reads the command line, and checks."""
    import tyro

    print(format_checks(check_weights(tyro.cli(CheckSettings))))  # noqa: T201  the table is the script's answer


if __name__ == "__main__":
    raise SystemExit(run_script(main))
