"""Indexes of any content: what is saved comes back, however it was put together; damage is refused."""

import os
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from index_world import save_index

from index.faiss_index import FaissIndex
from index.merge import merge_indexes

QUICK = settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "10")), deadline=None)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@st.composite
def contents(draw):
    """Ids of any letters, and unit vectors, some of them equal."""
    ids = draw(st.lists(NAMES, min_size=1, max_size=12, unique=True))
    dimension = draw(st.integers(1, 9))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = random.standard_normal((draw(st.integers(1, 12)), dimension))
    rows = rows[random.integers(0, len(rows), len(ids))]
    return ids, np.float32(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def assert_same(one, other):
    assert one.ids == other.ids
    assert one.vectors.tolist() == other.vectors.tolist()
    asked = np.array(one.vectors)
    assert one.search(asked, len(one)) == other.search(asked, len(one))
    assert one.rank_of(asked, one.ids).tolist() == other.rank_of(asked, one.ids).tolist()


@QUICK
@given(content=contents(), data=st.data())
def test_what_is_saved_opened_and_merged_is_what_was_built(content, data):
    ids, vectors = content
    whole = FaissIndex.build(ids, vectors)
    cut = data.draw(st.integers(0, len(ids)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_index(folder, ids[:1], vectors[:1])  # an older one is replaced
        save_index(folder, ids, vectors)
        opened = FaissIndex.open(folder, "f00d", vectors.shape[1])
        assert_same(opened, whole)
        if 0 < cut < len(ids):
            save_index(folder / "a", ids[:cut], vectors[:cut])
            save_index(folder / "b", ids[cut:], vectors[cut:])
            assert merge_indexes([folder / "a", folder / "b"], folder / "c") == len(ids)
            assert_same(FaissIndex.open(folder / "c"), whole)


@QUICK
@given(
    content=contents(), name=st.sampled_from(["ids.json", "vectors.faiss", "manifest.json"]), data=st.data()
)
def test_a_changed_or_missing_byte_is_refused_by_name(content, name, data):
    ids, vectors = content
    with tempfile.TemporaryDirectory() as folder:
        index = save_index(Path(folder), ids, vectors)
        path = Path(folder) / name
        whole = path.read_bytes()
        place = data.draw(st.integers(0, len(whole) - 1))
        other = data.draw(st.none() | st.integers(1, 255))
        changed = whole[:place] if other is None else bytearray(whole)
        if other is not None:
            changed[place] ^= other
        path.write_bytes(changed)
        try:
            opened = FaissIndex.open(Path(folder), "f00d", vectors.shape[1])
        except ValueError as error:
            assert "\n" not in str(error) and folder in str(error)
            return
        # The manifest has no checksum of itself; what it guards is what it was all the same.
        assert name == "manifest.json"
        assert_same(opened, index)
