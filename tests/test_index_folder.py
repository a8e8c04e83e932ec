"""The index on disk: round trip, damage, other models, a kill at every step."""

import json
from pathlib import Path

import faiss
import numpy as np
import pytest

from files import file_sha256
from index.faiss_index import FaissIndex
from index.folder import finish_swap

NEXT = "python embed_image_as_faiss.py"


def vectors_of(seed, count=5, dimension=8):
    rows = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def save(folder, seed=0, count=5, fingerprint="f00d"):
    index = FaissIndex.build([f"bilder/ä {number}.jpg" for number in range(count)], vectors_of(seed, count))
    index.save(
        folder,
        model_name="small",
        model_fingerprint=fingerprint,
        dataset="toy",
        image_folder=Path("toy/images"),
    )
    return index


def edit_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder, error: type[Exception] = ValueError, **expected):
    with pytest.raises(error) as caught:
        FaissIndex.open(folder, **expected)
    message = str(caught.value)
    assert "\n" not in message
    assert NEXT in message
    return message


def test_round_trip(tmp_path):
    saved = save(tmp_path / "new" / "index")
    opened = FaissIndex.open(tmp_path / "new" / "index", expect_fingerprint="f00d", expect_dimension=8)
    assert opened.ids == saved.ids
    assert (opened.vectors_of(opened.ids) == saved.vectors_of(saved.ids)).all()
    assert opened.search(vectors_of(1), 5) == saved.search(vectors_of(1), 5)
    assert opened.manifest == saved.manifest
    assert opened.manifest is not None
    assert (opened.manifest.dataset, opened.manifest.image_folder) == ("toy", "toy/images")
    assert (opened.manifest.count, opened.manifest.dimension) == (5, 8)


def test_the_folder_holds_what_is_documented_and_other_tools_read_it(tmp_path):
    saved = save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.json", "manifest.json", "vectors.faiss"]
    assert json.loads((tmp_path / "ids.json").read_text(encoding="utf-8")) == list(saved.ids)
    flat = faiss.read_index(str(tmp_path / "vectors.faiss"))
    assert (flat.ntotal, flat.d, flat.metric_type) == (5, 8, faiss.METRIC_INNER_PRODUCT)


def test_a_missing_or_unfinished_index_is_named(tmp_path):
    assert "no such index folder" in refusal(tmp_path / "none", FileNotFoundError)
    save(tmp_path)
    (tmp_path / "manifest.json").unlink()
    assert "incomplete index: manifest.json" in refusal(tmp_path, FileNotFoundError)


@pytest.mark.parametrize("name", ["vectors.faiss", "ids.json"])
def test_a_damaged_file_is_named(tmp_path, name):
    save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        (tmp_path / name).write_bytes(flipped)
        assert f"{name}: damaged: got sha256" in refusal(tmp_path)
    (tmp_path / name).write_bytes(whole[:-7])
    assert f"{name}: damaged" in refusal(tmp_path)
    (tmp_path / name).unlink()
    assert f"{name}: missing" in refusal(tmp_path, FileNotFoundError)


def test_another_model_or_dimension_is_refused(tmp_path):
    save(tmp_path)
    assert "got f00d (small), expected beef" in refusal(tmp_path, expect_fingerprint="beef")
    assert "got dimension 8, expected 256" in refusal(tmp_path, expect_dimension=256)


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
    ):
        save(tmp_path)
        edit_manifest(tmp_path, **{field: value})
        assert message in refusal(tmp_path)


def test_another_kind_of_faiss_index_is_refused(tmp_path):
    save(tmp_path)
    other = faiss.IndexFlatL2(8)
    other.add(vectors_of(0))
    faiss.write_index(other, str(tmp_path / "vectors.faiss"))
    sums = json.loads((tmp_path / "manifest.json").read_text())["sha256"]
    edit_manifest(tmp_path, sha256=sums | {"vectors.faiss": file_sha256(tmp_path / "vectors.faiss")})
    assert "begin with b'IxF2', expected 205 bytes, FAISS's IndexFlatIP of 5 vectors" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[1, 2]", "got format version None, expected 2"),
        ('{"format_version": 2}', "missing or unknown fields: count, dataset"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path, text, message):
    save(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    assert message in refusal(tmp_path)


def test_an_empty_index_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="got an empty index to save"):
        FaissIndex.build([], np.empty((0, 3), dtype=np.float32)).save(
            tmp_path / "x", model_name="m", model_fingerprint="f", dataset="d", image_folder=Path("i")
        )
    assert not (tmp_path / "x").exists()


class Killed(BaseException):
    """Stands for a kill: nothing in the code under test may catch it."""


def test_a_kill_at_any_step_leaves_the_old_index_or_one_that_is_refused(tmp_path, monkeypatch):
    """Renames, removals and openings of a file in `save` are counted; it is killed before each in turn."""
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
            assert (survivor.vectors_of(old.ids) == old.vectors_of(old.ids)).all()
            outcomes.append("old")
        save(folder, seed=3, count=4)  # what a kill left behind is in nobody's way
        assert len(FaissIndex.open(folder)) == 4
        assert len(list(folder.iterdir())) == 3
    steps_before = outcomes.count("old")
    assert outcomes == ["old"] * steps_before + ["refused"] * (len(outcomes) - steps_before)
    assert steps_before >= 8 and len(outcomes) >= steps_before + 3
