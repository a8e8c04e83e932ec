"""What tests of whole runs share: tiny models of random weights, and pictures of noise with captions."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

FIXTURES = Path(__file__).parent / "fixtures" / "blip"
HEADS = {"model_type": "blip", "num_attention_heads": 2, "vision": {"heads": 3}}


def model_folder(folder, weights):
    """A checkpoint of the fixtures (itm.pth, captioner.pth, retrieval_full.pth) as a folder that opens."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(FIXTURES / weights, folder)
    shutil.copy(FIXTURES / "vocab.txt", folder)
    (folder / "config.json").write_text(json.dumps(HEADS))
    return folder


def draw_noise(paths):
    random = np.random.default_rng(0)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        noise.resize((40, 30), Image.Resampling.NEAREST).save(path)


def write_captions(folder, said):
    """Writes images_captions.csv: what is said of each picture, one text after the other."""
    rows = [(name, number, text) for name, texts in said.items() for number, text in enumerate(texts)]
    with (folder / "images_captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image_name", "comment_number", "comment"), *rows])


def picture_folder(folder, count=30):
    """Pictures of noise, two captions each."""
    names = [f"{number}.png" for number in range(count)]
    draw_noise([folder / name for name in names])
    said = {name: [f"picture {number} of a {word}" for word in "ab"] for number, name in enumerate(names)}
    write_captions(folder, said)
    return folder
