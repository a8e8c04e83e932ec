"""Image vectors in a collection of Milvus, a vector database: the lists of `FaissIndex`, from a server.

    python -m scale.milvus playground/data/demo/index-test milvus://HOST:19530/images

copies an index folder into a collection, or brings the collection up to date; interactive_search.py
then takes ``--index milvus://HOST:19530/images``. A collection gives no ranks:
experiments, which need them in every round, use the folder. pymilvus talks alike to a server and to the file
of Milvus Lite (``milvus:///folder/file.db/images``).

Fields: `row` (int64, the primary key, in the order of adding), `image_id` and `vector`; the manifest and the
key of the next row are a property of the collection.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from index.faiss_index import FaissIndex, Ranking
from index.folder import FORMAT_VERSION, Manifest
from index.scores import Exclusions, excluded_rows, rows_of, unit_rows
from settings import IndexSettings, run_script

log = logging.getLogger(__name__)

INSTALL = "pip install -r requirements/scale.txt"
REFILL = "fill it anew with: python -m scale.milvus INDEX_FOLDER ADDRESS --rebuild"
MAX_RECORDS = 16_384  # Milvus lists and reads no more at once
BYTES_AT_ONCE = 16 << 20  # of vectors in a message; a server takes 64 MB
MAX_ID_BYTES = 4096
SECONDS = 120.0  # for one call, the client's own retries included
SPARE = 16  # candidates beyond those asked for: Milvus's float32 order may be off by a few
PROPERTY = "image_index"
FLAT_BELOW = 1_000_000
KINDS = {"flat": ("FLAT", {}), "hnsw": ("HNSW", {"M": 32, "efConstruction": 200})}


class MilvusIndex:
    """An opened collection; its ids are kept in memory, its vectors are not.

    Every method that asks the server raises ConnectionError if it is not there or refuses.

    Attributes:
        dimension: Width of a vector.
        manifest: What the collection says of itself.
    """

    dimension: int
    manifest: Manifest

    def __init__(self, address: str) -> None:
        """Connects; use `open` or `create_from`."""
        self._address = address
        place, _, self._name = address.removeprefix("milvus://").rpartition("/")
        self._uri = place if place.startswith("/") else f"http://{place}"
        try:
            import pymilvus  # type: ignore[import-not-found]

            if place.startswith("/"):
                import milvus_lite  # type: ignore[import-not-found]  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{address}: needs {error.name}; run: {INSTALL}") from error
        for noisy in ("grpc._server", "milvus_lite"):  # log tracebacks of calls that may fail
            logging.getLogger(noisy).setLevel(logging.CRITICAL)
        self._refused = pymilvus.MilvusException
        with self._naming():
            token = os.environ.get("MILVUS_TOKEN", "")
            self._client: Any = pymilvus.MilvusClient(self._uri, token=token, timeout=SECONDS)

    @classmethod
    def open(
        cls, address: str, expect_fingerprint: str | None = None, expect_dimension: int | None = None
    ) -> MilvusIndex:
        """Opens a collection, checks what it says of itself, and reads all its ids.

        Raises:
            ModuleNotFoundError: If pymilvus is not installed.
            FileNotFoundError: If there is no such collection.
            ValueError: If it is none of ours, a change was interrupted, or another model made its vectors.
        """
        index = cls(address)
        with contextlib.ExitStack() as on_error:
            on_error.callback(index.close)
            with index._naming():
                if not index._client.has_collection(index._name):
                    raise FileNotFoundError(f"{address}: no such collection; {REFILL}")
            index.manifest = manifest = index._read_manifest()
            index.dimension = manifest.dimension
            got = (manifest.model_fingerprint, manifest.dimension)
            wanted = (expect_fingerprint or got[0], expect_dimension or got[1])
            if got != wanted:
                raise ValueError(
                    f"{address}: another model's index: got {got[0]} ({manifest.model_name}) with dimension "
                    f"{got[1]}, expected {wanted[0]} with {wanted[1]}; name another collection, or {REFILL}"
                )
            index._load_ids()
            if not len(index._rows) == len(index) == manifest.count:
                raise ValueError(
                    f"{address}: got {len(index)} vectors of {len(index._rows)} images, expected "
                    f"{manifest.count}: a change was interrupted; {REFILL}"
                )
            on_error.pop_all()
        return index

    @classmethod
    def create_from(
        cls, source: FaissIndex, address: str, kind: str = "auto", rebuild: bool = False
    ) -> MilvusIndex:
        """Makes a collection hold what a saved index holds: appends, deletes, or fills it anew.

        It is filled anew where rows would change places: of equal scores the earlier row comes first. A
        vector that changed under its old id is not noticed: use `rebuild`.

        Raises:
            ModuleNotFoundError: If pymilvus is not installed.
            ValueError: If the source was not saved, the kind is neither "auto" nor of `KINDS`, or the
                collection holds something else, or what an interrupted change left.
        """
        made_by = source.manifest
        if made_by is None:
            raise ValueError(
                f"{address}: got an index in memory, expected a saved one, which names its model"
            )
        kind = ("flat" if len(source) < FLAT_BELOW else "hnsw") if kind == "auto" else kind
        if kind not in KINDS:
            raise ValueError(f"{address}: got index kind {kind!r}, expected one of {', '.join(KINDS)}")
        if not rebuild:
            with contextlib.suppress(FileNotFoundError):
                index = cls.open(address, made_by.model_fingerprint, made_by.dimension)
                wanted = frozenset(source.ids)
                kept = tuple(image_id for image_id in index.ids if image_id in wanted)
                if source.ids[: len(kept)] == kept:
                    index.delete([image_id for image_id in index.ids if image_id not in wanted])
                    index.add(source.ids[len(kept) :], source.vectors[len(kept) :])
                    return index
                log.warning("%s: the images are in another order; filling the collection anew", address)
                index.close()
        index = cls(address)
        with index._naming():
            if index._client.has_collection(index._name):
                index._read_manifest()  # refuses to drop anything that is not ours
                index._client.drop_collection(index._name)
        index.dimension, index._next_row = source.dimension, 0
        index.manifest = dataclasses.replace(
            made_by, kind=kind, count=0, effort=0, recall_at_10=1.0, sha256={}
        )
        index._create()
        index._load_ids()
        index.add(source.ids, source.vectors)
        return index

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> tuple[str, ...]:
        """The image ids, by row."""
        return self._ids

    def close(self) -> None:
        """Lets go of the server, or of Milvus Lite's file, which one process at a time may open."""
        self._client.close()

    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Appends images, `vectors` (n, dimension) float32; a kill leaves a collection that `open` refuses.

        Raises:
            ValueError: If ids repeat, are empty or too long, or the vectors do not fit.
        """
        if len(ids) != len(vectors):
            raise ValueError(f"index: got {len(ids)} ids for {len(vectors)} vectors, expected as many")
        if len({*ids}) < len(ids) or not self._rows.keys().isdisjoint(ids):
            raise ValueError("index: an image id occurs twice; ids must be unique")
        for image_id in ids:
            if not 0 < len(image_id.encode()) <= MAX_ID_BYTES:
                raise ValueError(f"index: got image id {image_id!r}, expected 1 to {MAX_ID_BYTES} bytes")
        first_key = self._next_row  # a key is never used twice: another process may still know it
        self._next_row += len(ids)
        self._write_count(len(self) + len(ids))
        size = max(1, BYTES_AT_ONCE // (4 * self.dimension))
        for first in tqdm(range(0, len(ids), size), desc="filling", unit="part", disable=len(ids) <= size):
            rows = unit_rows(vectors[first : first + size], self.dimension, "image vectors")
            records = [
                {"row": first_key + first + place, "image_id": ids[first + place], "vector": vector}
                for place, vector in enumerate(rows)
            ]
            with self._naming():
                self._client.insert(self._name, records, timeout=SECONDS)
        new = np.arange(first_key, first_key + len(ids))
        self._hold((*self._ids, *ids), np.concatenate([self._keys, new]))

    def delete(self, ids: Sequence[str]) -> None:
        """Takes images out; the rows after them move up.

        Raises:
            ValueError: If an id is not in the index; nothing is deleted then.
        """
        gone = np.unique(rows_of(ids, self._rows))
        left = np.setdiff1d(np.arange(len(self)), gone)
        self._write_count(len(left))
        for first in range(0, len(gone), MAX_RECORDS):
            keys = self._keys[gone[first : first + MAX_RECORDS]].tolist()
            with self._naming():
                self._client.delete(self._name, ids=keys, timeout=SECONDS)
        self._hold(tuple(self._ids[row] for row in left), self._keys[left])

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """Looks up vectors, (n, dimension) float32; they come over the network.

        Raises:
            ValueError: If an id is not in the index, or another process changed the collection.
        """
        keys = self._keys[rows_of(ids, self._rows)].tolist()
        found: dict[int, Any] = {}
        size = min(MAX_RECORDS, max(1, BYTES_AT_ONCE // (4 * self.dimension)))
        wanted = [*dict.fromkeys(keys)]
        for first in range(0, len(wanted), size):
            part = wanted[first : first + size]
            with self._naming():
                records = self._client.query(
                    self._name, ids=part, output_fields=["row", "vector"], timeout=SECONDS
                )
            found |= {record["row"]: record["vector"] for record in records}
        if not found.keys() >= set(keys):
            raise self._changed()
        return np.array([found[key] for key in keys], dtype=np.float32).reshape(-1, self.dimension)

    def search(self, vectors: np.ndarray, k: int, exclude: Exclusions | None = None) -> list[Ranking]:
        """Lists the nearest images of each query, (q, dimension) float32, as `FaissIndex.search` does.

        Milvus leaves out the excluded images and names the candidates; their scores are computed here. Where
        more than `SPARE` images tie at the end of the list, it may pick others of them.

        Raises:
            ValueError: If the arguments do not fit, or another process changed the collection.
        """
        queries = unit_rows(vectors, self.dimension, "query vectors")
        count = k + SPARE
        if k < 1 or count > MAX_RECORDS:
            raise ValueError(f"search: got k={k}, expected 1 to {MAX_RECORDS - SPARE:,}")
        rankings = []
        for query, rows in zip(queries, excluded_rows(exclude, self._rows, len(queries)), strict=True):
            options = {"ef": max(64, count)} if self.manifest.kind == "hnsw" else {}
            with self._naming():
                (hits,) = self._client.search(
                    self._name, data=[query], limit=count, output_fields=["vector"],
                    filter=f"row not in {self._keys[rows].tolist()}" if len(rows) else "",
                    search_params={"metric_type": "IP", "params": options}, timeout=SECONDS,
                )  # fmt: skip
            found = {hit["row"]: hit["entity"]["vector"] for hit in hits}
            if not found.keys() <= self._row_of_key.keys():
                raise self._changed()
            named = np.array([self._row_of_key[key] for key in found], dtype=np.int64)
            stacked = np.array([*found.values()], np.float32).reshape(-1, self.dimension)
            scores = stacked.astype(np.float64) @ query.astype(np.float64)
            best = np.lexsort((named, -scores))[:k]
            rankings.append(
                Ranking(tuple(self._ids[row] for row in named[best]), tuple(scores[best].tolist()))
            )
        return rankings

    def rank_of(
        self, vectors: np.ndarray, target_ids: Sequence[str], exclude: Exclusions | None = None
    ) -> np.ndarray:
        """Refuses with a ValueError: Milvus counts no ranks in the whole collection."""
        raise ValueError(
            f"{self._address}: a Milvus collection gives no ranks, which experiments need in every round;"
            " name an index folder with --index"
        )

    def _create(self) -> None:
        from pymilvus import DataType  # type: ignore[import-not-found]

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row", DataType.INT64, is_primary=True)
        schema.add_field("image_id", DataType.VARCHAR, max_length=MAX_ID_BYTES)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.dimension)
        index_type, options = KINDS[self.manifest.kind]
        indexed = self._client.prepare_index_params()
        indexed.add_index("vector", index_type=index_type, metric_type="IP", params=options)
        with self._naming():
            self._client.create_collection(
                self._name, schema=schema, index_params=indexed,
                consistency_level="Strong",  # a search sees every change that came before it
                properties=self._properties(),
            )  # fmt: skip

    def _read_manifest(self) -> Manifest:
        with self._naming():
            described = self._client.describe_collection(self._name)
        values = json.loads(described.get("properties", {}).get(PROPERTY, "{}"))
        if values.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{self._address}: the collection holds something other than an image index of this version;"
                " name another one"
            )
        self._next_row = values.pop("next_row")
        return Manifest(**values)

    def _write_count(self, count: int) -> None:
        """Writes the number of images to come, before they change: so an interrupted change shows."""
        self.manifest = dataclasses.replace(self.manifest, count=count)
        with self._naming():
            self._client.alter_collection_properties(self._name, properties=self._properties())

    def _properties(self) -> dict[str, str]:
        values = dataclasses.asdict(self.manifest) | {"next_row": self._next_row}
        return {PROPERTY: json.dumps(values)}

    def _load_ids(self) -> None:
        found: dict[int, str] = {}
        with self._naming():
            self._client.load_collection(self._name)
            while True:  # by key, since no answer holds more than MAX_RECORDS
                records = self._client.query(
                    self._name, filter=f"row > {max(found, default=-1)}", output_fields=["row", "image_id"],
                    limit=MAX_RECORDS, timeout=SECONDS,
                )  # fmt: skip
                found |= {record["row"]: record["image_id"] for record in records}
                if len(records) < MAX_RECORDS:
                    break
        keys = sorted(found)
        self._hold(tuple(found[key] for key in keys), np.array(keys, dtype=np.int64))

    def _hold(self, ids: tuple[str, ...], keys: np.ndarray) -> None:
        self._ids, self._keys = ids, keys
        self._rows = {image_id: row for row, image_id in enumerate(ids)}
        self._row_of_key = {key: row for row, key in enumerate(keys.tolist())}

    def _changed(self) -> ValueError:
        return ValueError(
            f"{self._address}: the collection no longer holds the {len(self)} images that it held when it was"
            " opened: another process changed it; start again"
        )

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except self._refused as error:
            raise ConnectionError(
                f"{self._address}: {' '.join(str(error).split())}; see that the server runs, or that no other"
                " process has the file open"
            ) from error


def main() -> None:
    """Copies an index folder into a collection."""
    parser = argparse.ArgumentParser(
        prog="python -m scale.milvus", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("folder", type=Path, help="the index folder, as embed_image_as_faiss.py writes it")
    parser.add_argument("address", help="milvus://HOST:PORT/NAME or milvus:///FOLDER/FILE.db/NAME")
    parser.add_argument("--kind", choices=("auto", *KINDS), default="auto", help="auto: flat below a million")
    parser.add_argument("--rebuild", action="store_true", help="fill the collection anew")
    options = parser.parse_args()
    IndexSettings(index=options.address)  # refuses what is no address
    index = MilvusIndex.create_from(
        FaissIndex.open(options.folder), options.address, options.kind, options.rebuild
    )
    log.info("%s holds %d images", options.address, len(index))
    index.close()


if __name__ == "__main__":
    raise SystemExit(run_script(main))
