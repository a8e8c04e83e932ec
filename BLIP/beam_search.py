"""Beam search with the length rule that BLIP's captions were made with.

transformers 5 divides a sentence's log probability by its new tokens, [SEP] among them; the reference divided
by all tokens, prompt included and [SEP] left out. The first favours longer captions, and no length penalty
turns one into the other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

NextLogits = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def beam_search(
    next_logits: NextLogits,
    prompt: torch.Tensor,
    *,
    num_beams: int,
    max_length: int,
    min_length: int,
    end_id: int,
    pad_id: int,
    repetition_penalty: float = 1.0,
    length_penalty: float = 1.0,
) -> torch.Tensor:
    """Searches, for every row of the prompt, the continuation with the best log probability for its length.

    A finished sentence of n tokens (prompt counted, end token not) scores
    ``sum(log p) / n ** length_penalty``. Each step looks at the ``2 * num_beams`` best continuations of a
    row; one that ends the sentence counts only among the first ``num_beams`` of them. A row is done when it
    has ``num_beams`` finished sentences and the worst scores at least
    ``best running sum / n ** length_penalty``. Rows not done at ``max_length`` let their open sentences join.
    Example: with sums -2.055 over 5 tokens and -6.969 over 13, the short one wins (-0.411 against -0.536).

    Args:
        next_logits: Called with the tokens so far, (rows * num_beams, t) int64, and the rows of the previous
            call that they continue (None at first); returns the next token's logits,
            (rows * num_beams, vocabulary).
        prompt: (rows, p) int64.
        num_beams: Sentences kept open for each row.
        max_length: The most tokens, prompt counted.
        min_length: The end token is barred while a sentence is shorter, prompt counted.
        end_id: The token that ends a sentence.
        pad_id: Fills the rows up.
        repetition_penalty: Multiplies the log probability of every token already in the sentence.
        length_penalty: As above.

    Returns:
        (rows, at most max_length) int64: prompt, sentence, end token where there is room, padding.

    Source: the rules of transformers 4.15, which the BLIP reference generates with.
    """
    rows = prompt.shape[0]
    tokens = prompt.repeat_interleave(num_beams, dim=0)
    sums = torch.full((rows, num_beams), -1e9, device=prompt.device)
    sums[:, 0] = 0  # all beams of a row begin alike: only one may spread at first
    finished = [_Finished(num_beams) for _ in range(rows)]
    done = [False] * rows
    parents = None
    while tokens.shape[1] < max_length and not all(done):
        length = tokens.shape[1]
        log_p = next_logits(tokens, parents).float().log_softmax(dim=-1)
        if repetition_penalty != 1.0:
            log_p = log_p.scatter(1, tokens, log_p.gather(1, tokens) * repetition_penalty)
        if length < min_length:
            log_p[:, end_id] = -torch.inf
        vocabulary = log_p.shape[1]
        totals = (sums.view(-1, 1) + log_p).view(rows, num_beams * vocabulary)
        best, where = totals.topk(2 * num_beams, dim=1)
        chosen_sums, chosen_rows, chosen_tokens = [], [], []
        for row in range(rows):
            first_beam = row * num_beams
            if done[row]:  # its beams stand still until the others are done
                chosen_sums += sums[row].tolist()
                chosen_rows += range(first_beam, first_beam + num_beams)
                chosen_tokens += [pad_id] * num_beams
                continue
            opened = 0
            for rank, (total, place) in enumerate(zip(best[row].tolist(), where[row].tolist(), strict=True)):
                beam, token = first_beam + place // vocabulary, place % vocabulary
                if token == end_id:
                    if rank < num_beams:
                        finished[row].add(total / length**length_penalty, tokens[beam])
                elif opened < num_beams:
                    chosen_sums.append(total)
                    chosen_rows.append(beam)
                    chosen_tokens.append(token)
                    opened += 1
            done[row] = finished[row].beats(best[row, 0].item() / length**length_penalty)
        parents = torch.tensor(chosen_rows, device=prompt.device)
        sums = torch.tensor(chosen_sums, device=prompt.device).view(rows, num_beams)
        tokens = torch.cat(
            [tokens[parents], torch.tensor(chosen_tokens, device=prompt.device)[:, None]], dim=1
        )
    for row in range(rows):
        if not done[row]:
            for beam in range(num_beams):
                score = sums[row, beam].item() / tokens.shape[1] ** length_penalty
                finished[row].add(score, tokens[row * num_beams + beam])
    sentences = [one.best() for one in finished]
    longest = min(max(len(sentence) for sentence in sentences) + 1, max_length)
    result = torch.full((rows, longest), pad_id, dtype=torch.long, device=prompt.device)
    for row, sentence in enumerate(sentences):
        result[row, : len(sentence)] = sentence
        if len(sentence) < max_length:
            result[row, len(sentence)] = end_id
    return result


class _Finished:
    """The best finished sentences of one row, worst first."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._scored: list[tuple[float, torch.Tensor]] = []

    def add(self, score: float, sentence: torch.Tensor) -> None:
        if len(self._scored) == self._room:
            if score <= self._scored[0][0]:
                return
            self._scored.pop(0)
        self._scored.append((score, sentence))
        self._scored.sort(key=lambda pair: pair[0])

    def beats(self, running: float) -> bool:
        return len(self._scored) == self._room and self._scored[0][0] >= running

    def best(self) -> torch.Tensor:
        return self._scored[-1][1]
