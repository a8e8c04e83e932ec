"""Milvus Lite's collections against FaissIndex on the same vectors: the same lists, ranks and errors."""

import importlib.util
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from index.build import build_index
from index.faiss_index import FaissIndex
from records import Dataset, Image
from scale import milvus_index
from scale.milvus_address import MilvusAddress
from settings import IndexSettings

INSTALLED = all(importlib.util.find_spec(name) for name in ("pymilvus", "milvus_lite"))
with_milvus = pytest.mark.skipif(
    not INSTALLED, reason="needs Milvus Lite: pip install -r requirements/milvus.txt"
)
MODEL = {"model_name": "m", "model_fingerprint": "f", "dataset": "d", "image_folder": Path("i")}


def unit(seed, count, dimension=24, distinct=None):
    rows = np.random.default_rng(seed).standard_normal((distinct or count, dimension)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows[np.random.default_rng(seed).integers(len(rows), size=count)] if distinct else rows


def names(count, first=0):
    return [f"folder/é '{number:04}\".jpg" for number in range(first, first + count)]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("milvus") / "lite.db"


@pytest.fixture
def address(file, request):
    return f"milvus://{file}/{request.node.originalname}"


def filled(address, ids, vectors, **options):
    index = milvus_index.MilvusIndex.create(address, vectors.shape[1], **MODEL, **options)
    index.add(ids, vectors)
    return index


def assert_same(milvus, flat, queries, k, exclude=None):
    """Lists with scores and ties, and the place of every image for the first query, are FAISS's."""
    assert milvus.ids == flat.ids
    assert milvus.search(queries, k, exclude) == flat.search(queries, k, exclude)
    left_out = set(exclude[0] or ()) if exclude else set()
    targets = [image_id for image_id in flat.ids if image_id not in left_out]
    asked = np.repeat(queries[:1], len(targets), axis=0)
    out = [left_out] * len(targets)
    assert milvus.rank_of(asked, targets, out).tolist() == flat.rank_of(asked, targets, out).tolist()


@with_milvus
@pytest.mark.parametrize("distinct", [None, 7], ids=["all-differ", "most-tie"])
def test_lists_ranks_and_vectors_are_those_of_faiss(file, distinct, monkeypatch):
    monkeypatch.setattr(milvus_index, "BYTES_AT_ONCE", 4 * 24 * 100)  # several blocks
    vectors, ids = unit(1, 350, distinct=distinct), names(350)
    name = "same_ties" if distinct else "same"
    milvus, flat = filled(f"milvus://{file}/{name}", ids, vectors), FaissIndex.build(ids, vectors)
    queries = np.concatenate([unit(2, 5), vectors[:2]])
    best = [ranking.ids for ranking in flat.search(queries, 30)]
    exclude = [set(best[0]), None, np.array([0, 5]), *({one} for one in best[3][:4])]
    assert_same(milvus, flat, queries, 10)
    assert_same(milvus, flat, queries, 10, exclude)
    assert_same(milvus, flat, queries, 400, exclude)
    assert np.array_equal(milvus.vectors_of(milvus.ids), flat.vectors_of(flat.ids))
    some = [ids[300], ids[2], ids[300]]
    assert np.array_equal(milvus.vectors_of(some), flat.vectors_of(some))


@with_milvus
def test_equal_scores_come_by_row_whatever_order_the_server_gives_them(address):
    vectors, ids = unit(14, 40, distinct=6), names(40)
    milvus = filled(address, ids, vectors)
    nearest = milvus._collection.nearest

    def later_first(queries, count, kind):
        found = nearest(queries, count, kind)
        orders = [np.lexsort((-keys, -scores)) for keys, scores, _ in found]
        return [tuple(part[order] for part in one) for one, order in zip(found, orders, strict=True)]

    milvus._collection.nearest = later_first
    assert_same(milvus, FaissIndex.build(ids, vectors), unit(15, 4), 9)


@with_milvus
def test_lists_are_the_same_when_more_is_asked_than_milvus_lists_at_once(address, monkeypatch):
    monkeypatch.setattr(milvus_index, "MAX_RECORDS", 20)
    monkeypatch.setattr(milvus_index, "BYTES_AT_ONCE", 4 * 24 * 16)
    vectors, ids = unit(3, 60, distinct=25), names(60)
    milvus, flat = filled(address, ids, vectors), FaissIndex.build(ids, vectors)
    assert_same(milvus, flat, unit(4, 3), 30, [set(ids[:9]), None, set(ids)])


@with_milvus
def test_appended_and_deleted_images_are_found_and_gone_also_after_opening(address):
    vectors, ids = unit(5, 90), names(90)
    milvus = filled(address, ids[:60], vectors[:60])
    milvus.delete([ids[3], ids[59]])
    milvus.add(ids[60:], vectors[60:])
    kept = [row for row in range(90) if row not in (3, 59)]
    flat = FaissIndex.build([ids[row] for row in kept], vectors[kept])
    assert_same(milvus, flat, vectors[[3, 59, 70]], 5)
    milvus.close()
    opened = milvus_index.MilvusIndex.open(address, "f", 24)
    assert_same(opened, flat, vectors[[3, 59, 70]], 5)
    assert (opened.manifest.count, opened.manifest.dataset) == (88, "d")
    opened.add([ids[3]], vectors[3:4])  # a key is never used twice
    assert opened.search(vectors[3:4], 1)[0].ids == (ids[3],)
    with pytest.raises(ValueError, match="expected one of the index's"):
        opened.delete(["nowhere.jpg"])


@with_milvus
def test_what_does_not_fit_is_refused(address):
    vectors, ids = unit(6, 20), names(20)
    index = filled(address, ids, vectors)
    for call, message in [
        (lambda: index.add([ids[0]], vectors[:1]), "occurs twice"),
        (lambda: index.add(["x" * 5000], vectors[:1]), "1 to 4096 bytes"),
        (lambda: index.add(["new"], vectors[:2]), "1 ids for 2 vectors"),
        (lambda: index.add(["new"], 2 * vectors[:1]), "has length 2"),
        (lambda: index.search(vectors[:1], 0), "k=0"),
        (lambda: index.search(vectors[:1, :5], 1), "expected \\(n, 24\\)"),
        (lambda: index.rank_of(vectors[:1], [ids[1]], [{ids[1]}]), "is excluded"),
        (lambda: index.vectors_of(["nowhere.jpg"]), "nowhere.jpg"),
        (lambda: filled(address, ids, vectors), "the collection is there"),
        (lambda: milvus_index.MilvusIndex.open(address, "other", 24), "another model's index"),
        (lambda: milvus_index.MilvusIndex.open(address, "f", 25), "got dimension 24, expected 25"),
        (lambda: filled(address + "_pq", ids, vectors, kind="ivfpq"), "got index kind 'ivfpq'"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(FileNotFoundError, match="no such collection"):
        milvus_index.MilvusIndex.open(address + "_missing")
    assert len(index) == 20
    assert_same(index, FaissIndex.build(ids, vectors), vectors[:2], 3)


@with_milvus
def test_a_change_that_was_interrupted_or_made_by_others_is_noticed(address):
    vectors, ids = unit(7, 40), names(40)
    opened = filled(address, ids[:30], vectors[:30])
    other = milvus_index.MilvusIndex.open(address)
    other.add(ids[30:], vectors[30:])
    with pytest.raises(ValueError, match="another process changed it"):
        opened.search(vectors[35:36], 2)
    other.delete(ids[:5])
    with pytest.raises(ValueError, match="another process changed it"):
        opened.rank_of(vectors[:1], [ids[8]])
    with pytest.raises(ValueError, match="another process changed it"):
        opened.vectors_of(ids[:1])
    other._collection.insert(np.array([40]), ["late.jpg"], vectors[:1])  # as a kill leaves it: no count
    with pytest.raises(ValueError, match=r"got 36 vectors .* expected 35 .* interrupted.*--rebuild"):
        milvus_index.MilvusIndex.open(address)


@with_milvus
def test_another_collection_is_never_dropped(address):
    from pymilvus import MilvusClient

    place = MilvusAddress.parse(address)
    MilvusClient(place.uri).create_collection(place.collection, dimension=24)
    with pytest.raises(ValueError, match="something else than an image index"):
        filled(address, names(3), unit(8, 3), replace=True)
    assert MilvusClient(place.uri).has_collection(place.collection)


@with_milvus
def test_an_hnsw_collection_finds_nearly_all_with_exact_scores(address):
    vectors, ids = unit(9, 600), names(600)
    milvus, flat = filled(address, ids, vectors, kind="hnsw"), FaissIndex.build(ids, vectors)
    queries = unit(10, 20)
    found, truth = milvus.search(queries, 10), flat.search(queries, 10)
    shared = [len(set(a.ids) & set(b.ids)) for a, b in zip(found, truth, strict=True)]
    assert sum(shared) >= 0.95 * 200
    exact = [
        dict(zip(ranking.ids, ranking.scores, strict=True)) for ranking in flat.search(queries, len(ids))
    ]
    assert all(
        exact[n][i] == s for n, one in enumerate(found) for i, s in zip(one.ids, one.scores, strict=True)
    )


@with_milvus
def test_a_collection_follows_its_folder(address, tmp_path):
    vectors, ids = unit(11, 50), names(50)

    def saved(rows):
        index = FaissIndex.build([ids[row] for row in rows], vectors[rows])
        index.save(tmp_path / "index", **MODEL)
        return FaissIndex.open(tmp_path / "index")

    for rows in (range(40), range(5, 50), range(50), [9, 1, 3]):
        source = saved(list(rows))
        milvus = milvus_index.MilvusIndex.filled_from(source, address)
        assert_same(milvus, source, vectors[:3], 4)
        milvus.close()
    with pytest.raises(ValueError, match="got an index in memory"):
        milvus_index.MilvusIndex.filled_from(FaissIndex.build(ids, vectors), address)


@with_milvus
def test_the_setting_opens_a_collection_and_embeds_what_it_lacks(address, tmp_path, caplog):
    from PIL import Image as Picture

    from experiments.dataset_index import open_retriever
    from index.encoder import Encoder

    class Colours(Encoder):
        fingerprint, dimension = "colours", 3
        encoded = 0

        def encode_images(self, images):
            self.encoded += len(images)
            rows = np.array([np.asarray(image).mean(axis=(0, 1)) + 1 for image in images], dtype=np.float32)
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

        def encode_texts(self, texts):
            return np.full((len(texts), 3), 3**-0.5, dtype=np.float32)

    images = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        Picture.new("RGB", (4, 4), (40 * number, 90, 255 - 40 * number)).save(path)
        images.append(Image(path.name, path, ()))
    dataset = Dataset("small", tmp_path, tuple(images), ())
    settings = IndexSettings(dataset="image_folder", root=tmp_path, index=address).resolved()
    encoder = Colours()
    first = open_retriever(settings, dataset, encoder)
    assert (type(first.index).__name__, len(first.index), encoder.encoded) == ("MilvusIndex", 6, 6)
    assert "Traceback" not in caplog.text  # Milvus Lite logs one for calls that the client does without
    again = open_retriever(settings, dataset, encoder)
    assert encoder.encoded == 6
    flat = build_index(
        images, encoder, tmp_path / "flat", model_name="m", dataset="small", image_folder=tmp_path,
        batch_size=2, workers=1,
    )  # fmt: skip
    assert_same(again.index, flat, encoder.encode_texts(["grey"]), 4)


@with_milvus
@pytest.mark.demo
@pytest.mark.slow
def test_the_demo_is_searched_and_ranked_as_with_faiss(address, tmp_path):
    from experiments.setup import Setup
    from settings import ExperimentSettings

    settings = ExperimentSettings(dataset="demo", index=tmp_path / "index").resolved()
    parts = Setup.open(settings)
    flat = parts.retriever.index
    milvus = milvus_index.MilvusIndex.filled_from(flat, address)
    queries = parts.retriever.encode_texts([query.text for query in parts.queries])
    shown = [set(ranking.ids) for ranking in flat.search(queries, 10)]
    assert milvus.ids == flat.ids
    assert milvus.search(queries, 10) == flat.search(queries, 10)
    assert milvus.search(queries, 10, shown) == flat.search(queries, 10, shown)
    targets = [query.target for query in parts.queries]
    assert milvus.rank_of(queries, targets).tolist() == flat.rank_of(queries, targets).tolist()
    assert np.array_equal(milvus.vectors_of(milvus.ids), flat.vectors_of(flat.ids))


@pytest.fixture
def server(tmp_path):
    """Milvus Lite as a process of its own, behind a port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "milvus_lite.cmdline", "server", "--data-dir", str(tmp_path / "data.db")]
    process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)])
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            time.sleep(0.1)
        yield process, f"milvus://127.0.0.1:{port}/images"
    finally:
        process.kill()
        process.wait()


@with_milvus
def test_a_server_answers_as_a_file_does_and_is_named_when_it_goes_away(server, monkeypatch):
    process, address = server
    vectors, ids = unit(12, 120, distinct=50), names(120)
    flat = FaissIndex.build(ids, vectors)
    filled(address, ids, vectors)
    opened = milvus_index.MilvusIndex.open(address, "f", 24)
    assert_same(opened, flat, unit(13, 3), 10, [set(ids[:20]), None, {ids[7]}])
    assert np.array_equal(opened.vectors_of(ids), flat.vectors_of(ids))
    process.kill()
    process.wait()
    monkeypatch.setattr("scale.milvus_collection.ANSWER_SECONDS", 2.0)
    with pytest.raises(ConnectionError, match="see that the server runs"):
        opened.search(vectors[:1], 1)
    with pytest.raises(ConnectionError, match="see that the server runs"):
        opened.rank_of(vectors[:1], [ids[0]])


@with_milvus
def test_a_server_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("scale.milvus_collection.CONNECT_SECONDS", 1.0)
    with pytest.raises(ConnectionError, match=r"milvus://127\.0\.0\.1:9/images: .*see that the server runs"):
        milvus_index.MilvusIndex.open("milvus://127.0.0.1:9/images")


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ModuleNotFoundError, match=r"pymilvus; run: pip install -r requirements/milvus\.txt"):
        milvus_index.MilvusIndex.open("milvus://127.0.0.1:9/images")


def test_addresses():
    assert MilvusAddress.parse("milvus://db:19530/images") == MilvusAddress("http://db:19530", "images")
    lite = MilvusAddress.parse("milvus:///a/b c.db/images_2")
    assert (lite.uri, lite.collection, lite.is_file) == ("/a/b c.db", "images_2", True)
    for wrong in ("milvus://db/images", "milvus:///a/b/images", "milvus://db:19530/", "milvus://db:1/a-b"):
        with pytest.raises(ValueError, match="expected"):
            IndexSettings(index=wrong)


def test_the_setting_takes_a_collection_or_a_folder():
    assert IndexSettings(index="milvus://db:19530/images").index == "milvus://db:19530/images"
    assert IndexSettings(index="some/folder").index == Path("some/folder")
