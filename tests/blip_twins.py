"""transformers' own BLIP models with the weights of ours, to compare with."""

from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval


def twin_of(model):
    """Returns transformers' model of the same kind with the same weights; names are the same in both."""
    is_captioner = hasattr(model, "text_decoder")
    model_class = BlipForConditionalGeneration if is_captioner else BlipForImageTextRetrieval
    twin = model_class(model.sizes.configuration()).eval()
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin
