"""Errors of models that cannot be opened, in one line that names the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def naming_model(model_id: str) -> Iterator[None]:
    """Turns what the hub's libraries say of a missing or foreign model into one line.

    Args:
        model_id: What the user asked for.

    Raises:
        ValueError: If the block raises OSError or ValueError.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"the model {model_id} cannot be opened, expected a folder or a model of the hub: {said}"
        ) from error
