"""The index on disk: other models, edited manifests, a kill at every step, joined indexes."""

import json
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
from index_world import random_rows, save_index

from files import file_sha256, own_sha256
from index.faiss_index import FaissIndex
from index.folder import finish_swap, write_folder
from index.merge import merge_indexes

PROJECT = Path(__file__).parent.parent
FILES = ["ids.json", "manifest.json", "vectors.faiss"]


def save(folder, seed=0, count=5):
    return save_index(folder, [f"bilder/ä {number}.jpg" for number in range(count)], random_rows(seed, count))


def edit_manifest(folder, **changes):
    path = folder / "manifest.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(values | {"own_sha256": own_sha256(values)}))


def refusal(folder, error: type[Exception] = ValueError, **expected):
    with pytest.raises(error) as caught:
        FaissIndex.open(folder, **expected)
    message = str(caught.value)
    assert "\n" not in message
    assert "python embed_image_as_faiss.py" in message
    return message


def test_the_folder_holds_what_is_documented_and_other_tools_read_it(tmp_path):
    folder = tmp_path / "new" / "index"
    saved = save(folder)
    manifest = FaissIndex.open(folder, expect_fingerprint="f00d", expect_dimension=8).manifest
    assert manifest is not None
    assert (manifest.dataset, manifest.image_folder, manifest.count) == ("toy", "toy/images", 5)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert json.loads((folder / "ids.json").read_text(encoding="utf-8")) == list(saved.ids)
    flat = faiss.read_index(str(folder / "vectors.faiss"))
    assert (flat.ntotal, flat.d, flat.metric_type) == (5, 8, faiss.METRIC_INNER_PRODUCT)


def test_a_missing_part_and_another_model_are_named(tmp_path):
    assert "no such index folder" in refusal(tmp_path / "none", FileNotFoundError)
    save(tmp_path)
    assert "got f00d (small), expected beef" in refusal(tmp_path, expect_fingerprint="beef")
    assert "got dimension 8, expected 256" in refusal(tmp_path, expect_dimension=256)
    (tmp_path / "ids.json").unlink()
    assert "ids.json: missing" in refusal(tmp_path, FileNotFoundError)
    (tmp_path / "manifest.json").unlink()
    assert "incomplete index: manifest.json" in refusal(tmp_path, FileNotFoundError)


