"""Simulated users by the names in the settings; what one needs is opened when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import get_args

import numpy as np

from feedback.phrases import phrases_unsaid
from feedback.protocols import Protocol
from feedback.sentence_encoder import SentenceEncoder, check_installed, open_sentence_encoder
from feedback.users import (
    CaptionUser,
    FirstUser,
    GroundTruthUser,
    ImpatientUser,
    JudgingUser,
    NearestUser,
    NoisyUser,
    RandomUser,
    TellingUser,
    User,
    caption_vectors,
)
from records import Image, Query
from retriever import Retriever
from settings import UserName

CAPTION_READERS = frozenset(("independent", "caption"))  # they judge with a sentence encoder


class SimulatedUsers:
    """Makes users for one collection and its queries."""

    def __init__(
        self,
        retriever: Retriever,
        images: Sequence[Image],
        queries: Sequence[Query],
        protocol: Protocol,
        sentence_encoder: str | SentenceEncoder,
    ) -> None:
        """Opens nothing yet.

        Args:
            retriever: The reference user judges by its vectors.
            images: The collection, with people's captions; those that are not in the index do not count.
            queries: Those that will be asked.
            protocol: The rules.
            sentence_encoder: Of the users who judge by captions: an object, or the name of a packaged one, a
                folder or a hub id.
        """
        self._retriever = retriever
        self._images = images
        self._queries = queries
        self._protocol = protocol
        self._sentence_encoder = sentence_encoder

    def named(
        self,
        name: str,
        *,
        noise: float = 0.0,
        likes: int = 1,
        dislikes: int = 0,
        patience: int | None = None,
        seed: int = 0,
    ) -> User:
        """Makes a user.

        Args:
            name: One of `settings.UserName`.
            noise: Share of the rounds in which a judging user is mistaken.
            likes: How many shown images a user who judges by nearness picks at most.
            dislikes: How many shown images a judging user also turns down.
            patience: Rounds in a row without progress after which a judging user abandons the search.
            seed: Of random picks and mistakes.

        Raises:
            ValueError: If the name is unknown, or the user cannot judge this collection or protocol, or is to
                say what it has no captions for.
        """
        if name == "random":
            return RandomUser(seed)
        if name == "first":
            return FirstUser()
        user: JudgingUser = self._judging(name, likes, dislikes)
        if noise:
            user = NoisyUser(user, noise, seed)
        if self._protocol.tells:
            phrases = self._phrases  # here, so that what is missing is found before anything is played
            user = TellingUser(user, phrases.__getitem__)
        return ImpatientUser(user, patience) if patience is not None else user

    def _judging(self, name: str, likes: int, dislikes: int) -> JudgingUser:
        among = self._protocol.picks_among
        if name == "independent":
            return NearestUser(self._means_of_captions, dislikes, likes, among)
        if name == "caption":
            words = {query.id: query.text for query in self._queries}
            return CaptionUser(self._indexed, words, self._encode, dislikes, likes, among)
        if name == "reference":
            return NearestUser(self._retriever.vectors_of, dislikes, likes, among)
        if name != "ground-truth":
            raise ValueError(f"user: got {name!r}, expected one of {', '.join(get_args(UserName))}")
        if not self._protocol.any_relevant:
            raise ValueError(
                "user: ground-truth likes relevant images, and under this protocol the target is the only "
                "one; choose --protocol paper, or another user"
            )
        return GroundTruthUser(dislikes)

    @cached_property
    def _phrases(self) -> dict[str, list[str]]:
        """By query: what people wrote about its target that the query does not say."""
        captions = {image.id: image.captions for image in self._images}
        goals = {query.id: query.target or min(query.relevant, default="") for query in self._queries}
        mute = [query_id for query_id, goal in goals.items() if not captions.get(goal)]
        if mute:
            raise ValueError(
                f"protocol tells: the targets of {len(mute)} queries have no caption to say a phrase of, "
                f"first of query {mute[0]!r}; choose --protocol honest"
            )
        return {query.id: phrases_unsaid(query.text, captions[goals[query.id]]) for query in self._queries}

    @cached_property
    def _encoder(self) -> SentenceEncoder:
        """Opened when somebody judges: a run that has ended needs none."""
        encoder = self._sentence_encoder
        return open_sentence_encoder(encoder) if isinstance(encoder, str) else encoder

    @cached_property
    def _encode(self) -> Callable[[Sequence[str]], np.ndarray]:
        if isinstance(self._sentence_encoder, str):
            check_installed(self._sentence_encoder)
        encoded: dict[str, np.ndarray] = {}  # users share captions, and so do all frames of a video

        def encode(texts: Sequence[str]) -> np.ndarray:
            new = [text for text in dict.fromkeys(texts) if text not in encoded]
            if new:
                encoded.update(zip(new, self._encoder.encode_texts(new), strict=True))
            return np.stack([encoded[text] for text in texts])

        return encode

    @cached_property
    def _indexed(self) -> list[Image]:
        indexed = frozenset(self._retriever.index.ids)
        return [image for image in self._images if image.id in indexed]

    @cached_property
    def _means_of_captions(self) -> Callable[[Sequence[str]], np.ndarray]:
        return caption_vectors(self._indexed, self._encode)
