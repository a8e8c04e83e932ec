"""BLIP: checkpoints of any origin opened for retrieval and for captions.

| file | content |
|---|---|
| `model.py` | `BlipEncoder`: images and texts to unit rows, pairs to match logits |
| `captioner.py` | `BlipCaptioner`: images to sentences |
| `towers.py`, `packed.py` | the model in plain torch; its weights laid out as processors read them fastest |
| `checkpoints.py` | a checkpoint file or folder to a filled model |
| `weight_files.py` | finds, fetches, reads and renames tensors; never runs code from a file |
| `sizes.py` | widths and depths from shapes, head counts from a JSON or the released models |
| `tokenizer.py`, `images.py` | what the model reads |
| `train_retrieval.py`, `training_*.py` | trains or fine-tunes: command; data, losses, loop |
| `common_words.txt` | 3,000 common words: people's queries use more words than a dataset's captions |
| `weights/demo/` | the demo's small BLIP, with its model card |

`python -m tests.verify_blip FOLDER` compares with recorded outputs.
"""
