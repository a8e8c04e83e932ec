"""Addresses of Milvus collections, as the setting INDEX takes them."""

from __future__ import annotations

import re
from dataclasses import dataclass

SCHEME = "milvus://"
_COLLECTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_HOST = re.compile(r"[^/:@\s]+:[0-9]{1,5}")


@dataclass(frozen=True)
class MilvusAddress:
    """A collection, and the server or the file that holds it.

    Attributes:
        uri: For the client: "http://host:port", or the file of Milvus Lite.
        collection: Name of the collection.
    """

    uri: str
    collection: str

    @property
    def is_file(self) -> bool:
        """Whether Milvus Lite opens it, in this process."""
        return not self.uri.startswith("http://")

    @classmethod
    def parse(cls, address: str) -> MilvusAddress:
        """Reads ``milvus://host:19530/collection`` or ``milvus:///folder/file.db/collection``.

        Raises:
            ValueError: If it is neither.
        """
        place, _, collection = address.removeprefix(SCHEME).rpartition("/")
        is_file = place.startswith("/") and place.endswith(".db")
        if not address.startswith(SCHEME) or not (is_file or _HOST.fullmatch(place)):
            raise ValueError(
                f"index: got {address!r}, expected milvus://host:19530/collection, or for Milvus Lite "
                "milvus:///folder/file.db/collection"
            )
        if not _COLLECTION.fullmatch(collection):
            raise ValueError(
                f"index: got the collection {collection!r} in {address!r}, expected letters, digits and "
                "underscores, no digit first"
            )
        return cls(place if is_file else f"http://{place}", collection)
