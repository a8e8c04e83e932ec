"""BLIP checkpoints of the Hugging Face hub, such as ``Salesforce/blip-itm-base-coco``."""

from __future__ import annotations

import re
from pathlib import Path

from BLIP.weight_files import PREFERRED, SUFFIXES

BESIDE = ("config.json", "vocab.txt")


def is_hub_id(name: str) -> bool:
    """Returns whether a name is written like ``owner/model`` and is no weights file's."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not name.endswith(SUFFIXES)


def fetch_checkpoint(hub_id: str) -> Path:
    """Fetches weights, configuration and vocabulary, or finds them where they were fetched to before.

    Args:
        hub_id: As `is_hub_id` knows it.

    Returns:
        The weights file, its configuration and vocabulary beside it.

    Raises:
        ValueError: If there is no such model, it is not BLIP's, or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        for file in BESIDE:
            hf_hub_download(hub_id, file)
        for file in PREFERRED:
            try:
                return Path(hf_hub_download(hub_id, file))
            except LocalEntryNotFoundError:  # not reached: no word on whether the file is there
                if file == PREFERRED[-1]:
                    raise
            except EntryNotFoundError:
                continue
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"{hub_id} is no path here and cannot be fetched from the hub; expected a BLIP checkpoint: a"
            f" file, a folder or a hub id such as Salesforce/blip-itm-base-coco: {said}"
        ) from error
    raise ValueError(f"{hub_id}: the hub has none of {' and '.join(PREFERRED)} of it: give another BLIP")
