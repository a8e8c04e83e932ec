"""How much a word with a minus keeps away, by weight: ``python -m benchmarks.signed_words``.

Queries are "a NOUN" without a second word, for all pairs that some pictures of the demo's dev split show
together. A picture shows a word if one of its captions, the vague ones aside, has it. Printed are the shares
of the best eight pictures that show the noun, and the unwanted word.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from experiments.open_index import open_named_dataset, open_retriever
from interactive import words
from settings import InteractiveSettings, run_script

WEIGHTS = (0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
PLACES = ("beach", "street", "night", "forest", "desert", "yellow", "city", "snow", "grass", "sand", "meadow")
NO_NOUNS = frozenset(
    re.findall(
        r"\w+",
        "with there this that some picture image three pair several small little tiny large left right above "
        "below under over next beside near behind front against background bottom huge",
    )
)
BEST = 8


def main() -> None:
    """Prints a table; embed first: python embed_image_as_faiss.py --dataset demo --split dev."""
    settings = InteractiveSettings("demo", split="dev").resolved()
    retriever, dataset = open_retriever(settings), open_named_dataset(settings)
    ids = retriever.index.ids
    said: dict[str, set[str]] = {image_id: set() for image_id in ids}
    for query in dataset.queries:
        if query.target is not None and not query.id.endswith("#4"):
            said[query.target] |= set(re.findall(r"[a-z]{4,}", query.text)) - NO_NOUNS
    counts = Counter(word for image_words in said.values() for word in image_words)
    nouns = [word for word, count in counts.items() if 8 <= count <= 120 and word not in PLACES]
    pairs = []
    for noun in nouns:
        with_noun = [image_id for image_id in ids if noun in said[image_id]]
        for other in (*PLACES, *nouns):
            both = sum(other in said[image_id] for image_id in with_noun)
            if other != noun and both >= 2 and len(with_noun) - both >= 4:
                pairs.append((noun, other))
    print(f"{len(pairs)} pairs\n| Weight | places: wanted, unwanted | things: wanted, unwanted |")
    print("| ---: | ---: | ---: |")
    wanted = retriever.encode_texts([f"a {noun}" for noun, _ in pairs])
    unwanted = retriever.encode_texts([f"a {other}" for _, other in pairs])
    for weight in WEIGHTS:
        rankings = retriever.search(wanted - np.float32(weight) * unwanted, BEST)
        cells = []
        for are_places in (True, False):
            shown = [
                (noun in said[image_id], other in said[image_id])
                for (noun, other), ranking in zip(pairs, rankings, strict=True)
                if (other in PLACES) == are_places
                for image_id in ranking.ids
            ]
            cells.append(", ".join(f"{share:.1f}" for share in 100 * np.mean(shown, axis=0)))
        mark = " (used)" if weight == words.WEIGHT else ""
        print(f"| {weight}{mark} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    raise SystemExit(run_script(main))
