"""A build killed again and again ends in the same bytes, its batches the same; resizing in threads, too."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from BLIP.model import BlipEncoder
from index.build import build_index
from index.decode import open_image
from playground.image_folder import list_images

PROJECT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures" / "blip"

BUILD = """
import sys, time
from pathlib import Path
import numpy as np
from index.build import build_index
from playground.image_folder import list_images

class Slow:
    dimension, fingerprint = 4, "slow"
    def encode_images(self, images):
        time.sleep(float(sys.argv[3]))
        rows = np.array([[*np.asarray(image).reshape(-1, 3).mean(axis=0), 99] for image in images])
        rows[:, 3] += rows[:, :3].mean()  # as a GPU's last bits, a vector depends on its batch
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

folder = Path(sys.argv[1])
print("begins", flush=True)
build_index(list_images(folder, "")[0], Slow(), Path(sys.argv[2]), model_name="m", dataset="d",
            image_folder=folder, batch_size=3, workers=2, shard_size=6)
"""


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(60):
        pixels = random.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        PILImage.fromarray(pixels).save(folder / f"{number:02}.png")
    (folder / "07.png").write_bytes(b"broken")
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_build_killed_at_random_moments_ends_as_one_that_was_not(tmp_path, pictures):
    def command(index, seconds):
        return [sys.executable, "-c", BUILD, str(pictures), str(index), str(seconds)]

    subprocess.run(command(tmp_path / "whole", 0), cwd=PROJECT, check=True, capture_output=True, timeout=60)
    delays = np.random.default_rng(1).uniform(0.01, 0.4, 3)
    finished = 0
    for delay in delays:
        with subprocess.Popen(
            command(tmp_path / "killed", 0.03), cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begins\n"
            time.sleep(delay)
            process.kill()
        finished += process.returncode != -signal.SIGKILL
    assert finished < len(delays)
    done = subprocess.run(
        command(tmp_path / "killed", 0), cwd=PROJECT, check=True, capture_output=True, timeout=60
    )
    assert done.returncode == 0
    whole, killed = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "killed")
    )
    assert killed == whole
    assert set(whole) == {"vectors.faiss", "ids.json", "manifest.json", "failed_images.csv", "sizes.json"}


def test_threads_resize_and_the_vectors_are_the_same_to_the_last_bit(tmp_path):
    random = np.random.default_rng(0)
    for number, size in enumerate([(40, 30), (33, 90), (64, 64), (500, 20), (31, 31), (64, 65)]):
        pixels = random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        PILImage.fromarray(pixels).save(tmp_path / f"{number}.png")
    turned = PILImage.Exif()
    turned[0x0112] = 6
    PILImage.open(tmp_path / "1.png").save(tmp_path / "turned.png", exif=turned)
    images, _ = list_images(tmp_path, "")
    encoder = BlipEncoder.open(
        FIXTURES / "itm.pth", config={"num_attention_heads": 2, "vision": {"heads": 3}}
    )
    resized_in = []
    real = encoder.prepare_image

    def noted(picture):
        resized_in.append(threading.current_thread().name)
        return real(picture)

    encoder.prepare_image = noted
    index = build_index(
        images, encoder, tmp_path / "index", model_name="m", dataset="d", image_folder=tmp_path, batch_size=7,
        workers=2,
    )  # fmt: skip
    assert len(resized_in) == len(images) and all(name.startswith("decode") for name in resized_in)
    plain = encoder.encode_images([open_image(image.path) for image in images])
    assert (index.vectors_of(index.ids) == np.rint(plain * 2**26) / np.float32(2**26)).all()
