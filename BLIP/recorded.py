"""Compares the models here with outputs that a reference recorded for the same weights.

A folder holds weights (``itm.*``, ``retrieval_full.pth``, ``captioner.*``), what the reference computed with
them (``itm_outputs.safetensors``, ``captioner_outputs.safetensors``, ``preprocess.safetensors``), the texts
and settings used (``itm.json``, ``captioner.json``), ``tiny_med_config.json`` and ``vocab.txt``. All sizes
come from the files.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import cross_entropy, normalize

from BLIP import images as pictures
from BLIP.captioner import BlipCaptioner
from BLIP.checkpoints import LABEL_SMOOTHING, POSITIONS, read_checkpoint
from BLIP.model import BlipEncoder
from BLIP.tokenizer import VOCABULARY, Tokenizer
from BLIP.weight_files import UnreadableFileError, read_tensors

ATOL = 1e-5
RTOL = 1e-5
RETRIEVAL_FILES = ("itm.pth", "itm.safetensors", "retrieval_full.pth")
CAPTIONER_FILES = ("captioner.pth", "captioner.safetensors")
TEXT_CONFIG = "tiny_med_config.json"
NO_LABEL = -100
GENERATION_DEFAULTS = {"num_beams": 1, "min_length": 0, "repetition_penalty": 1.0, "length_penalty": 1.0}
GENERATION_RESULTS = ("captions", "ids")


@dataclass(frozen=True)
class Check:
    """One recorded output compared.

    Attributes:
        source: The file that was tested.
        name: The recorded output.
        difference: Largest absolute difference, or for ids the number that differ.
        passed: Whether it is within the tolerance.
        unit: What ``difference`` counts.
        note: What went wrong where a number does not say it.
    """

    source: str
    name: str
    difference: float
    passed: bool
    unit: str = "max abs diff"
    note: str = ""


@dataclass
class Results:
    """What a folder's comparison found.

    Attributes:
        checks: In the order made.
        inputs: Recorded tensors that were read and not compared.
        unchecked: Recorded outputs that nothing here can compare, and why.
    """

    checks: list[Check] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


def check_folder(folder: Path) -> Results:
    """Compares everything recorded in a folder.

    Raises:
        FileNotFoundError: If the folder or a file it needs is missing; the message names it.
        ValueError: If a file other than weights is damaged, or a weights file is no checkpoint at all.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}")
    results = Results()
    retrieval = [folder / name for name in RETRIEVAL_FILES if (folder / name).is_file()]
    captioner = [folder / name for name in CAPTIONER_FILES if (folder / name).is_file()]
    if not retrieval and not captioner:
        raise FileNotFoundError(
            f"no weights in {folder}: expected {RETRIEVAL_FILES[0]} or {CAPTIONER_FILES[0]}"
        )
    for files, names, recorded in (
        (retrieval, RETRIEVAL_FILES, "itm_outputs.safetensors"),
        (captioner, CAPTIONER_FILES, "captioner_outputs.safetensors"),
    ):
        if not files and (folder / recorded).is_file():
            raise FileNotFoundError(
                f"missing {folder / names[0]}: the weights that {recorded} was recorded for"
            )
    if retrieval:
        facts = _read_facts(folder / "itm.json")
        options = _options(folder, facts)
        outputs = _Outputs(folder / "itm_outputs.safetensors", results)
        tokenizer = Tokenizer.open(options["vocabulary"])
        _check_tokens(outputs, facts, tokenizer)
        opened = [
            _guarded(results, file, lambda file=file: _check_retrieval(outputs, file, options))
            for file in retrieval
        ]
        _check_same_weights(results, retrieval)
        outputs.close(any(opened))
    if captioner:
        facts = _read_facts(folder / "captioner.json")
        if not isinstance(facts.get("prompt"), str):
            raise ValueError(
                f"{folder / 'captioner.json'} lacks the prompt: expected a string (it may be empty)"
            )
        options = _options(folder, facts)
        outputs = _Outputs(folder / "captioner_outputs.safetensors", results)
        tokenizer = Tokenizer.open(options["vocabulary"])
        _check_captions(outputs, facts, tokenizer)
        opened = [
            _guarded(results, file, lambda file=file: _check_captioner(outputs, file, options, facts))
            for file in captioner
        ]
        _check_same_weights(results, captioner)
        outputs.close(any(opened))
    if (folder / "preprocess.safetensors").is_file():
        outputs = _Outputs(folder / "preprocess.safetensors", results)
        _check_preprocessing(outputs)
        outputs.close()
    return results


