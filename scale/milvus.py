"""Image vectors in a collection of Milvus, a vector database: the lists of `FaissIndex`, from a server.

    python -m scale.milvus playground/data/demo/index-test-medium milvus://HOST:19530/images

fills a collection from an index folder; interactive_search.py then takes ``--index milvus://HOST:19530/images``.
A collection gives no ranks: experiments, which need them in every round, use the folder. pymilvus talks alike
to a server and to the file of Milvus Lite (``milvus:///folder/file.db/images``).

Fields: `row` (int64, the primary key), `image_id` and `vector`; the manifest is a property of the collection.
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
REFILL = "fill it anew with: python -m scale.milvus INDEX_FOLDER ADDRESS"
MAX_RECORDS = 16_384  # Milvus lists and reads no more at once
BYTES_AT_ONCE = 16 << 20  # of vectors in a message; a server takes 64 MB
MAX_ID_BYTES = 4096
SECONDS = 120.0  # for one call, the client's own retries included
SPARE = 16  # candidates beyond those asked for: Milvus's float32 order may be off by a few
PROPERTY = "image_index"
FLAT_BELOW = 1_000_000  # images; more are searched approximately, by HNSW
HNSW = {"M": 32, "efConstruction": 200}


class MilvusIndex:
    """An opened collection; its ids are kept in memory, its vectors are not.

    Every method that asks the server raises ConnectionError if it is not there or refuses.

    Attributes:
        dimension: Width of a vector.
        manifest: What the collection says of itself.
        ids: The image ids, by row.
    """

    dimension: int
    manifest: Manifest
    ids: tuple[str, ...]

    def __init__(self, address: str) -> None:
        """Connects; use `open` or `create_from`."""
        self._address = address
        place, _, self._name = address.removeprefix("milvus://").rpartition("/")
        try:
            import pymilvus  # type: ignore[import-not-found]

            if place.startswith("/"):
                import milvus_lite  # type: ignore[import-not-found]  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{address}: needs {error.name}; run: {INSTALL}") from error
        for noisy in ("grpc._server", "milvus_lite"):  # log tracebacks of calls that may fail
            logging.getLogger(noisy).setLevel(logging.CRITICAL)
        self._refused = pymilvus.MilvusException
        uri = place if place.startswith("/") else f"http://{place}"
        with self._naming():
            token = os.environ.get("MILVUS_TOKEN", "")
            self._client: Any = pymilvus.MilvusClient(uri, token=token, timeout=SECONDS)

    @classmethod
    def open(
        cls, address: str, expect_fingerprint: str | None = None, expect_dimension: int | None = None
    ) -> MilvusIndex:
        """Opens a collection, checks what it says of itself, and reads all its ids.

        Raises:
            ModuleNotFoundError: If pymilvus is not installed.
            FileNotFoundError: If there is no such collection.
            ValueError: If it is none of ours, its filling was interrupted, or another model made its vectors.
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
            if not len(index.row_of) == len(index) == manifest.count:
                raise ValueError(
                    f"{address}: got {len(index)} vectors of {len(index.row_of)} images, expected "
                    f"{manifest.count}: its filling was interrupted; {REFILL}"
                )
            on_error.pop_all()
        return index

    @classmethod
    def create_from(cls, source: FaissIndex, address: str) -> MilvusIndex:
        """Fills a collection from a saved index; what the collection held of another goes.

        A kill leaves a collection that `open` refuses.

        Raises:
            ModuleNotFoundError: If pymilvus is not installed.
            ValueError: If the source was not saved, an id is too long, or the collection holds something
                other than an index.
        """
        if source.manifest is None:
            raise ValueError(
                f"{address}: got an index in memory, expected a saved one, which names its model"
            )
        long = next((image_id for image_id in source.ids if len(image_id.encode()) > MAX_ID_BYTES), None)
        if long is not None:
            raise ValueError(f"{address}: got image id {long!r}, expected at most {MAX_ID_BYTES} bytes")
        index = cls(address)
        with index._naming():
            if index._client.has_collection(index._name):
                index._read_manifest()  # refuses to drop anything that is not ours
                index._client.drop_collection(index._name)
        kind = "flat" if len(source) < FLAT_BELOW else "hnsw"
        # The manifest stands before the vectors, so that a filling that was interrupted shows.
        index.manifest = dataclasses.replace(
            source.manifest, kind=kind, effort=0, recall_at_10=1.0, sha256={}
        )
        index.dimension = source.dimension
        index._create()
        size = max(1, BYTES_AT_ONCE // (4 * index.dimension))
        for first in tqdm(range(0, len(source), size), desc="filling", unit="part", disable=None):
            rows = unit_rows(source.vectors[first : first + size], index.dimension, "image vectors")
            records = [
                {"row": row, "image_id": source.ids[row], "vector": vector}
                for row, vector in enumerate(rows, first)
            ]
            with index._naming():
                index._client.insert(index._name, records, timeout=SECONDS)
        index._load_ids()
        return index

    def __len__(self) -> int:
        return len(self.ids)

    def close(self) -> None:
        """Lets go of the server, or of Milvus Lite's file, which one process at a time may open."""
        self._client.close()

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """Looks up vectors, (n, dimension) float32, over the network; raises as `search` does."""
        wanted = rows_of(ids, self.row_of).tolist()
        found: dict[int, Any] = {}
        size = min(MAX_RECORDS, max(1, BYTES_AT_ONCE // (4 * self.dimension)))
        distinct = [*dict.fromkeys(wanted)]
        for first in range(0, len(distinct), size):
            part = distinct[first : first + size]
            with self._naming():
                records = self._client.query(
                    self._name, ids=part, output_fields=["row", "image_id", "vector"], timeout=SECONDS
                )
            found |= {self._checked_row(record): record["vector"] for record in records}
        if not found.keys() >= set(wanted):
            raise self._changed()
        return np.array([found[row] for row in wanted], dtype=np.float32).reshape(-1, self.dimension)

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
        options = {"ef": max(64, count)} if self.manifest.kind == "hnsw" else {}
        rankings = []
        for query, rows in zip(queries, excluded_rows(exclude, self.row_of, len(queries)), strict=True):
            with self._naming():
                (hits,) = self._client.search(
                    self._name, data=[query], limit=count, output_fields=["image_id", "vector"],
                    filter=f"row not in {rows.tolist()}" if len(rows) else "",
                    search_params={"metric_type": "IP", "params": options}, timeout=SECONDS,
                )  # fmt: skip
            found = {self._checked_row(hit["entity"] | {"row": hit["row"]}): hit["entity"] for hit in hits}
            named = np.array([*found], dtype=np.int64)
            stacked = np.array([entity["vector"] for entity in found.values()], np.float32)
            scores = stacked.reshape(-1, self.dimension).astype(np.float64) @ query.astype(np.float64)
            best = np.lexsort((named, -scores))[:k]
            rankings.append(
                Ranking(tuple(self.ids[row] for row in named[best]), tuple(scores[best].tolist()))
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
        indexed = self._client.prepare_index_params()
        kind = self.manifest.kind
        options = HNSW if kind == "hnsw" else {}
        indexed.add_index("vector", index_type=kind.upper(), metric_type="IP", params=options)
        with self._naming():
            self._client.create_collection(
                self._name, schema=schema, index_params=indexed,
                consistency_level="Strong",  # a search sees every change that came before it
                properties={PROPERTY: json.dumps(dataclasses.asdict(self.manifest))},
            )  # fmt: skip

    def _read_manifest(self) -> Manifest:
        with self._naming():
            described = self._client.describe_collection(self._name)
        values = json.loads(described.get("properties", {}).get(PROPERTY, "{}"))
        names = {field.name for field in dataclasses.fields(Manifest)}
        if values.get("format_version") != FORMAT_VERSION or set(values) != names:
            raise ValueError(
                f"{self._address}: the collection holds something other than an image index of this version;"
                " name another one"
            )
        return Manifest(**values)

    def _load_ids(self) -> None:
        found: dict[int, str] = {}
        with self._naming():
            self._client.load_collection(self._name)
            while True:  # by row, since no answer holds more than MAX_RECORDS
                records = self._client.query(
                    self._name, filter=f"row > {max(found, default=-1)}", output_fields=["row", "image_id"],
                    limit=MAX_RECORDS, timeout=SECONDS,
                )  # fmt: skip
                found |= {record["row"]: record["image_id"] for record in records}
                if len(records) < MAX_RECORDS:
                    break
        self.ids = tuple(found[row] for row in sorted(found))
        self.row_of = {image_id: row for row, image_id in enumerate(self.ids)}

    def _checked_row(self, record: dict[str, Any]) -> int:
        if self.row_of.get(record["image_id"]) != record["row"]:
            raise self._changed()
        return record["row"]

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
    """Fills a collection from an index folder."""
    parser = argparse.ArgumentParser(
        prog="python -m scale.milvus", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("folder", type=Path, help="the index folder, as embed_image_as_faiss.py writes it")
    parser.add_argument("address", help="milvus://HOST:PORT/NAME or milvus:///FOLDER/FILE.db/NAME")
    options = parser.parse_args()
    IndexSettings(index=options.address)  # refuses what is no address
    index = MilvusIndex.create_from(FaissIndex.open(options.folder), options.address)
    log.info("%s holds %d images", options.address, len(index))
    index.close()


if __name__ == "__main__":
    raise SystemExit(run_script(main))
