"""The base install is enough for the loop and for a session: neither imports an optional package."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.base_imports import LOOP, declared, optional_packages, packages_after

FIXTURES = Path(__file__).parent / "fixtures" / "blip"
SESSION = """
import sys
from multi_modal_query_expansion import main
sys.argv = ["multi_modal_query_expansion.py", *{arguments!r}]
main()
"""


def model_folder(folder, weights):
    folder.mkdir()
    shutil.copy(FIXTURES / weights, folder)
    shutil.copy(FIXTURES / "vocab.txt", folder)
    heads = {"model_type": "blip", "num_attention_heads": 2, "vision": {"heads": 3}}
    (folder / "config.json").write_text(json.dumps(heads))
    return folder


@pytest.fixture
def arguments(tmp_path):
    """Of a whole run over a few pictures, with captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = [("image_name", "comment_number", "comment")]
    for number in range(12):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        rows.append((f"{number}.png", 0, f"picture {number}"))
    with (folder / "images_captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    captioner = model_folder(tmp_path / "captioner", "captioner.pth")
    blip = model_folder(tmp_path / "blip", "itm.pth")
    given = {
        "--dataset": "image_folder", "--root": folder, "--blip": blip, "--caption-model": captioner,
        "--quantization": "fp32", "--strategy": "bayes-captions", "--user": "reference", "--rounds": 2,
        "--caption-cache": tmp_path / "captions.sqlite", "--output": tmp_path / "run",
    }  # fmt: skip
    return [str(part) for pair in given.items() for part in pair]


def test_optional_packages_are_those_of_the_other_requirements_files():
    assert {"pymilvus", "milvus-lite", "bitsandbytes", "uvicorn", "openai", "usearch"} <= optional_packages()
    assert not optional_packages() & declared("requirements.txt")


def test_an_optional_package_is_noticed():
    assert "usearch" in packages_after("import usearch.index") & optional_packages()


def test_code_that_fails_is_named():
    with pytest.raises(ValueError, match="the code failed: ZeroDivisionError"):
        packages_after("1 / 0")


def test_the_loop_imports_no_optional_package():
    packages = packages_after(LOOP)
    assert "numpy" in packages
    assert not packages & optional_packages()


def test_a_session_imports_no_optional_package(arguments, tmp_path):
    packages = packages_after(SESSION.format(arguments=arguments))
    assert (tmp_path / "run" / "rounds.jsonl").is_file()
    assert {"torch", "pillow", "matplotlib"} <= packages  # it did play, and report
    assert not packages & optional_packages()
    assert not packages & {"httpx", "fsspec", "pyarrow", "grpcio", "pandas"}  # what the optional ones bring
