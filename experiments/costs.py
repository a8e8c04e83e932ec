"""What a run costs: how often each stage did its work, how long that took, and how many tokens it wrote.

Runs of a comparison share captions and rewrites, so the first that needs one pays for it and the others do
not. `Costs.per_query` therefore takes from each run how much it asked for, and from all runs together how
long one caption or rewrite took: what the run would have cost alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from feedback.strategies.rewrite import Rewriter
from files import read_json, write_json
from records import Round

SHARED = ("caption", "rewrite")  # made once for all runs
KEPT_REWRITES = 100_000  # some 80 MB
STAGES = ("search", "move", *SHARED)


@dataclass
class Spent:
    """What one stage of one run has spent."""

    items: int = 0  # searches, moved queries, captions or rewrites
    seconds: float = 0.0  # without the time of other stages inside
    tokens: int = 0  # written by a model; 0 where nobody counts them
    money: float = 0.0  # paid for a model behind servers, at the prices that the settings give


class Costs:
    """The account of one or several runs; kept in a file if one is named, so that a stop loses none."""

    def __init__(self) -> None:
        self.run = ""  # name of the run that pays now
        self.spent: dict[str, dict[str, Spent]] = {}  # in each stage of each run
        self._path: Path | None = None
        self._open: list[float] = []  # seconds of the stages inside, for each stage that is running

    def keep_in(self, path: Path) -> None:
        """Goes on with the account in a file, if it is there; `save` writes it."""
        self._path = path
        if path.is_file():
            self.spent = {
                run: {stage: Spent(**values) for stage, values in stages.items()}
                for run, stages in read_json(path).items()
            }

    @contextmanager
    def measure(self, stage: str, items: int, model: object = None) -> Iterator[None]:
        """Charges the block's time to a stage of the current run, without that of stages inside.

        Of the `model` that does the work, ``tokens_written`` and ``money`` are read, if it has them.
        """
        account = self.spent.setdefault(self.run, {}).setdefault(stage, Spent())
        started, (written, paid) = time.perf_counter(), _counters(model)
        self._open.append(0.0)
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            account.seconds += seconds - self._open.pop()
            account.items += items
            written_now, paid_now = _counters(model)
            account.tokens += written_now - written
            account.money += paid_now - paid
            if self._open:
                self._open[-1] += seconds

    def save(self) -> None:
        """Writes the file."""
        if self._path is not None:
            accounts = {
                run: {stage: asdict(account) for stage, account in stages.items()}
                for run, stages in self.spent.items()
            }
            write_json(self._path, accounts)

    def per_query(self, run: str, counts: Mapping[str, float], query_count: int) -> dict[str, float | None]:
        """Says what a run costs a query, as if it had been played alone.

        `counts` says how many searches, moves, captions and rewrites it asked for, by stage.

        Returns:
            A query's ``seconds`` and ``tokens`` in all, and for each stage its count, as ``search``, its
            ``search seconds`` and its ``search tokens``. None where the stage was needed and never measured,
            such as captions found in a file.
        """
        row: dict[str, float | None] = {"seconds": 0.0, "tokens": 0.0}
        for stage in STAGES:
            payers = self.spent.values() if stage in SHARED else [self.spent.get(run, {})]
            accounts = [stages[stage] for stages in payers if stage in stages]
            items = sum(account.items for account in accounts)
            count = counts.get(stage, 0) / query_count
            known = items > 0 or not count
            spent = {
                "seconds": sum(account.seconds for account in accounts),
                "tokens": sum(account.tokens for account in accounts),
            }
            row[stage] = count
            for kind, amount in spent.items():
                own = count * amount / max(1, items) if known else None
                row[f"{stage} {kind}"] = own
                total = row[kind]
                row[kind] = None if own is None or total is None else total + own
        return row


class CountedRewriter:
    """A rewriter whose work is counted; the first `KEPT_REWRITES` are kept, and asked of it only once.

    `guarded`: see `feedback.strategies.rewrite.Rewriter`.
    """

    def __init__(self, rewriter: Rewriter, costs: Costs, guarded: bool = True) -> None:
        self.guarded = guarded
        self._rewriter = rewriter
        self._costs = costs
        self._written: dict[tuple[str, str], str] = {}

    def rewrite(self, queries: Sequence[str], captions: Sequence[str]) -> list[str]:
        """Returns one line a pair, in order; empty where the rewriter failed."""
        pairs = list(zip(queries, captions, strict=True))
        known = {pair: self._written[pair] for pair in pairs if pair in self._written}
        new = [pair for pair in dict.fromkeys(pairs) if pair not in known]
        if new:
            with self._costs.measure("rewrite", len(new), self._rewriter):
                made = self._rewriter.rewrite([query for query, _ in new], [caption for _, caption in new])
            known.update(zip(new, made, strict=True))
            # The first stay rather than the latest: runs that share rewrites ask for the same pairs in order.
            room = KEPT_REWRITES - len(self._written)
            self._written.update((pair, known[pair]) for pair in new[: max(0, room)])
        return [known[pair] for pair in pairs]


class CountedCaptioner:
    """A captioner whose work is counted."""

    def __init__(self, captioner: Any, costs: Costs) -> None:
        self.model_id = captioner.model_id
        self.name = captioner.name
        self._captioner = captioner
        self._costs = costs

    def caption(self, images: list[Any]) -> list[str]:
        """Describes each picture in one line."""
        with self._costs.measure("caption", len(images), self._captioner):
            return self._captioner.caption(images)


def counts_of(
    rounds: Iterable[Round], needs_captions: bool, rewrites: bool, collection: int = 0
) -> dict[str, int]:
    """Counts from its records what a run asked for: captions of distinct images, rewrites of distinct pairs.

    Args:
        rounds: The run's, those of a query in order; read once.
        needs_captions: Whether its strategy has picked images captioned.
        rewrites: Whether its strategy has a language model write.
        collection: Images that its strategy has captioned whether they are picked or not.
    """
    searched = moved = asked = 0
    liked: set[str] = set()
    captioned: set[str] = set()  # queries whose last round led to captions
    for record in rounds:
        searched += 1
        moved += record.number > 0
        liked.update(record.liked)
        asked += record.query_id in captioned
        captioned.discard(record.query_id)
        if any(record.captions):
            captioned.add(record.query_id)
    return {
        "search": searched,
        "move": moved,
        "caption": max(collection, len(liked) if needs_captions else 0),
        "rewrite": asked if rewrites else 0,
    }


def _counters(model: object) -> tuple[int, float]:
    """Returns tokens written and money spent so far; a model from outside need not count."""
    return getattr(model, "tokens_written", 0), getattr(model, "money", 0.0)
