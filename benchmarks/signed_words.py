"""How much a word with a minus keeps away, by weight: ``python -m benchmarks.signed_words``.

Queries are "a WORD" without another one, for all pairs of the catalogue's nouns and settings that some
pictures of the demo's dev split show together, by their captions, the vague ones aside. Printed are the
shares of the best eight pictures that show the first word, and the unwanted one.
"""

from __future__ import annotations

import re
from itertools import permutations

import numpy as np

from benchmarks.timing import parser, report
from playground.demo.catalogue import SETTINGS, things
from settings import InteractiveSettings, run_script

WEIGHTS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8)
BEST = 8
MIN_BOTH, MIN_ONE = 2, 4  # pictures with both words, and with the wanted one alone


def main() -> None:
    """Reads the command line, measures and reports; embed first: --dataset demo --split dev."""
    given = parser(__doc__).parse_args()
    from experiments.open_index import open_named_dataset, open_retriever

    settings = InteractiveSettings("demo", split="dev").resolved()
    retriever, dataset = open_retriever(settings), open_named_dataset(settings)
    ids = retriever.index.ids
    said = dict.fromkeys(ids, "")
    for query in dataset.queries:
        if query.target is not None and not query.id.endswith("#4"):
            said[query.target] += f" {query.text}"
    phrases = {noun: (noun,) for noun in things()} | {name: words for name, (_, words) in SETTINGS.items()}
    images = {
        word: {image_id for image_id in ids if re.search(rf"\b({'|'.join(phrases[word])})\b", said[image_id])}
        for word in phrases
    }
    pairs = [
        (one, other)
        for one, other in permutations(phrases, 2)
        if len(images[one] & images[other]) >= MIN_BOTH and len(images[one] - images[other]) >= MIN_ONE
    ]
    wanted, unwanted = (
        retriever.encode_texts([f"a {word}" for word in words]) for words in zip(*pairs, strict=True)
    )
    rows = []
    for weight in WEIGHTS:
        rankings = retriever.search(wanted - np.float32(weight) * unwanted, BEST)
        shown = [
            (image_id in images[one], image_id in images[other])
            for (one, other), ranking in zip(pairs, rankings, strict=True)
            for image_id in ranking.ids
        ]
        shares = 100 * np.mean(shown, axis=0)
        rows.append({"weight": weight, "pairs": len(pairs), "wanted %": shares[0], "unwanted %": shares[1]})
    report("signed_words", given, rows)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
