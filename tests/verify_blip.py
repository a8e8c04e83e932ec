"""Compares BLIP with outputs that a reference recorded: ``python -m tests.verify_blip FOLDER``.

The folder holds weights (``itm.*``, ``retrieval_full.*``, ``captioner.*``), what the reference computed with
them, the texts and settings it used, and the names of the real base models (``keys_base.json``). All sizes
come from the files. Floats must agree within 1e-5 (absolute plus relative), ids exactly. Exit status: 0 if
all agree, 1 if any differs, 2 if the folder cannot be read.
"""

import argparse
import json
import math
import re
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, normalize

from BLIP.captioner import BlipCaptioner
from BLIP.checkpoints import POSITIONS, make_decoder
from BLIP.images import resize, to_pixels
from BLIP.model import BlipEncoder
from BLIP.sizes import Stated, read_sizes
from BLIP.towers import Captioner, Towers
from BLIP.weight_files import SUFFIXES, is_surplus, read_checkpoint, to_hugging_face
from files import read_json

TOLERANCE = 1e-5
IGNORED = -100  # label of a token that the loss does not count


class Recorded:
    """One file of recorded tensors, and which of them were compared with what result."""

    def __init__(self, file):
        self.file, self.tensors = file, load_file(file)
        self.rows, self.inputs = [], set()

    def __getitem__(self, name):
        self.inputs.add(name)
        return self.tensors[name]

    def __contains__(self, name):
        return name in self.tensors

    def matching(self, pattern):
        return [found for name in sorted(self.tensors) if (found := re.fullmatch(pattern, name))]

    def compare(self, source, name, got):
        """Adds a row: source, name, difference, whether it is small enough; skips what was not recorded."""
        if name not in self.tensors:
            return
        recorded = self.tensors[name]
        if got.shape != recorded.shape:
            self.rows.append((source, name, f"shape {tuple(got.shape)}, not {tuple(recorded.shape)}", False))
        elif recorded.is_floating_point():
            difference = (got.double() - recorded.double()).abs()
            # Written so that NaN fails.
            passed = bool((difference <= TOLERANCE + TOLERANCE * recorded.double().abs()).all())
            self.rows.append((source, name, f"{difference.max().item():.2e}", passed))
        else:
            self.same(source, name, got.tolist(), recorded.tolist())

    def same(self, source, name, got, expected):
        self.rows.append((source, name, "same" if got == expected else "other ids", got == expected))

    def left_over(self):
        compared = {name for _, name, _, _ in self.rows}
        return sorted(f"{self.file.name}: {name}" for name in self.tensors.keys() - compared - self.inputs)


def check_folder(folder, scratch):
    """Compares all there is, with copies in `scratch`; returns rows, and what nothing looked at."""
    rows, left_over, jobs = [], [], []
    for kind, patterns, check in (
        ("itm", ("itm.*", "retrieval_full.*"), check_retrieval),
        ("captioner", ("captioner.*",), check_captioner),
    ):
        weights = sorted(
            file for pattern in patterns for file in folder.glob(pattern) if file.suffix in SUFFIXES
        )
        if not weights:
            raise FileNotFoundError(f"missing {folder / kind}.pth: the weights that were recorded")
        recorded = Recorded(folder / f"{kind}_outputs.safetensors")
        facts = read_json(folder / f"{kind}.json")
        text = folder / "tiny_med_config.json"
        config = (read_json(text) if text.is_file() else facts["text"]) | {"vision": facts["vision"]}
        complete = scratch / kind  # what opens a model lies in one folder
        complete.mkdir()
        (complete / "config.json").write_text(json.dumps(config))
        shutil.copy(folder / facts.get("vocab_file", "vocab.txt"), complete / "vocab.txt")
        weights = [Path(shutil.copy(file, complete)) for file in weights]
        jobs.append((check, recorded, weights, facts))
    for check, recorded, weights, facts in jobs:  # only now, so that a missing file is told at once
        opened = {}
        for file in weights:
            try:
                check(recorded, file, facts)
                opened[file.name] = read_checkpoint(file).tensors
            except ValueError as error:  # the other files are compared all the same
                rows.append((file.name, "opens", str(error), False))
        # No output shows a changed row of a word that no text has.
        for name, tensors in list(opened.items())[1:]:
            first = opened[weights[0].name]
            passed = first.keys() == tensors.keys() and all(torch.equal(first[n], tensors[n]) for n in first)
            rows.append((name, f"weights of {weights[0].name}", "same" if passed else "differ", passed))
        rows += recorded.rows
        left_over += recorded.left_over()
    if (folder / "preprocess.safetensors").is_file():
        preprocess = Recorded(folder / "preprocess.safetensors")
        check_preprocessing(preprocess)
        rows += preprocess.rows
        left_over += preprocess.left_over()
    if (folder / "keys_base.json").is_file():
        rows += check_keys(read_json(folder / "keys_base.json"))
    return rows, left_over


