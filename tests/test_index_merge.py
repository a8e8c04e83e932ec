"""Joining indexes: all images with their vectors, or a refusal that says which folders and why."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from index.faiss_index import FaissIndex
from index.merge import merge_indexes
from index.scores import unit_rows

PROJECT = Path(__file__).parent.parent


def rows(seed, count, dimension=8):
    values = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return unit_rows(values / np.linalg.norm(values, axis=1, keepdims=True), dimension, "rows")


def save(folder, ids, vectors, image_folder="/photos", fingerprint="f00d"):
    FaissIndex.build(ids, vectors).save(
        folder,
        model_name="small",
        model_fingerprint=fingerprint,
        dataset="toy",
        image_folder=Path(image_folder),
    )
    return folder


def test_all_images_are_in_the_joined_index_with_their_vectors(tmp_path, monkeypatch):
    monkeypatch.setattr("index.scores.ROWS_AT_ONCE", 3)
    first, second, third = rows(1, 10), rows(2, 7), rows(3, 5)
    second[:4] = first[6:]  # four images are in both
    folders = [
        save(tmp_path / "a", [f"{n}.jpg" for n in range(10)], first),
        save(tmp_path / "b", [f"{n}.jpg" for n in range(6, 13)], second),
        save(tmp_path / "c", [f"{n}.jpg" for n in range(20, 25)], third),
    ]
    assert merge_indexes(folders, tmp_path / "all") == 18
    joined = FaissIndex.open(tmp_path / "all", "f00d", 8)
    assert joined.ids == tuple(f"{n}.jpg" for n in (*range(13), *range(20, 25)))
    assert (joined.vectors_of(joined.ids) == np.concatenate([first, second[4:], third])).all()
    assert joined.manifest is not None
    assert (joined.manifest.dataset, joined.manifest.image_folder) == ("toy", "/photos")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [
        "ids.json",
        "manifest.json",
        "vectors.faiss",
    ]


def test_indexes_over_different_folders_keep_their_images_apart(tmp_path):
    save(tmp_path / "a", ["1.jpg", "2.jpg"], rows(1, 2), "/photos/2023")
    save(tmp_path / "b", ["1.jpg"], rows(2, 1), "/photos/2024/summer")
    merge_indexes([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    joined = FaissIndex.open(tmp_path / "all")
    assert joined.ids == ("2023/1.jpg", "2023/2.jpg", "2024/summer/1.jpg")
    assert (joined.vectors_of(["2024/summer/1.jpg"]) == rows(2, 1)).all()
    assert joined.manifest is not None and joined.manifest.image_folder == "/photos"


def test_what_does_not_belong_together_is_refused(tmp_path):
    one = save(tmp_path / "one", ["1.jpg"], rows(1, 1))
    other_model = save(tmp_path / "other", ["2.jpg"], rows(2, 1), fingerprint="beef")
    wider = save(tmp_path / "wider", ["2.jpg"], rows(2, 1, 9))
    changed = save(tmp_path / "changed", ["1.jpg"], rows(3, 1))
    for second, message in (
        (other_model, "other is of the model beef .*one of f00d"),
        (wider, "expected one model"),
        (changed, "different vectors for '1.jpg'"),
        (one, "got 1 index folders|joined"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_indexes([one, second], tmp_path / "all" if second != one else one)
    with pytest.raises(ValueError, match="at least two"):
        merge_indexes([one], tmp_path / "all")
    with pytest.raises(FileNotFoundError, match="no such index folder"):
        merge_indexes([one, tmp_path / "none"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_the_command_joins_and_a_mistake_is_one_line(tmp_path):
    a = save(tmp_path / "a", ["1.jpg"], rows(1, 1))
    b = save(tmp_path / "b", ["2.jpg"], rows(2, 1))

    def run(*arguments):
        command = [sys.executable, "-m", "index.merge", *map(str, arguments)]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)

    done = run(a, b, "--output", tmp_path / "all")
    assert done.returncode == 0 and "joined 2 indexes to one of 2 images" in done.stderr
    assert FaissIndex.open(tmp_path / "all").ids == ("1.jpg", "2.jpg")
    (b / "vectors.faiss").write_bytes(b"cut")
    failed = run(a, b, "--output", tmp_path / "all")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1 and "b/vectors.faiss: damaged" in failed.stderr