class _Outputs:
    """One file of recorded tensors; keeps account of which were compared."""

    def __init__(self, file: Path, results: Results) -> None:
        if not file.is_file():
            raise FileNotFoundError(f"missing {file}: the outputs recorded for the weights beside it")
        self.file = file
        self.tensors = read_tensors(file)
        self.results = results
        self._handled: set[str] = set()
        self._inputs: set[str] = set()

    def read(self, name: str) -> torch.Tensor:
        self._inputs.add(name)
        return self.tensors[name]

    def matching(self, pattern: str) -> list[re.Match[str]]:
        found = [re.fullmatch(pattern, name) for name in sorted(self.tensors)]
        return [match for match in found if match]

    def compare(self, source: str, name: str, got: torch.Tensor) -> None:
        """Compares floats within the tolerance, integers exactly; a name not recorded is passed by."""
        if name not in self.tensors:
            return
        self._handled.add(name)
        recorded = self.tensors[name]
        exact = not recorded.is_floating_point()
        unit = "ids that differ" if exact else "max abs diff"
        if got.shape != recorded.shape:
            note = f"got shape {tuple(got.shape)}, recorded {tuple(recorded.shape)}"
            self.results.checks.append(Check(source, name, math.inf, False, unit, note))
            return
        if exact:
            differing = int((got != recorded).sum())
            self.results.checks.append(Check(source, name, differing, differing == 0, unit))
            return
        difference = (got.double() - recorded.double()).abs()
        # Written so that a difference that is no number fails.
        passed = bool((difference <= ATOL + RTOL * recorded.double().abs()).all())
        self.results.checks.append(Check(source, name, difference.max().item(), passed))

    def close(self, opened: bool = True) -> None:
        """Lists what was only read, and what nobody asked for (all of it, where no model opened)."""
        name = self.file.name
        self.results.inputs += [f"{name}: {tensor}" for tensor in sorted(self._inputs - self._handled)]
        why = "no known output" if opened else "no model opened"
        unknown = sorted(self.tensors.keys() - self._inputs - self._handled)
        self.results.unchecked += [f"{name}: {tensor} ({why})" for tensor in unknown]


def _check_tokens(outputs: _Outputs, facts: dict[str, Any], tokenizer: Tokenizer) -> None:
    source = facts.get("vocab_file", VOCABULARY)
    for match in outputs.matching(r"(long_)?input_ids(_\d+)?(_enc)?"):
        before, size, enc = match.group(1) or "", match.group(2) or "", match.group(3)
        texts = facts.get("long_text" if before else "texts")
        if texts is None:
            outputs.read(match.group())
            outputs.results.unchecked.append(f"{outputs.file.name}: {match.group()} (no texts in the JSON)")
            continue
        texts = [texts] if isinstance(texts, str) else texts
        # Where the text was cut, the recorded width is where.
        limit = int(size[1:]) if size else outputs.tensors[match.group()].shape[1]
        first = tokenizer.enc_id if enc else None
        tokens = tokenizer.encode(texts, limit, length=limit if size else None, first=first)
        outputs.compare(source, match.group(), tokens.ids)
        if not enc:
            outputs.compare(source, f"{before}attention_mask{size}", tokens.mask)


