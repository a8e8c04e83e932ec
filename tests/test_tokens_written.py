"""Captioner and rewriter count the tokens they write: the same in batches as alone, padding not counted."""

import pytest
from tiny_vlms import BUILDERS, pictures

from BLIP.captioner import BlipCaptioner
from captioning import MAX_TOKENS, Captioning
from experiments.costs import Costs, CountedCaptioner, CountedRewriter
from generation.text_model import TextModel
from query_editing import QueryEditing
from tests.small_runs import model_folder

PROMPTS = ["a dog", "a red cat in the field of", "food", "two of them"]


def test_a_language_model_counts_in_batches_as_alone(language_model):
    alone = []
    for prompt in PROMPTS:
        model = TextModel(language_model, "fp32", 1)
        model.complete([prompt], max_tokens=12)
        alone.append(model.tokens_written)
    assert all(0 < count <= 12 for count in alone) and len(set(alone)) > 1  # so that batches are padded
    together = TextModel(language_model, "fp32", 4)
    together.complete(PROMPTS, max_tokens=12)
    assert together.tokens_written == sum(alone)
    together.complete(PROMPTS, max_tokens=1)
    assert together.tokens_written == sum(alone) + len(PROMPTS)


def test_a_rewrite_that_is_kept_costs_no_tokens(language_model):
    costs, editing = Costs(), QueryEditing(language_model, "fp32")
    rewriter = CountedRewriter(editing, costs)
    costs.run = "one"
    first = rewriter.rewrite(["a dog", "food", "a dog"], ["a cat", "a cat", "a cat"])
    costs.run = "two"
    assert rewriter.rewrite(["food"], ["a cat"]) == [first[1]]
    assert "rewrite" not in costs.spent.get("two", {})
    spent = costs.spent["one"]["rewrite"]
    assert (
        (spent.items, spent.tokens) == (2, editing.tokens_written) and spent.tokens > 0 and spent.seconds > 0
    )


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory):
    return str(model_folder(tmp_path_factory.mktemp("captioner"), "captioner.pth"))


def test_blip_counts_the_words_and_the_end_of_each_caption(blip_folder):
    costs, captioning = Costs(), Captioning(blip_folder, "fp32", batch_size=2)
    images = pictures()
    CountedCaptioner(captioning, costs).caption(images)
    captioner = BlipCaptioner.open(blip_folder)
    longest = min(MAX_TOKENS, captioner.positions)
    said = [captioner.caption([image], max_length=longest)[0] for image in images]
    words = [int(captioner.tokenizer.encode([text], longest).mask.sum()) - 2 for text in said]
    assert captioning.tokens_written == sum(count + 1 for count in words) > len(images)
    spent = costs.spent[""]["caption"]
    assert (spent.items, spent.tokens) == (len(images), captioning.tokens_written)


def test_a_vision_language_model_counts_in_batches_as_alone(tmp_path):
    folder = next(iter(BUILDERS.values()))(tmp_path)
    alone = Captioning(folder, "fp32", batch_size=1)
    alone.caption(pictures())
    together = Captioning(folder, "fp32", batch_size=3)
    together.caption(pictures())
    assert 0 < together.tokens_written == alone.tokens_written