def check_retrieval(recorded, file, facts):
    source, encoder = file.name, BlipEncoder.open(file)
    texts = {}  # features by the suffix of their ids
    for found in recorded.matching(r"(long_)?input_ids(_\d+)?(_enc)?"):
        before, size, enc = (part or "" for part in found.groups())
        ids, mask = recorded.tensors[found.group()], recorded.tensors[f"{before}attention_mask{size}"]
        words = [facts["long_text"]] if before else facts["texts"]
        first = encoder.tokenizer.enc_id if enc else None
        width = ids.shape[1]  # of a text that was cut, the limit; of the longest that was not, its length
        tokens = encoder.tokenizer.encode(words, width, length=width if size else None, first=first)
        recorded.compare("tokenizer", found.group(), tokens.ids)
        recorded.compare("tokenizer", f"{before}attention_mask{size}", tokens.mask)
        if not enc:
            hidden = encoder.text_hidden(ids, mask)
            features = encoder.text_features(hidden)
            recorded.compare(source, f"{before}text_hidden{size}", hidden)
            recorded.compare(source, f"{before}text_proj{size}", features)
            recorded.compare(source, f"{before}text_feat{size}", normalize(features, dim=-1))
        if not before and not enc:
            texts[size] = normalize(features, dim=-1)
    size = max(texts)  # pairs were scored on the texts padded and cut to a fixed width
    for found in recorded.matching(r"pixel_values(_\d+)?"):
        suffix, pixels = found.group(1) or "", recorded[found.group()]
        if pixels.shape[-1] != encoder.image_size:
            encoder = BlipEncoder.open(file, image_size=pixels.shape[-1])
        hidden = encoder.image_hidden(pixels)
        features = encoder.image_features(hidden)
        recorded.compare(source, f"pos_embed{suffix}", encoder.model.get_parameter(POSITIONS).detach())
        recorded.compare(source, f"image_embeds{suffix}", hidden)
        recorded.compare(source, f"image_proj{suffix}", features)
        recorded.compare(source, f"image_feat{suffix}", normalize(features, dim=-1))
        recorded.compare(source, f"itc_sim{suffix}", normalize(features, dim=-1) @ texts[size].T)
        for head, ids_name in (("cls", f"input_ids{size}"), ("enc", f"input_ids{size}_enc")):
            if ids_name not in recorded:
                continue
            ids, mask = recorded.tensors[ids_name], recorded.tensors[f"attention_mask{size}"]
            fused = [encoder.text_hidden(ids, mask, one.expand(len(ids), -1, -1)) for one in hidden.split(1)]
            logits = torch.stack([encoder.match_logits(one) for one in fused])
            recorded.compare(source, f"itm_logits_{head}{suffix}", logits)
            for number, one in enumerate(fused):
                recorded.compare(source, f"itm_hidden_{head}_image{number}{suffix}", one)


