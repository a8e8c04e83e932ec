"""One search without a session: `interactive_search.py --text WORDS --picture FILE`. Loads little."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.open_index import image_folder, open_retriever
from index.decode import open_image
from index.faiss_index import ImageIndex
from interactive.match import MatchScale, match_word
from interactive.words import beside_words, doubt, split_signs
from retriever import SearchQuery
from settings import InteractiveSettings, as_seen


def search_once(settings: InteractiveSettings, index: ImageIndex | None = None) -> Iterator[str]:
    """Searches with the words, the picture, or both, of resolved settings; the dataset is not read.

    Yields:
        A line for each of the `shown` best files, the best first, and one about unknown words.

    Raises:
        ValueError: If there are only words with a sign, the picture is none, or index and model do not fit.
    """
    text, signed = split_signs(settings.text or "")
    picture = None if settings.picture is None else open_image(settings.picture.expanduser())
    if not text and picture is None:
        raise ValueError(f"text: got only words with a sign ({settings.text}); say what to look for, too")
    if settings.search_captions:
        from experiments.setup import Setup

        retriever = Setup.open(settings, index=index).retriever
    else:
        retriever = open_retriever(settings, index=index)
    vector = None if picture is None else retriever.encode_images([picture])[0]
    added = beside_words(signed, vector, retriever)
    if text:
        (words,) = retriever.encode_texts([text])
        added = words if added is None else words + added
    search = SearchQuery(vector=added)
    (ranking,) = retriever.search([search], settings.shown)
    matches = MatchScale(retriever).of(search, ranking.scores)
    for place, (image_id, match) in enumerate(zip(ranking.ids, matches, strict=True), start=1):
        yield listed(place, match, as_seen(image_folder(retriever.index) / image_id))
    if note := doubt(text, retriever.encoder):
        yield f"! {note}"


def listed(place: int, match: float, path: object) -> str:
    """Returns a picture's line in a terminal, without the control characters that a name may hold."""
    name = "".join(letter if letter.isprintable() else "?" for letter in str(path))
    return f"{place:3d}  {match:4.1f} {match_word(match):<10}  {name}"
