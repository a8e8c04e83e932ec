"""Workers of a real Ray cluster: the bytes of one process, though workers and the driver are killed."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image as PILImage

from experiments.models import open_encoder
from index.build import build_index
from playground.image_folder import list_images
from settings import CaptioningSettings, EmbeddingSettings

PROJECT = Path(__file__).parent.parent
with_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install -r requirements/scale.txt"
)
SHARD_SIZE = 10  # with batches of 4: the last batch of a part is a small one
DRIVER = f"""
import sys
from pathlib import Path
from scale.ray_jobs import embed_on_ray
from index.build import build_index
from index.shards import ShardStore
from settings import EmbeddingSettings, run_script

save = ShardStore.save
def noted(store, number, shard):
    print("wrote", number, flush=True)
    return save(store, number, shard)
ShardStore.save = noted
build_index.__kwdefaults__["shard_size"] = {SHARD_SIZE}

def main():
    settings = EmbeddingSettings(dataset="image_folder", preset="demo", root=Path(sys.argv[1]), image_batch=4,
                                 index=Path(sys.argv[2]), ray_address=sys.argv[3])
    embed_on_ray(settings)
raise SystemExit(run_script(main))
"""


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two cores, and so of two workers; its address."""
    import ray

    path = os.pathsep.join([str(PROJECT), str(PROJECT / "tests"), os.environ.get("PYTHONPATH", "")])
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
    )  # fmt: skip
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """200 pictures of noise, two of them broken."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for number in range(200):
        size = random.integers(100, 300, 2)
        pixels = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        PILImage.fromarray(pixels).resize(tuple(map(int, size))).save(folder / f"{number:03}.png")
    (folder / "007.png").write_bytes(b"broken")
    (folder / "150.png").write_bytes((folder / "151.png").read_bytes()[:200])
    return folder


@pytest.fixture(scope="module")
def expected(pictures, tmp_path_factory):
    """What one process writes, by file name."""
    import torch

    folder = tmp_path_factory.mktemp("index")
    settings = EmbeddingSettings(dataset="image_folder", preset="demo", image_batch=4).resolved()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        build_index(
            list_images(pictures, "")[0], open_encoder(settings), folder, model_name=settings.encoder,
            dataset="image_folder", image_folder=pictures, batch_size=4, workers=2, shard_size=SHARD_SIZE,
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    return contents(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(pictures, index, address):
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(pictures), str(index), address], cwd=PROJECT, text=True,
        stdout=subprocess.PIPE, stderr=(index.parent / f"{index.name}.log").open("w"),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def log_of(index):
    return (index.parent / f"{index.name}.log").read_text()


def written(driver):
    """Numbers of the parts that the driver writes; Ray says things of its own there."""
    return (int(found[1]) for line in driver.stdout if (found := re.fullmatch(r"wrote (\d+)\n", line)))


@with_ray
@pytest.mark.slow
def test_a_worker_and_then_the_driver_killed_midway_change_no_byte(tmp_path, cluster, pictures, expected):
    index, count = tmp_path / "index", -(-200 // SHARD_SIZE)
    with start(pictures, index, cluster) as driver:
        parts = written(driver)
        numbers = [next(parts) for _ in range(3)]
        ours = psutil.Process().children(recursive=True)
        worker = next(process for process in ours if process.name().startswith("ray::Map"))
        worker.kill()
        numbers += [next(parts) for _ in range(8)]
        assert not worker.is_running()
        driver.kill()
    assert numbers == list(range(11))  # in order: so the part of the killed worker was done again
    there = len(list((index / ".partial").glob("*.json")))
    assert not (index / "manifest.json").exists() and there >= 10
    with start(pictures, index, cluster) as driver:
        again = list(written(driver))
    assert driver.returncode == 0, log_of(index)
    assert "continuing: " in log_of(index)
    assert there + len(again) == count
    assert contents(index) == expected
    assert b"007.png" in expected["failed_images.csv"] and b"150.png" in expected["failed_images.csv"]


def open_half():
    """Halves numbers, which stand where names would."""

    def half(part):
        ((number, _),) = part
        if number == 13:
            os._exit(1)
        if number == 17:
            raise ValueError("17 cannot be halved")
        return {"half": number / 2}, np.float32(number).tobytes()

    return half


def open_nothing():
    os._exit(1)


@with_ray
@pytest.mark.slow
def test_results_come_from_all_workers_and_a_deadly_part_ends_it(cluster):
    from scale.ray_jobs import map_parts

    def mapped(numbers, open_work=open_half):
        settings = EmbeddingSettings(dataset="image_folder", ray_workers=2)
        return list(map_parts([[(number, Path("x"))] for number in numbers], open_work, settings))

    got = sorted((said["half"], np.frombuffer(data, np.float32).item()) for said, data in mapped(range(12)))
    assert got == [(number / 2, number) for number in range(12)]
    with pytest.raises(ValueError, match="a part of the work has killed 3 workers") as caught:
        mapped([1, 13, 2])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^a worker: 17 cannot be halved$"):
        mapped([17])
    with pytest.raises(ValueError, match="a part of the work has killed 3 workers"):
        mapped([1], open_nothing)
    assert mapped([]) == []


@with_ray
def test_other_weights_on_a_workers_machine_are_refused(cluster):
    from scale.ray_jobs import open_embedding

    settings = EmbeddingSettings(dataset="image_folder", preset="demo").resolved()
    with pytest.raises(ValueError, match="got other weights or another image size on a worker's machine"):
        open_embedding(settings, "another", 1)


@with_ray
@pytest.mark.slow
def test_captions_are_those_of_one_process_and_made_once(tmp_path, cluster, pictures):
    import shutil

    from experiments.captions import caption_dataset
    from scale.ray_jobs import caption_on_ray

    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted(pictures.iterdir())[:40]:
        shutil.copy(path, folder)
    shutil.copy(folder / "001.png", folder / "copy.png")

    def settings(cache):
        return CaptioningSettings(
            dataset="image_folder",
            preset="demo",
            root=folder,
            caption_cache=tmp_path / cache,
            caption_batch=2,
        )

    assert caption_on_ray(settings("ray")) == "39 captions made, 1 reused, 1 pictures broken"
    assert caption_on_ray(settings("ray")) == "0 captions made, 40 reused, 1 pictures broken"
    ours, theirs = caption_dataset(settings("ray")), caption_dataset(settings("local"))
    assert ours.counts() == "0 captions made, 40 reused, 1 pictures broken"
    ids = [path.name for path in sorted(folder.iterdir())]
    assert ours.captions_of(ids) == theirs.captions_of(ids)


def test_without_ray_the_command_that_installs_it_is_named(tmp_path, pictures):
    code = "import sys; sys.modules['ray'] = None\n" + DRIVER
    done = subprocess.run(
        [sys.executable, "-c", code, str(pictures), str(tmp_path / "index"), "local"],
        cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: engine ray needs Ray Data; run: pip install -r requirements/scale.txt"
    )


def test_servers_are_not_asked_by_workers():
    from scale.ray_jobs import caption_on_ray

    settings = CaptioningSettings(dataset="demo", engine="ray", caption_servers=("http://127.0.0.1:1/v1",))
    with pytest.raises(ValueError, match="caption_servers: got servers with"):
        caption_on_ray(settings)
