"""Names a model by all that changes what it gives: vectors, captions, rewrites."""

from __future__ import annotations

from importlib.metadata import version

from index.decode import VERSION


def fingerprint(content: str, *settings: str, library: str, sees_pictures: bool = True) -> str:
    """Joins all that changes what a model gives, in words, so that who is refused reads what differs.

    Args:
        content: A hash of its files (weights, configuration, vocabulary), or its revision.
        settings: Such as image size, precision, prompt.
        library: The package that computes; its major version counts.
        sees_pictures: Whether it counts how a file becomes pixels.
    """
    pixels = (f"pixels {VERSION}",) if sees_pictures else ()
    return ", ".join((content, *settings, f"{library} {version(library).split('.')[0]}", *pixels))
