"""Milvus Lite's collections against FaissIndex on the same vectors: the same lists, and clear errors."""

import importlib.util
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from index_world import save_index

from experiments.open_index import open_retriever
from index.faiss_index import FaissIndex
from scale import milvus
from scale.milvus import MilvusIndex
from settings import ExperimentSettings

INSTALLED = all(importlib.util.find_spec(name) for name in ("pymilvus", "milvus_lite"))
with_milvus = pytest.mark.skipif(
    not INSTALLED, reason="needs Milvus Lite: pip install -r requirements/scale.txt"
)


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


@pytest.fixture
def saved(tmp_path):
    """Saves vectors as an index folder, and opens it."""

    def save(ids, vectors):
        save_index(tmp_path / "index", ids, vectors, image_folder="i", fingerprint="f")
        return FaissIndex.open(tmp_path / "index")

    return save


def assert_same(found, flat, queries, k, exclude=None):
    assert found.ids == flat.ids
    assert found.search(queries, k, exclude) == flat.search(queries, k, exclude)


@with_milvus
@pytest.mark.parametrize("distinct", [None, 100], ids=["all-differ", "some-tie"])
def test_lists_and_vectors_are_those_of_faiss(file, saved, distinct, monkeypatch):
    monkeypatch.setattr(milvus, "BYTES_AT_ONCE", 4 * 24 * 100)  # several messages
    flat = saved(names(350), unit(1, 350, distinct=distinct))
    index = MilvusIndex.create_from(flat, f"milvus://{file}/same_{distinct}")
    queries = np.concatenate([unit(2, 5), flat.vectors[:2]])
    best = [ranking.ids for ranking in flat.search(queries, 30)]
    exclude = [set(best[0]), None, np.array([0, 5]), *({one} for one in best[3][:4])]
    assert_same(index, flat, queries, 10)
    assert_same(index, flat, queries, 10, exclude)
    assert_same(index, flat, queries, 400, exclude)
    some = [flat.ids[300], flat.ids[2], flat.ids[300]]
    assert np.array_equal(index.vectors_of(flat.ids), flat.vectors_of(flat.ids))
    assert np.array_equal(index.vectors_of(some), flat.vectors_of(some))
    assert index.search(queries[:1], 3, [set(flat.ids)])[0].ids == ()


@with_milvus
def test_a_collection_is_filled_anew_and_opens_as_its_folder(address, saved):
    vectors, ids = unit(5, 50), names(50)
    for rows in (range(40), [9, 1, 3]):
        flat = saved([ids[row] for row in rows], vectors[list(rows)])
        filled = MilvusIndex.create_from(flat, address)
        assert_same(filled, flat, vectors[[3, 9, 45]], 4)
        filled.close()
        opened = MilvusIndex.open(address, "f", 24)
        assert_same(opened, flat, vectors[[3, 9, 45]], 4)
        assert (opened.manifest.count, opened.manifest.image_folder) == (len(rows), "i")
        opened.close()


@with_milvus
def test_an_opened_collection_notices_that_another_process_filled_it(address, saved):
    vectors, ids = unit(7, 40), names(40)
    opened = MilvusIndex.create_from(saved(ids[:30], vectors[:30]), address)
    MilvusIndex.create_from(saved(ids[5:], vectors[5:]), address)
    for call in (lambda: opened.search(vectors[30:31], 2), lambda: opened.vectors_of([ids[2]])):
        with pytest.raises(ValueError, match="another process changed it"):
            call()  # row 2 is there, but of another image


@with_milvus
def test_an_interrupted_filling_is_refused_and_done_again(address, saved, monkeypatch):
    from pymilvus import MilvusClient

    monkeypatch.setattr(milvus, "BYTES_AT_ONCE", 4 * 24 * 10)  # two messages
    flat, insert = saved(names(20), unit(8, 20)), MilvusClient.insert

    def killed(client, name, records, **options):
        if records[0]["row"]:
            raise KeyboardInterrupt
        return insert(client, name, records, **options)

    with monkeypatch.context() as patched:
        patched.setattr(MilvusClient, "insert", killed)
        with pytest.raises(KeyboardInterrupt):
            MilvusIndex.create_from(flat, address)
    with pytest.raises(ValueError, match=r"got 10 vectors .*its filling was interrupted; .*scale\.milvus"):
        MilvusIndex.open(address)
    assert_same(MilvusIndex.create_from(flat, address), flat, unit(10, 3), 5)


