"""HNSW and IVF: what they list is scored exactly, recall is what is claimed, exclusions hold."""

import json
import logging

import numpy as np
import pytest
from index_world import save_index

from files import file_sha256, own_sha256
from index import approximate
from index.approximate import build_approximate, choose_kind, measure_recall
from index.faiss_index import FaissIndex
from index.scores import list_rows, unit_rows

COUNT, DIMENSION = 3000, 16
KINDS = ("hnsw", "ivf")


def clustered(seed, count):
    centres = np.random.default_rng(0).standard_normal((40, DIMENSION))
    generator = np.random.default_rng(seed)
    rows = centres[generator.integers(40, size=count)] + 0.6 * generator.standard_normal((count, DIMENSION))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit_rows(rows, DIMENSION, "rows")


VECTORS, QUERIES = clustered(1, COUNT), clustered(2, 40)
IDS = [f"{number}.jpg" for number in range(COUNT)]


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """The exact index in memory, and the same images in a saved approximate one."""
    folder = tmp_path_factory.mktemp(request.param)
    return save_index(folder, IDS, VECTORS, request.param), FaissIndex.open(folder), folder


def test_the_recall_that_is_claimed_is_what_a_count_finds(pair):
    exact, opened, _ = pair
    assert opened.manifest is not None and opened.manifest.kind == opened.kind
    assert opened.manifest.effort >= 16 and opened.manifest.recall_at_10 >= 0.95
    scored = list_rows(QUERIES, VECTORS, 10, [np.empty(0, dtype=int)] * len(QUERIES))
    truth = [set(ranking.ids) for ranking in exact.search(QUERIES, 10)]
    found = [set(ranking.ids) for ranking in opened.search(QUERIES, 10)]
    counted = np.mean([len(a & b) / 10 for a, b in zip(truth, found, strict=True)])
    assert counted >= 0.9
    assert counted == pytest.approx(measure_recall(opened._approximate, VECTORS, QUERIES, scored))


def test_scores_and_ranks_are_exact(pair):
    exact, opened, _ = pair
    for listed in opened.search(QUERIES[:5], 20):
        assert list(listed.scores) == sorted(listed.scores, reverse=True)
    (whole,) = exact.search(QUERIES[:1], COUNT)
    exact_score = dict(zip(whole.ids, whole.scores, strict=True))
    (listed,) = opened.search(QUERIES[:1], 20)
    assert [exact_score[image_id] for image_id in listed.ids] == list(listed.scores)
    targets = IDS[:40]
    assert (opened.rank_of(QUERIES, targets) == exact.rank_of(QUERIES, targets)).all()


def test_what_was_shown_is_not_listed_however_much_it_is(pair):
    exact, opened, _ = pair
    (best,) = exact.search(QUERIES[:1], COUNT)
    for shown in (10, 300, COUNT - 5):
        (listed,) = opened.search(QUERIES[:1], 10, exclude=[set(best.ids[:shown])])
        assert len(listed.ids) == min(10, COUNT - shown)
        assert not set(listed.ids) & set(best.ids[:shown])
        assert set(listed.ids) <= set(best.ids[shown : shown + 25])


def test_a_damaged_or_foreign_file_is_refused(pair, tmp_path):
    _, opened, _ = pair
    save_index(tmp_path, IDS, VECTORS, opened.kind)
    path = tmp_path / "approximate.faiss"
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"approximate\.faiss: damaged"):
        FaissIndex.open(tmp_path)
    path.write_bytes((tmp_path / "vectors.faiss").read_bytes())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["sha256"]["approximate.faiss"] = file_sha256(path)
    manifest["own_sha256"] = own_sha256(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"approximate\.faiss: got a IndexFlatIP of 3000 vectors"):
        FaissIndex.open(tmp_path)
    save_index(tmp_path, IDS, VECTORS, "flat")
    assert FaissIndex.open(tmp_path).kind == "flat"
    assert not path.exists()


def test_effort_is_not_raised_for_the_last_bits_of_sampled_queries():
    """Of clustered vectors, a few lists hold the best; queries off the grid must not hide that."""
    random = np.random.default_rng(0)
    centers = random.standard_normal((16, 1, 256))
    rows = (centers + 0.5 * random.standard_normal((16, 250, 256))).reshape(-1, 256)
    vectors = unit_rows(rows / np.linalg.norm(rows, axis=1, keepdims=True), 256, "vectors")
    built = build_approximate(vectors, "ivf")
    assert built.recall > 0.97
    assert built.effort < built.store.nlist


def test_effort_is_raised_until_recall_is_enough_or_it_is_said(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(approximate, "CANDIDATES", 1)
    found = build_approximate(VECTORS, "ivf")
    assert f"ivf index: recall@10 {found.recall:.3f} against exact search, on 200 sampled" in caplog.text
    monkeypatch.setattr(approximate, "RECALL_AIMED", 1.1)
    monkeypatch.setattr(approximate, "RECALL_WANTED", 1.1)
    caplog.clear()
    best = build_approximate(VECTORS, "ivf")
    assert best.effort > found.effort and best.recall >= found.recall
    assert caplog.records[-1].levelname == "WARNING"
    assert "cannot be reached: use --index-kind flat" in caplog.text


@pytest.mark.parametrize(
    ("count", "gigabytes", "kind"),
    [
        (31_783, 24, "flat"),
        (999_999, 1, "flat"),
        (1_000_000, 24, "hnsw"),
        (1_000_000, 0.6, "ivf"),
        (10_000_000, 24, "ivf"),
    ],
)
def test_auto_picks_by_size_and_memory(count, gigabytes, kind):
    assert choose_kind(count, 256, int(gigabytes * 2**30)) == kind
