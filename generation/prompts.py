"""Every prompt of the system, in one place."""

from __future__ import annotations

CAPTION = "Describe the image within 1 sentence."

# After the paper's rewriting step (arXiv 2404.18746, section 3) but with demands of our own, which keep the
# person's words; for chat models of some billion parameters.
REWRITE_CHAT = (
    "You improve queries for an image search engine. The person's query and the caption of a picture that "
    "comes close to what they look for are given. Write one new query: keep everything the query says, add "
    "what the caption says about the same scene, leave out what contradicts the query or is only about the "
    "look of the photograph. Write a main clause or a 'with' phrase, at most 60 words, no comment.\n"
    "Query: {query}\nCaption: {caption}\nNew query:"
)

# The published code's demands in words of our own, for `settings.LoopSettings.rewriting` "published".
REWRITE_PUBLISHED = (
    "Merge a search query and the description of an image into one new query.\n"
    "Query: {query}\nDescription: {caption}\n"
    "Add what the description says to the query as an adjective clause, a relative clause or a 'with' "
    "structure. Stay within 60 words and answer with the new query alone."
)

# For small models: examples that all prompts share, and the line to complete. The examples keep the person's
# words and leave out what the caption repeats: shown anything freer, a model of 135 million parameters drops
# the words (docs/feedback.md).
FEW_SHOT_PREFIX = (
    "Combine the two descriptions into one short description.\n\n"
    "1: an animal in a field\n"
    "2: a brown horse next to a tree on the grass\n"
    "Combined: an animal in a field, a brown horse next to a tree\n\n"
    "1: some food and a man\n"
    "2: a pizza left of two cups of coffee in a room\n"
    "Combined: some food and a man, a pizza and two cups of coffee in a room\n\n"
    "1: there is a vehicle at night\n"
    "2: a small red bus above three cats at night\n"
    "Combined: a vehicle at night, a small red bus above three cats\n\n"
)
FEW_SHOT_OPEN = "1: {query}\n2: {caption}\nCombined:"