@with_milvus
def test_what_does_not_fit_is_refused(address, saved, tmp_path):
    flat = saved(names(20), unit(6, 20))
    vectors, ids = flat.vectors, flat.ids
    index = MilvusIndex.create_from(flat, address)
    save_index(tmp_path / "long", ["x" * 5000], vectors[:1], image_folder="i", fingerprint="f")
    for call, message in [
        (lambda: MilvusIndex.create_from(FaissIndex.open(tmp_path / "long"), address), "at most 4096 bytes"),
        (lambda: MilvusIndex.create_from(FaissIndex.build(ids, vectors), address), "got an index in memory"),
        (lambda: index.search(vectors[:1], 0), "k=0"),
        (lambda: index.search(vectors[:1], 20_000), "k=20000, expected 1 to 16,368"),
        (lambda: index.search(vectors[:1, :5], 1), "expected \\(n, 24\\)"),
        (lambda: index.vectors_of(["nowhere.jpg"]), "nowhere.jpg"),
        (lambda: index.rank_of(vectors[:1], ids[:1]), "gives no ranks, which experiments need"),
        (lambda: MilvusIndex.open(address, "other", 24), "another model's index"),
        (lambda: MilvusIndex.open(address, "f", 25), "with dimension 24, expected f with 25"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(FileNotFoundError, match=r"no such collection; .*python -m scale\.milvus"):
        MilvusIndex.open(address + "_missing")
    assert_same(index, flat, vectors[:2], 3)


@with_milvus
def test_another_collection_is_never_dropped(address, file, saved):
    from pymilvus import MilvusClient

    name = address.rpartition("/")[2]
    MilvusClient(str(file)).create_collection(name, dimension=24)
    with pytest.raises(ValueError, match="something other than an image index"):
        MilvusIndex.create_from(saved(names(3), unit(8, 3)), address)
    assert MilvusClient(str(file)).has_collection(name)


@with_milvus
def test_many_images_are_found_by_hnsw_nearly_all_with_exact_scores(address, saved, monkeypatch):
    monkeypatch.setattr(milvus, "FLAT_BELOW", 600)
    flat = saved(names(600), unit(9, 600))
    queries = unit(10, 20)
    found = MilvusIndex.create_from(flat, address).search(queries, 10)
    truth = flat.search(queries, 10)
    shared = [len(set(a.ids) & set(b.ids)) for a, b in zip(found, truth, strict=True)]
    assert sum(shared) >= 0.95 * 200
    for ranking, whole in zip(found, flat.search(queries, 600), strict=True):
        scores = dict(zip(whole.ids, whole.scores, strict=True))
        assert [scores[one] for one in ranking.ids] == list(ranking.scores)


def test_experiments_refuse_a_collection():
    settings = ExperimentSettings(dataset="demo", index="milvus://127.0.0.1:9/images").resolved()
    with pytest.raises(ValueError, match="expected a folder: experiments rank all images in every round"):
        open_retriever(settings)


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
def test_a_server_answers_as_a_file_does_and_is_named_when_it_goes_away(server, saved, monkeypatch):
    process, address = server
    flat = saved(names(120), unit(12, 120))
    MilvusIndex.create_from(flat, address)
    opened = MilvusIndex.open(address, "f", 24)
    assert_same(opened, flat, unit(13, 3), 10, [set(flat.ids[:20]), None, {flat.ids[7]}])
    process.kill()
    process.wait()
    monkeypatch.setattr(milvus, "SECONDS", 2.0)
    with pytest.raises(ConnectionError, match="see that the server runs"):
        opened.search(flat.vectors[:1], 1)


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ModuleNotFoundError, match=r"pymilvus; run: pip install -r requirements/scale\.txt"):
        MilvusIndex.open("milvus://127.0.0.1:9/images")
