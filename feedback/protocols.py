"""How a session is played and when it is a success; the rules of an evaluation, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from records import Query


@dataclass(frozen=True)
class Protocol:
    """The rules of a session.

    Attributes:
        shown: Images shown a round.
        hit_rank: The target counts as found at this rank or better.
        removes_shown: Whether images shown in a round are no candidates in later rounds.
        target_may_be_picked: Whether the user may point at the target itself while it is not found yet.
        stops_when_worse: Whether a query ends when the target's rank got worse (this uses the ground truth).
        stops_when_found: Whether a query ends when its target is found.
        any_relevant: Whether every relevant image satisfies, as if no query had a target; a query then ends
            when all its relevant images have been shown.
        tells: Whether the user, besides pointing, says one more thing about the image in mind every round.
        picks_among: A user who judges by nearness picks among so many of the shown images that are nearest;
            among all when None.
        measure: The measure that stands for a run in tables; `measure_of` where queries may lack a target.
    """

    shown: int
    hit_rank: int
    removes_shown: bool
    target_may_be_picked: bool
    stops_when_worse: bool
    stops_when_found: bool = True
    any_relevant: bool = False
    tells: bool = False
    picks_among: int | None = None
    measure: str = "Recall@10"

    def __post_init__(self) -> None:
        if not self.hit_rank >= 1 or self.shown < 1:
            raise ValueError(f"shown and hit_rank must be at least 1, got {self.shown} and {self.hit_rank}")
        if self.removes_shown and self.hit_rank < self.shown:
            raise ValueError(
                f"a target shown below hit_rank {self.hit_rank} would be removed and never found; with "
                f"removes_shown, hit_rank must be at least shown ({self.shown})"
            )
        if self.removes_shown and not self.stops_when_found:
            raise ValueError(
                "with removes_shown a found target is no candidate any more; stop when it is found"
            )

    def goal_of(self, query: Query) -> Query:
        """Returns the query as this protocol asks it: without a target where any relevant image will do."""
        return dataclasses.replace(query, target=None) if self.any_relevant else query

    def measure_of(self, queries: Sequence[Query]) -> str:
        """Returns the measure that stands for a run over these queries: without any target, R^T."""
        has_target = any(self.goal_of(query).target is not None for query in queries)
        return self.measure if has_target else "Session recall"


PROTOCOLS = {
    # Ten new images a round; seeing the target ends the search; nothing about the target steers the system.
    "honest": Protocol(
        shown=10, hit_rank=10, removes_shown=True, target_may_be_picked=False, stops_when_worse=False
    ),
    # The same with a user who also says a few new words of a person's caption every round, as people do.
    # Never to be mixed with results of pointing alone.
    "tells": Protocol(
        shown=10, hit_rank=10, removes_shown=True, target_may_be_picked=False, stops_when_worse=False,
        tells=True,
    ),
    # The published code's loop, its slips mended: a target that is not found is never a hit, all images are
    # ranked however many there are, texts and images are both normalised. It flatters: of 50 shown images the
    # user may pick the target itself, and a query stops when the ground truth says that it got worse.
    "reference": Protocol(
        shown=50, hit_rank=10, removes_shown=False, target_may_be_picked=True, stops_when_worse=True,
        picks_among=5,
    ),
    # The paper's section on evaluation (arXiv 2404.18746): several images answer a query, every round shows
    # unseen ones, whoever judges may mark those that answer it, and recall adds up over the rounds.
    "paper": Protocol(
        shown=10, hit_rank=10, removes_shown=True, target_may_be_picked=True, stops_when_worse=False,
        any_relevant=True, measure="Session recall",
    ),
    # ChatIR's (arXiv 2305.20062): the whole collection in every round, all rounds played; a target counts
    # from the round on in which it was among the first ten.
    "chatir": Protocol(
        shown=10, hit_rank=10, removes_shown=False, target_may_be_picked=False, stops_when_worse=False,
        stops_when_found=False, measure="Hits@10",
    ),
}  # fmt: skip