def _check_retrieval(outputs: _Outputs, file: Path, options: dict[str, Any]) -> None:
    source, recorded = file.name, outputs.tensors
    encoder = BlipEncoder.open(file, **options)
    text_features: dict[str, torch.Tensor] = {}
    for match in outputs.matching(r"(long_)?input_ids(_\d+)?"):
        before, size = match.group(1) or "", match.group(2) or ""
        if f"{before}attention_mask{size}" not in recorded:
            continue
        hidden = encoder.text_hidden(recorded[match.group()], recorded[f"{before}attention_mask{size}"])
        features = encoder.text_features(hidden)
        outputs.compare(source, f"{before}text_hidden{size}", hidden)
        outputs.compare(source, f"{before}text_proj{size}", features)
        outputs.compare(source, f"{before}text_feat{size}", normalize(features, dim=-1))
        if not before:
            text_features[size] = normalize(features, dim=-1)
    # Pairs were judged on the texts padded and cut to a fixed width, where those are recorded.
    size = max(text_features, default=None)
    for match in outputs.matching(r"pixel_values(_\d+)?"):
        image_size = match.group(1) or ""
        pixels = outputs.read(match.group())
        if pixels.shape[-1] != encoder.image_size:
            encoder = BlipEncoder.open(file, image_size=pixels.shape[-1], **options)
        outputs.compare(source, f"pos_embed{image_size}", encoder.model.get_parameter(POSITIONS).detach())
        hidden = encoder.image_hidden(pixels)
        features = encoder.image_features(hidden)
        outputs.compare(source, f"image_embeds{image_size}", hidden)
        outputs.compare(source, f"image_proj{image_size}", features)
        outputs.compare(source, f"image_feat{image_size}", normalize(features, dim=-1))
        if size is None:
            continue
        similarities = normalize(features, dim=-1) @ text_features[size].T
        outputs.compare(source, f"itc_sim{image_size}", similarities)
        for head, ids_name in (("cls", f"input_ids{size}"), ("enc", f"input_ids{size}_enc")):
            if ids_name not in recorded:
                continue
            ids, mask = recorded[ids_name], recorded[f"attention_mask{size}"]
            fused = [encoder.fused_hidden(ids, mask, one.expand(len(ids), -1, -1)) for one in hidden.split(1)]
            logits = torch.stack([encoder.match_logits(one) for one in fused])
            outputs.compare(source, f"itm_logits_{head}{image_size}", logits)
            for number, one in enumerate(fused):
                outputs.compare(source, f"itm_hidden_{head}_image{number}{image_size}", one)


