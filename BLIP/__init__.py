"""BLIP: checkpoints of any origin opened for retrieval and for captions.

| file | content |
|---|---|
| `model.py` | `BlipEncoder`: images and texts to unit rows, matching |
| `captioner.py` | `BlipCaptioner`: images to sentences |
| `towers.py` | the model that is searched with, in plain torch |
| `packed.py` | its weights laid out as processors read them fastest |
| `checkpoints.py` | a checkpoint file or folder to a filled model |
| `weight_files.py` | reads and fingerprints a weights file; never runs code from one |
| `names.py` | Salesforce tensor names to Hugging Face names, and back |
| `sizes.py` | widths and depths from shapes, head counts from a JSON |
| `tokenizer.py`, `images.py` | what the model reads |
| `beam_search.py` | the reference's beam search, which transformers 5 no longer has |
| `train_retrieval.py` | trains or fine-tunes, with `training_data.py` and `training_losses.py` |
| `scores.py` | `python -m BLIP.scores`: recall, re-ranked recall, the captioner's objects |
| `common_words.txt` | 3,000 common words: people's queries use more words than a dataset's captions |
| `weights/demo/` | the demo's small BLIP, with its model card |
| `verify.py`, `recorded.py` | `python -m BLIP.verify FOLDER`: agreement with recorded outputs |
| `configs/` | text and vision settings of the released sizes |
"""
