"""`--engine ray`: embedding and captioning by the workers of a Ray cluster, with Ray Data.

The command's process lists the images, cuts them into parts, and alone writes what comes back, by the code
that does it without Ray: so the same batches are encoded, and a stopped command goes on, either way.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.models import caption_batch, open_captioner, open_encoder
from experiments.open_index import embed_dataset, open_named_dataset
from files import file_sha256
from generation.captions import CaptionCache, Captioner, ImageCaptions, name_captioner, open_pictures
from index.build import Done
from index.encoder import embed
from index.faiss_index import FaissIndex
from index.shards import Shard
from records import Image, Skip
from settings import PROJECT, CaptioningSettings, EmbeddingSettings

log = logging.getLogger(__name__)

INSTALL = "pip install -r requirements/scale.txt"
MAX_RETRIES = 2  # of a part: one that crashes every worker must not go on for ever
BATCHES_AT_ONCE = 8  # of a part to caption: what a kill costs

Part = Sequence[tuple[str, Path]]  # name and file of some pictures
Result = tuple[dict[str, Any], bytes]  # what JSON can express, and vectors
Work = Callable[[Part], Result]


def embed_on_ray(settings: EmbeddingSettings) -> FaissIndex:
    """Embeds a dataset's images on a Ray cluster, and writes the index; raises as `embed_dataset` does."""
    settings = settings.resolved()

    def embed_parts(parts: Sequence[Sequence[Image]]) -> Done:
        named = [[(image.id, image.path) for image in part] for part in parts]
        encoder = open_encoder(settings)
        open_work = partial(open_embedding, settings, encoder.fingerprint, _threads())
        with closing(map_parts(named, open_work, settings)) as results:
            for said, data in results:
                vectors = np.frombuffer(data, np.float32).reshape(-1, encoder.dimension)
                skipped = [Skip(what, why) for what, why in said["broken"]]
                yield Shard(said["ids"], vectors, [skip.what for skip in skipped]), skipped

    return embed_dataset(settings, embed_parts=embed_parts)


def open_embedding(settings: EmbeddingSettings, fingerprint: str, threads: int) -> Work:
    """Opens the encoder in a worker; returns what embeds a part.

    Raises:
        ValueError: If this machine's checkpoint holds other weights than `fingerprint` says.
    """
    import torch

    torch.set_num_threads(threads)
    encoder = open_encoder(settings)
    if encoder.fingerprint != fingerprint:
        raise ValueError(
            f"{settings.encoder}: got other weights or another image size on a worker's machine than here"
            f" ({encoder.fingerprint}, expected {fingerprint}); copy the checkpoint to every machine"
        )

    def work(part: Part) -> Result:
        images = [Image(name, path) for name, path in part]
        batch, bar = settings.image_batch or 32, tqdm(disable=True)
        ((shard, skipped),) = embed(images, encoder, batch, settings.workers, bar)
        broken = [(skip.what, skip.why) for skip in skipped]
        return {"ids": list(shard.ids), "broken": broken}, shard.vectors.tobytes()

    return work


def caption_on_ray(settings: CaptioningSettings) -> str:
    """Captions the images of a dataset that have no caption yet, equal files once; returns the counts.

    Raises:
        FileNotFoundError: If the dataset is missing.
        ModuleNotFoundError: If Ray is not installed.
        ValueError: If dataset, captioner or cache cannot be used, or the workers fail.
    """
    settings = settings.resolved()
    if settings.caption_servers or settings.caption_cache is None:
        raise ValueError(
            "caption_servers: got servers with engine ray, expected one of the two: servers are asked from"
            " one process, many requests at a time; leave --engine ray out"
        )
    images = open_named_dataset(settings).images
    captions = _RayCaptions(settings, images, CaptionCache(settings.caption_cache))
    log.info("captions by %s in %s", captions.captioner_name, settings.caption_cache)
    captions.captions_of([image.id for image in images])
    return captions.counts()


class _RayCaptions(ImageCaptions):
    """Captions made by workers; the cache keeps those of a part as soon as it is done."""

    def __init__(self, settings: CaptioningSettings, images: Sequence[Image], cache: CaptionCache) -> None:
        super().__init__(open_captioner(settings), images, cache, max(1, len(images)))
        self._settings = settings

    def make(self, pictures: Mapping[str, Path]) -> tuple[dict[str, str], dict[str, str]]:
        size = caption_batch(self._settings) * BATCHES_AT_ONCE
        named = list(pictures.items())
        parts = [named[first : first + size] for first in range(0, len(named), size)]
        open_work = partial(open_captioning, self._settings, self.captioner_name, _threads())
        captions: dict[str, str] = {}
        broken: dict[str, str] = {}
        with (
            tqdm(total=len(named), desc="captioning", unit="image") as bar,
            closing(map_parts(parts, open_work, self._settings)) as results,
        ):
            for said, _ in results:
                captions |= self._cache.keep(self.captioner_name, said["captions"])
                broken |= said["broken"]
                bar.update(len(said["captions"]) + len(said["broken"]))
        return captions, broken


def open_captioning(settings: CaptioningSettings, name: str, threads: int) -> Work:
    """Opens the captioner in a worker; returns what describes a part.

    Raises:
        ValueError: If this machine would make other captions than those called `name`.
    """
    import torch

    torch.set_num_threads(threads)
    captioner = open_captioner(settings)
    ours = name_captioner(captioner, lambda paths: {path: file_sha256(path) for path in paths})
    if ours != name:
        raise ValueError(
            f"got the captioner {ours!r} on a worker's machine, expected {name!r} as here; copy the model to"
            " every machine, and name the precision with --quantization where GPUs and CPUs are mixed"
        )
    return lambda part: (_describe(part, captioner, caption_batch(settings)), b"")


def _describe(part: Part, captioner: Captioner, batch_size: int) -> dict[str, dict[str, str]]:
    captions: dict[str, str] = {}
    broken: dict[str, str] = {}
    for start in range(0, len(part), batch_size):
        opened, unreadable = open_pictures(dict(part[start : start + batch_size]))
        broken |= unreadable
        captions |= zip(opened, captioner.caption(list(opened.values())), strict=True)
    return {"captions": captions, "broken": broken}


def map_parts(
    parts: Sequence[Part], open_work: Callable[[], Work], settings: EmbeddingSettings | CaptioningSettings
) -> Generator[Result, None, None]:
    """Yields what came of each part as soon as it is there, in any order; asks for no cluster without parts.

    Args:
        parts: Done one at a time; the part of a worker that dies goes to another.
        open_work: Called once in each worker; opens the model, and returns what is done with a part.
        settings: Name the cluster and the number of workers; when not given one a GPU, or without GPUs as
            many as the cores allow.

    Raises:
        ModuleNotFoundError: If Ray Data is not installed.
        ValueError: If there is no such cluster, a worker cannot open its model or fails at a part, or a part
            kills one worker after the other.
    """
    if not parts:
        return
    ray = _import_ray()
    connected_here = not ray.is_initialized()
    if connected_here:
        _connect(ray, settings.ray_address)
    there = ray.cluster_resources()
    gpus, cores = int(there.get("GPU", 0)), int(there.get("CPU", 1))
    count = settings.ray_workers or gpus or max(1, cores // _threads())
    log.info("Ray: %d GPUs, %d cores", gpus, cores)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it tells, it raises, too
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")  # see requirements/scale.txt
    texts = [{"part": json.dumps([(name, str(path.absolute())) for name, path in part])} for part in parts]
    # A block a part, and a batch a block: so the encoder gets the batches that it gets in one process.
    results = ray.data.from_items(texts, override_num_blocks=len(texts)).map_batches(
        _Worker, batch_size=1, batch_format="pyarrow", fn_constructor_args=(open_work,),
        compute=ray.data.ActorPoolStrategy(size=min(len(parts), count)),
        num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=MAX_RETRIES, max_task_retries=MAX_RETRIES,
    )  # fmt: skip
    try:
        for row in results.iter_rows():
            said = json.loads(row["said"])
            if "error" in said:
                raise ValueError(f"a worker: {said['error']}")
            yield said, row["data"]
    except ray.exceptions.RayError as error:
        raise ValueError(
            f"a part of the work has killed {MAX_RETRIES + 1} workers ({' '.join(str(error).split())}); what"
            " was done is kept, and the same command goes on; where memory ran out, use fewer workers"
            " (--ray-workers) or smaller batches"
        ) from error
    finally:
        if connected_here:
            ray.shutdown()


class _Worker:
    """What Ray Data keeps in a worker's process."""

    def __init__(self, open_work: Callable[[], Work]) -> None:
        self._open_work = open_work
        self._work: Work | None = None

    def __call__(self, table: Any) -> Any:
        import pyarrow as pa  # type: ignore[import-not-found]

        (text,) = table["part"].to_pylist()
        data = b""
        try:
            self._work = self._work or self._open_work()
            said, data = self._work([(name, Path(path)) for name, path in json.loads(text)])
        except (ValueError, OSError, ModuleNotFoundError) as error:  # Ray would add a page of traceback
            said = {"error": str(error)}
        return pa.table({"said": [json.dumps(said)], "data": pa.array([data], pa.large_binary())})


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports to its makers
    try:
        import ray
        import ray.data  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"engine ray needs Ray Data; run: {INSTALL}") from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    stopping = signal.getsignal(signal.SIGTERM)
    path = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        ray.init(
            address=address,
            include_dashboard=None if address or "RAY_ADDRESS" in os.environ else False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            runtime_env={"env_vars": {"PYTHONPATH": path}},
        )
    except (ConnectionError, RuntimeError) as error:
        named = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise ValueError(
            f"Ray on {named}: {' '.join(str(error).split())}; start it with: ray start --head, or leave"
            " --ray-address out for a cluster of this machine alone"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stopping)  # Ray puts in its own, which ends without a word
