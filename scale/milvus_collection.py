"""One Milvus collection of image vectors: made, described, read and changed by row keys, errors named.

Fields: `row` (int64, the primary key, in the order of adding), `image_id`, `vector`. The manifest and the key
of the next row are a property of the collection. Server and Milvus Lite's file are used alike, through
pymilvus, which is imported when a collection is first opened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from index.folder import FORMAT_VERSION, Manifest
from scale.milvus_address import MilvusAddress

if TYPE_CHECKING:
    from pymilvus import MilvusClient  # type: ignore[import-not-found]

INSTALL = "pip install -r requirements/milvus.txt"
REBUILD = "write it anew with: python embed_image_as_faiss.py --rebuild --index ADDRESS"
MAX_RECORDS = 16_384  # Milvus lists and reads no more at once
BYTES_AT_ONCE = 16 << 20  # a server takes 64 MB in one message
LONGEST_ID = 4096  # bytes
CONNECT_SECONDS = 15.0
ANSWER_SECONDS = 120.0  # for one call, the client's own tries included
PROPERTY = "image_index"
FIELDS = {"row", "image_id", "vector"}
KINDS = {"flat": ("FLAT", {}), "hnsw": ("HNSW", {"M": 32, "efConstruction": 200})}
MIN_EFFORT = 64  # of a search in an HNSW index


class MilvusCollection:
    """A connection to one collection, which may not be there yet.

    Every method raises ConnectionError if the server is not there or refuses.

    Attributes:
        address: As in the setting INDEX.
    """

    def __init__(self, address: str) -> None:
        """Connects.

        Raises:
            ModuleNotFoundError: If pymilvus, or for a file Milvus Lite, is not installed.
            ConnectionError: If there is no server, or another process has the file open.
            ValueError: If the address is not one.
        """
        self.address = address
        place = MilvusAddress.parse(address)
        self._name = place.collection
        try:
            import pymilvus  # type: ignore[import-not-found]

            if place.is_file:
                import milvus_lite  # type: ignore[import-not-found]  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{address}: needs {error.name}; run: {INSTALL}") from error
        if place.is_file:  # its server, in this process, logs a traceback for calls that can be missing
            logging.getLogger("grpc._server").setLevel(logging.CRITICAL)
            logging.getLogger("milvus_lite").setLevel(logging.WARNING)
        with self._naming():
            self._client: MilvusClient = pymilvus.MilvusClient(
                place.uri, token=os.environ.get("MILVUS_TOKEN", ""), timeout=CONNECT_SECONDS
            )

    def close(self) -> None:
        """Lets go of the server or the file."""
        self._client.close()

    def exists(self) -> bool:
        """Tells whether the collection is there."""
        with self._naming():
            return self._client.has_collection(self._name)

    def create(self, manifest: Manifest) -> None:
        """Makes the collection, empty.

        Args:
            manifest: Names kind and dimension; kept with the collection.

        Raises:
            ValueError: If the kind is neither "flat" nor "hnsw".
        """
        if manifest.kind not in KINDS:
            raise ValueError(
                f"{self.address}: got index kind {manifest.kind!r}, expected one of {', '.join(KINDS)}"
            )
        from pymilvus import DataType  # type: ignore[import-not-found]

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row", DataType.INT64, is_primary=True)
        schema.add_field("image_id", DataType.VARCHAR, max_length=LONGEST_ID)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=manifest.dimension)
        index_type, options = KINDS[manifest.kind]
        indexed = self._client.prepare_index_params()
        indexed.add_index("vector", index_type=index_type, metric_type="IP", params=options)
        with self._naming():
            self._client.create_collection(
                self._name,
                schema=schema,
                index_params=indexed,
                consistency_level="Strong",  # a search sees every change that came before it
                properties=_properties(manifest, 0),
            )

    def drop(self) -> None:
        """Deletes the collection with all that it holds."""
        with self._naming():
            self._client.drop_collection(self._name)

    def read_manifest(self) -> tuple[Manifest, int]:
        """Returns what the collection says of itself, and the key of the next row.

        Raises:
            ValueError: If it is none of ours, or of another version.
        """
        with self._naming():
            described = self._client.describe_collection(self._name)
        text = described.get("properties", {}).get(PROPERTY)
        if text is None or {field["name"] for field in described["fields"]} != FIELDS:
            raise ValueError(
                f"{self.address}: the collection holds something else than an image index; name another one"
            )
        values = json.loads(text)
        if values["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"{self.address}: got format version {values['format_version']}, expected {FORMAT_VERSION}; "
                "name another collection"
            )
        next_row = values.pop("next_row")
        return Manifest(**values), next_row

    def write_manifest(self, manifest: Manifest, next_row: int) -> None:
        """Replaces what the collection says of itself."""
        with self._naming():
            self._client.alter_collection_properties(self._name, properties=_properties(manifest, next_row))

    def load(self) -> int:
        """Has the server bring the vectors into its memory; returns how many records there are."""
        with self._naming():
            self._client.load_collection(self._name)
            return self._client.query(self._name, filter="", output_fields=["count(*)"])[0]["count(*)"]

    def insert(self, keys: np.ndarray, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Adds records, as many as fit one message."""
        records = [
            {"row": key, "image_id": image_id, "vector": vector}
            for key, image_id, vector in zip(keys.tolist(), ids, vectors, strict=True)
        ]
        with self._naming():
            self._client.insert(self._name, records, timeout=ANSWER_SECONDS)

    def delete(self, keys: np.ndarray) -> None:
        """Deletes records."""
        for first in range(0, len(keys), MAX_RECORDS):
            with self._naming():
                self._client.delete(
                    self._name, ids=keys[first : first + MAX_RECORDS].tolist(), timeout=ANSWER_SECONDS
                )

    def read(self, keys: np.ndarray) -> dict[int, list[float]]:
        """Returns vectors by key, as many as fit one message; a key that is not there has none."""
        with self._naming():
            found = self._client.query(
                self._name, ids=keys.tolist(), output_fields=["row", "vector"], timeout=ANSWER_SECONDS
            )
        return {one["row"]: one["vector"] for one in found}

    def between(self, first: int, end: int, field: str) -> tuple[np.ndarray, list]:
        """Reads a field of the records from one key to before another.

        Returns:
            The keys that are there, ascending, int64; and the field's values.
        """
        found: list[dict] = []
        for start in range(first, end, MAX_RECORDS):
            condition = f"row >= {start} and row < {min(end, start + MAX_RECORDS)}"
            with self._naming():
                found += self._client.query(
                    self._name,
                    filter=condition,
                    output_fields=["row", field],
                    limit=MAX_RECORDS,
                    timeout=ANSWER_SECONDS,
                )
        found.sort(key=lambda one: one["row"])
        return np.array([one["row"] for one in found], dtype=np.int64), [one[field] for one in found]

    def nearest(
        self, queries: np.ndarray, count: int, kind: str
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Lists candidates of each query, by Milvus's own scores.

        Args:
            queries: (q, d) float32.
            count: At most `MAX_RECORDS`.
            kind: Of the index.

        Returns:
            For each query keys (c,) int64, scores (c,) float32, the higher first, and vectors (c, d) float32.
        """
        options = {"ef": max(MIN_EFFORT, count)} if kind == "hnsw" else {}
        with self._naming():
            found = self._client.search(
                self._name,
                data=list(queries),
                limit=count,
                output_fields=["vector"],
                search_params={"metric_type": "IP", "params": options},
                timeout=ANSWER_SECONDS,
            )
        return [
            (
                np.array([hit["row"] for hit in hits], dtype=np.int64),
                np.array([hit["distance"] for hit in hits], dtype=np.float32),
                np.array([hit["entity"]["vector"] for hit in hits], np.float32).reshape(len(hits), -1),
            )
            for hits in found
        ]

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        from pymilvus import MilvusException  # type: ignore[import-not-found]

        try:
            yield
        except MilvusException as error:
            raise ConnectionError(
                f"{self.address}: {error}; see that the server runs, or that no other process has the file"
            ) from error


def _properties(manifest: Manifest, next_row: int) -> dict[str, str]:
    return {PROPERTY: json.dumps(dataclasses.asdict(manifest) | {"next_row": next_row}, sort_keys=True)}