def _check_captions(outputs: _Outputs, facts: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Checks the ids and labels made of the recorded captions."""
    if "captions" not in facts or "input_ids" not in outputs.tensors:
        for name in {"input_ids", "attention_mask", "labels"} & outputs.tensors.keys():
            outputs.read(name)
            outputs.results.unchecked.append(f"{outputs.file.name}: {name} (no captions in the JSON)")
        return
    source = facts.get("vocab_file", VOCABULARY)
    limit = outputs.tensors["input_ids"].shape[1]
    tokens = tokenizer.encode(facts["captions"], limit, first=tokenizer.dec_id)
    outputs.compare(source, "input_ids", tokens.ids)
    outputs.compare(source, "attention_mask", tokens.mask)
    prompt_length = tokenizer.encode([facts["prompt"]], limit).ids.shape[1] - 1
    labels = tokens.ids.masked_fill(tokens.mask == 0, NO_LABEL)
    labels[:, :prompt_length] = NO_LABEL
    outputs.compare(source, "labels", labels)


def _check_captioner(outputs: _Outputs, file: Path, options: dict[str, Any], facts: dict[str, Any]) -> None:
    source, recorded = file.name, outputs.tensors
    captioner = BlipCaptioner.open(file, **options)
    if "pixel_values" not in recorded:
        return
    pixels = outputs.read("pixel_values")
    if pixels.shape[-1] != captioner.image_size:
        captioner = BlipCaptioner.open(file, image_size=pixels.shape[-1], **options)
    hidden = captioner.image_hidden(pixels)
    outputs.compare(source, "image_embeds", hidden)
    if {"input_ids", "attention_mask", "labels"} <= recorded.keys():
        _check_losses(outputs, source, captioner, hidden, facts.get("label_smoothing", LABEL_SMOOTHING))
    prompt_ids = captioner.prompt_ids(facts["prompt"])
    outputs.compare(source, "gen_prompt_ids", prompt_ids.expand(len(pixels), -1))
    for name, settings in facts.get("generation", {}).items():
        _check_generation(outputs, source, captioner, name, settings, facts["prompt"])


@torch.inference_mode()
def _check_losses(
    outputs: _Outputs, source: str, captioner: BlipCaptioner, hidden: torch.Tensor, smoothing: float
) -> None:
    recorded = outputs.tensors
    ids, mask, labels = (recorded[name] for name in ("input_ids", "attention_mask", "labels"))
    decoder = captioner.model.text_decoder
    decoder.label_smoothing = smoothing

    def run(rows: slice) -> Any:
        return decoder(ids[rows], mask[rows], encoder_hidden_states=hidden[rows], labels=labels[rows])

    everything = run(slice(None))
    outputs.compare(source, "logits", everything.logits)
    outputs.compare(source, "loss", everything.loss)
    alone = [run(slice(row, row + 1)).loss for row in range(len(ids))]
    outputs.compare(source, "loss_single", torch.stack(alone))
    logits, targets = everything.logits[:, :-1].transpose(1, 2), labels[:, 1:]
    outputs.compare(source, "loss_no_smoothing", cross_entropy(logits, targets))
    sums = cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing).sum(dim=1)
    outputs.compare(source, "loss_sum_per_row", sums)
    log_p = everything.logits[:, :-1].log_softmax(dim=-1).gather(2, ids[:, 1:, None])[..., 0]
    outputs.compare(source, "token_logprob", log_p)


def _check_generation(
    outputs: _Outputs, source: str, captioner: BlipCaptioner, name: str, settings: dict[str, Any], prompt: str
) -> None:
    tensor = f"gen_{name}"
    recorded = outputs.read(tensor).tolist() if tensor in outputs.tensors else settings.get("ids", [])
    options = {key: value for key, value in settings.items() if key not in GENERATION_RESULTS}
    prompt = options.pop("prompt", prompt)
    unknown = {
        key for key, value in options.items() if key not in (*GENERATION_DEFAULTS, "max_length") and value
    }
    if unknown or "max_length" not in options:
        why = f"settings not known: {', '.join(sorted(unknown))}" if unknown else "no max_length in the JSON"
        outputs.results.unchecked.append(f"{source}: {tensor} ({why})")
        return
    options = GENERATION_DEFAULTS | {
        key: options[key] for key in (*GENERATION_DEFAULTS, "max_length") if key in options
    }
    ids = captioner.generate(outputs.tensors["pixel_values"], prompt, **options)
    sep = captioner.tokenizer.sep_id
    if recorded:
        differing = sum(
            _differing(_until(got, sep), _until(row, sep))
            for got, row in zip(ids.tolist(), recorded, strict=True)
        )
        outputs.results.checks.append(Check(source, tensor, differing, differing == 0, "ids that differ"))
    if "captions" in settings:
        captions = captioner.read(ids, prompt)
        wrong = _differing(captions, settings["captions"])
        check = Check(source, f"{tensor} captions", wrong, wrong == 0, "captions that differ")
        outputs.results.checks.append(check)


def _check_preprocessing(outputs: _Outputs) -> None:
    if "image_uint8_hwc" not in outputs.tensors:
        return
    image = Image.fromarray(outputs.read("image_uint8_hwc").numpy())
    for match in outputs.matching(r"(resized_uint8_chw|pixel_values)_(\d+)"):
        size = int(match.group(2))
        if match.group(1) == "pixel_values":
            got = pictures.to_pixels([image], size)[0]
        else:
            resized = pictures.resize(image, size)
            got = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8)
            got = got.view(size, size, 3).permute(2, 0, 1)
        outputs.compare("images.py", match.group(), got)


def _check_same_weights(results: Results, files: Sequence[Path]) -> None:
    """Compares the files of one model: no output shows a changed row of a word that no text has."""
    checkpoints = []
    for file in files:
        try:
            checkpoints.append(read_checkpoint(file))
        except UnreadableFileError:
            raise
        except ValueError:  # reported when the file was opened
            continue
    for other in checkpoints[1:]:
        first = checkpoints[0]
        shared = first.tensors.keys() & other.tensors.keys()
        differing = [
            other.own_name(name)
            for name in sorted(shared)
            if not torch.equal(first.tensors[name], other.tensors[name])
        ]
        note = ", ".join(differing[:3])
        count = len(differing)
        name = f"weights of {first.file.name}"
        results.checks.append(Check(other.file.name, name, count, not count, "tensors that differ", note))


def _guarded(results: Results, file: Path, check: Callable[[], None]) -> bool:
    """Makes a model that does not fit its weights a failed check, so that the others are still tested."""
    try:
        check()
    except UnreadableFileError:
        raise
    except ValueError as error:
        results.checks.append(Check(file.name, "opens", math.inf, False, note=str(error)))
        return False
    return True


def _options(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """How to open a model: head counts and depths (the text's from its own file), and the vocabulary."""
    file = folder / TEXT_CONFIG
    text = _read_facts(file) if file.is_file() else facts.get("text", {})
    config = {**text, "vision": facts.get("vision", {})}
    return {"config": config, "vocabulary": folder / facts.get("vocab_file", VOCABULARY)}


def _read_facts(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"missing {file}")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{file} holds a JSON {type(facts).__name__}, expected an object")
    return facts


def _until(row: list[int], end: int) -> list[int]:
    return row[: row.index(end) + 1] if end in row else row


def _differing(first: Sequence[Any], second: Sequence[Any]) -> int:
    longer = max(len(first), len(second)) - min(len(first), len(second))
    return longer + sum(a != b for a, b in zip(first, second, strict=False))