def test_counts_and_dimension_must_fit_even_where_checksums_do(tmp_path):
    save(tmp_path)
    (tmp_path / "ids.json").write_text('["a", "b"]')
    sums = json.loads((tmp_path / "manifest.json").read_text())["sha256"]
    edit_manifest(tmp_path, sha256=sums | {"ids.json": file_sha256(tmp_path / "ids.json")})
    assert "ids.json: got 2 entries, expected 5" in refusal(tmp_path)
    edit_manifest(tmp_path, count=2)
    assert "vectors.faiss: got 205 bytes" in refusal(tmp_path)
    for field, value, message in (
        ("dimension", 9, "expected 225 bytes, FAISS's IndexFlatIP of 5 vectors of dimension 9"),
        ("count", "5", "count: got '5', expected int"),
        ("sha256", {}, "sha256: got {}"),
        ("kind", "ivfpq", "kind: got 'ivfpq', expected flat, hnsw or ivf"),
        ("format_version", 1, "got format version 1, expected 2"),
    ):
        save(tmp_path)
        edit_manifest(tmp_path, **{field: value})
        assert message in refusal(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format_version": 2}')
    assert "missing or unknown fields: count, dataset" in refusal(tmp_path)
    other = faiss.IndexFlatL2(8)
    other.add(random_rows(0, 5))
    save(tmp_path)
    faiss.write_index(other, str(tmp_path / "vectors.faiss"))
    edit_manifest(tmp_path, sha256=sums | {"vectors.faiss": file_sha256(tmp_path / "vectors.faiss")})
    assert "begin with b'IxF2', expected 205 bytes, FAISS's IndexFlatIP of 5 vectors" in refusal(tmp_path)


def test_an_empty_index_is_not_saved(tmp_path):
    details = {"model_name": "m", "model_fingerprint": "f", "dataset": "d", "image_folder": Path("i")}
    with pytest.raises(ValueError, match="got an empty index to save"):
        write_folder(tmp_path / "x", [], [], dimension=3, **details)
    assert not (tmp_path / "x").exists()


class Killed(BaseException):
    """Stands for a kill: nothing in the code under test may catch it."""


def test_a_kill_at_any_step_leaves_the_old_index_or_one_that_is_refused(tmp_path, monkeypatch):
    """Renames, removals and openings of a file are counted; the writing is killed before each in turn."""
    outcomes = []
    real = {name: getattr(Path, name) for name in ("replace", "unlink", "open")}
    for step in range(30):
        folder = tmp_path / str(step)
        old = save(folder, seed=1)
        left = [step]

        def die_in_time(left=left):
            if left[0] == 0:
                raise Killed
            left[0] -= 1

        def counted(function, die_in_time=die_in_time):
            def call(*arguments, **options):
                die_in_time()
                return function(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name, function in real.items():
                patch.setattr(Path, name, counted(function))
            try:
                save(folder, seed=2, count=7)
                finished = True
            except Killed:
                finished = False
        if finished:
            assert len(FaissIndex.open(folder)) == 7
            break
        try:
            survivor = FaissIndex.open(folder)
        except FileNotFoundError as error:
            assert "incomplete index" in str(error)
            outcomes.append("refused")
            finish_swap(folder)
            assert len(FaissIndex.open(folder)) == 7  # the new one was all there
        else:
            assert survivor.ids == old.ids
            assert (survivor.vectors == old.vectors).all()
            outcomes.append("old")
        save(folder, seed=3, count=4)  # what a kill left behind is in nobody's way
        assert len(FaissIndex.open(folder)) == 4
        assert len(list(folder.iterdir())) == 3
    steps_before = outcomes.count("old")
    assert outcomes == ["old"] * steps_before + ["refused"] * (len(outcomes) - steps_before)
    assert steps_before >= 8 and len(outcomes) >= steps_before + 3


# Joining


def test_the_command_joins_and_a_mistake_is_one_line(tmp_path):
    """Images of different folders stay apart; tests/test_properties_indexes.py joins those of one folder."""
    a, b = tmp_path / "a", tmp_path / "b"
    save_index(a, ["1.jpg", "2.jpg"], random_rows(1, 2), image_folder="/photos/2023")
    save_index(b, ["1.jpg"], random_rows(2, 1), image_folder="/photos/2024/summer")

    def run():
        command = [sys.executable, "-m", "index.merge", a, b, "--output", tmp_path / "all"]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)

    done = run()
    assert done.returncode == 0 and "joined 2 indexes to one of 3 images" in done.stderr
    joined = FaissIndex.open(tmp_path / "all", "f00d", 8)
    assert joined.ids == ("2023/1.jpg", "2023/2.jpg", "2024/summer/1.jpg")
    assert np.allclose(joined.vectors[2], random_rows(2, 1), atol=1e-6)
    assert joined.manifest is not None and joined.manifest.image_folder == "/photos"
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == FILES
    (b / "vectors.faiss").write_bytes(b"cut")
    failed = run()
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1 and "b/vectors.faiss: damaged" in failed.stderr


def test_what_does_not_belong_together_is_not_joined(tmp_path):
    one, same, model, wider = (tmp_path / name for name in ("one", "same", "model", "wider"))
    save_index(one, ["1.jpg"], random_rows(1, 1))
    save_index(same, ["1.jpg"], random_rows(2, 1))
    save_index(model, ["2.jpg"], random_rows(2, 1), fingerprint="beef")
    save_index(wider, ["2.jpg"], random_rows(2, 1, 9))
    for folders, error, message in (
        ([one, model], ValueError, "model: another model's index: got beef .*expected f00d"),
        ([one, wider], ValueError, "wider: got dimension 9, expected 8"),
        ([one, same], ValueError, "'1.jpg' occurs twice"),
        ([one], ValueError, "at least two"),
        ([one, tmp_path / "none"], FileNotFoundError, "no such index folder"),
    ):
        with pytest.raises(error, match=message):
            merge_indexes(folders, tmp_path / "all")
    with pytest.raises(ValueError, match="one of the indexes to be joined"):
        merge_indexes([one, model], one)
    assert not (tmp_path / "all").exists()