def check_captioner(recorded, file, facts):
    pixels = recorded["pixel_values"]
    source = file.name
    captioner = BlipCaptioner.open(file)
    hidden = captioner.image_hidden(pixels)
    recorded.compare(source, "image_embeds", hidden)
    check_losses(recorded, source, captioner, hidden, facts)
    prompt = captioner.prompt_ids(facts["prompt"])
    recorded.compare("tokenizer", "gen_prompt_ids", prompt.expand(len(pixels), -1))
    end = captioner.tokenizer.sep_id
    for name, settings in facts["generation"].items():
        beams = settings.get("num_beams", 1)
        options = {key: settings[key] for key in ("max_length", "min_length") if key in settings}
        penalties = {key: settings.get(key, 1.0) for key in ("repetition_penalty", "length_penalty")}
        if beams == 1 and penalties["repetition_penalty"] == 1:
            found = captioner.generate(pixels, facts["prompt"], **options).tolist()
        else:
            options |= penalties | {"num_beams": beams}
            found = [
                beam_search(captioner, image, prompt[0].tolist(), **options) for image in hidden.split(1)
            ]
        expected = recorded[f"gen_{name}"].tolist() if f"gen_{name}" in recorded else settings["ids"]
        found, expected = ([until(row, end) for row in rows] for rows in (found, expected))
        recorded.same(source, f"gen_{name}", found, expected)
        if "captions" in settings:
            captions = [captioner.read(torch.tensor([row]), facts["prompt"])[0] for row in found]
            recorded.same(source, f"gen_{name} captions", captions, settings["captions"])


@torch.inference_mode()
def check_losses(recorded, source, captioner, hidden, facts):
    ids, mask, labels = (recorded.tensors[name] for name in ("input_ids", "attention_mask", "labels"))
    tokenizer, smoothing = captioner.tokenizer, facts["label_smoothing"]
    tokens = tokenizer.encode(facts["captions"], ids.shape[1], first=tokenizer.dec_id)
    recorded.compare("tokenizer", "input_ids", tokens.ids)
    recorded.compare("tokenizer", "attention_mask", tokens.mask)
    targets = tokens.ids.masked_fill(tokens.mask == 0, IGNORED)
    targets[:, : captioner.prompt_ids(facts["prompt"]).shape[1]] = IGNORED
    recorded.compare("tokenizer", "labels", targets)
    logits = captioner.model.text_decoder(ids, mask, encoder_hidden_states=hidden).logits
    recorded.compare(source, "logits", logits)
    log_p = logits[:, :-1].log_softmax(dim=-1)
    recorded.compare(source, "token_logprob", log_p.gather(2, ids[:, 1:, None])[..., 0])
    scores, targets = logits[:, :-1].transpose(1, 2), labels[:, 1:]  # position i predicts token i + 1
    losses = cross_entropy(scores, targets, reduction="none", label_smoothing=smoothing)
    recorded.compare(source, "loss_sum_per_row", losses.sum(dim=1))
    recorded.compare(source, "loss_single", losses.sum(dim=1) / (targets != IGNORED).sum(dim=1))
    recorded.compare(source, "loss_no_smoothing", cross_entropy(scores, targets))
    captioner.model.text_decoder.label_smoothing = smoothing
    output = captioner.model.text_decoder(ids, mask, encoder_hidden_states=hidden, labels=labels)
    recorded.compare(source, "loss", output.loss)


@torch.inference_mode()
def beam_search(
    captioner,
    image,
    prompt,
    *,
    num_beams,
    max_length,
    min_length=0,
    repetition_penalty=1.0,
    length_penalty=1.0,
):
    """Finds the caption of one image by the rules of transformers 4.15, which the reference generated with.

    A finished sentence of n tokens (prompt counted, end token not) scores ``sum(log p) / n**length_penalty``;
    transformers 5 divides by its new tokens instead. Each step looks at the ``2 * num_beams`` best
    continuations; one that ends the sentence counts only among the first ``num_beams`` of them. The search is
    over once it has ``num_beams`` finished sentences and the worst scores at least as much as the best open
    one; otherwise the sentences still open at ``max_length`` join.
    """
    end = captioner.tokenizer.sep_id
    beams, finished = [(0.0, prompt)], []
    for length in range(len(prompt), max_length):
        words = torch.tensor([sentence for _, sentence in beams])
        states = image.expand(len(beams), -1, -1)
        logits = captioner.model.text_decoder(words, encoder_hidden_states=states, use_cache=False).logits
        # A single beam ranks the logits themselves, and its penalty is on them.
        log_p = logits[:, -1].log_softmax(dim=-1) if num_beams > 1 else logits[:, -1]
        said = log_p.gather(1, words)
        said = torch.where(said < 0, said * repetition_penalty, said / repetition_penalty)
        log_p = log_p.scatter(1, words, said)
        if length < min_length:
            log_p[:, end] = -math.inf
        totals = torch.tensor([[total] for total, _ in beams]) + log_p
        best, places = totals.flatten().topk(2 * num_beams)
        candidates = [
            (total, beams[place // log_p.shape[1]][1], place % log_p.shape[1])
            for total, place in zip(best.tolist(), places.tolist(), strict=True)
        ]
        ended = [(total, sentence) for total, sentence, token in candidates[:num_beams] if token == end]
        finished += [(total / length**length_penalty, sentence) for total, sentence in ended]
        finished = sorted(finished, key=lambda one: -one[0])[:num_beams]
        beams = [(total, [*sentence, token]) for total, sentence, token in candidates if token != end]
        beams = beams[:num_beams]
        if len(finished) == num_beams and finished[-1][0] >= candidates[0][0] / length**length_penalty:
            break
    else:
        finished += [(total / max_length**length_penalty, sentence) for total, sentence in beams]
    sentence = max(finished, key=lambda one: one[0])[1]
    return sentence if len(sentence) == max_length else [*sentence, end]


def check_preprocessing(recorded):
    image = Image.fromarray(recorded["image_uint8_hwc"].numpy())
    for found in recorded.matching(r"(resized_uint8_chw|pixel_values)_(\d+)"):
        size = int(found.group(2))
        got = to_pixels([image], size)[0]
        if found.group(1) != "pixel_values":
            got = torch.frombuffer(bytearray(resize(image, size).tobytes()), dtype=torch.uint8)
            got = got.view(size, size, 3).permute(2, 0, 1)
        recorded.compare("images.py", found.group(), got)


def check_keys(listed):
    """Compares names and shapes of the real base models, at each image size, with those made here."""
    rows = []
    for kind, prefix in (("BLIP_ITM", "text_encoder."), ("BLIP_Decoder", "text_decoder.bert.")):
        changes = {key: listed[key][kind] for key in listed if key.startswith("differences_at_")}
        for changed in ({}, *changes.values()):
            known = {**listed[f"{kind}@224"], **changed}
            shapes = {to_hugging_face(n): tuple(s) for n, (s, _) in known.items() if not is_surplus(n)}
            with torch.device("meta"):
                sizes = read_sizes(shapes, prefix, Stated({}, {}), Path("keys_base.json"))
                model = Towers(sizes) if kind == "BLIP_ITM" else Captioner(sizes, make_decoder(sizes, None))
            made = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
            differing = made.items() ^ shapes.items()
            name = f"{kind}, {sizes.image_size} pixels"
            rows.append(("keys_base.json", name, f"{len(differing)} names differ", not differing))
    return rows


def until(row, end):
    """Cuts a sentence after its end token: what pads it is not compared."""
    return row[: row.index(end) + 1] if end in row else row


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.verify_blip", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="weights and what a reference computed with them")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            rows, left_over = check_folder(parser.parse_args(arguments).folder, Path(scratch))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        sys.stderr.write(f"cannot verify: {error}\n")
        return 2
    failed = sum(not passed for *_, passed in rows)
    lines = [
        f"{'ok' if passed else 'DIFFERS':8}{source:26}{name:34}{difference}"
        for source, name, difference, passed in rows
    ]
    lines += [f"NOT CHECKED {name}" for name in left_over]
    lines.append(f"{failed} of {len(rows)} differ" if failed else f"all {len(rows)} agree")
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # as the reference; more threads only wait for one another on models this small
    sys.exit(main())
