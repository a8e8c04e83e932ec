"""Defaults, constants and the command line; what is wrong is said in one line."""

import dataclasses
import logging
from pathlib import Path

import pytest

from settings import (
    DATA_FOLDER,
    PRESETS,
    ComparisonSettings,
    ExperimentSettings,
    InteractiveSettings,
    read_settings,
    result_settings,
    run_script,
)


def test_constants_override_defaults_and_the_command_line_overrides_both():
    constants = {"DATASET": "mscoco", "ROUNDS": 2, "QUANTIZATION": True, "__doc__": "", "main": None, "_X": 1}
    settings = read_settings(ExperimentSettings, constants, [])
    assert (settings.dataset, settings.rounds, settings.quantization) == ("mscoco", 2, True)
    arguments = ["--rounds", "3", "--dataset", "demo", "--caption-numbers", "0", "4", "--root", "some/where"]
    settings = read_settings(ExperimentSettings, constants, arguments)
    assert (settings.dataset, settings.rounds, settings.quantization) == ("demo", 3, True)
    assert (settings.caption_numbers, settings.root) == (("0", "4"), Path("some/where"))


def test_the_encoders_old_name_still_works():
    for constants, arguments in (
        ({"BLIP": "a"}, []),
        ({}, ["--blip", "a"]),
        ({"BLIP": "b"}, ["--encoder", "a"]),
    ):
        assert read_settings(ExperimentSettings, constants, arguments).encoder == "a"
    with pytest.raises(ValueError, match="got ENCODER by two names; keep ENCODER alone"):
        read_settings(ExperimentSettings, {"BLIP": "a", "ENCODER": "a"}, [])


@pytest.mark.parametrize(
    ("written", "value"), [("True", True), ("False", False), ("int4", "int4"), ("None", None)]
)
def test_quantization_from_the_command_line(written, value):
    settings = read_settings(ExperimentSettings, {"QUANTIZATION": "fp32"}, ["--quantization", written])
    assert settings.quantization is value or settings.quantization == value


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"STRATEGYY": "append"}, "unknown constant STRATEGYY; did you mean STRATEGY?"),
        ({"XQZ": 3}, "unknown constant XQZ$"),
        ({"ROUNDS": "4"}, "constant ROUNDS = '4': expected int"),
        ({"ROUNDS": 4.0}, "constant ROUNDS = 4.0: "),
        ({"ROUNDS": True}, "constant ROUNDS = True: expected int"),
        ({"STRATEGY": "Append"}, "constant STRATEGY = 'Append': "),
        ({"QUANTIZATION": "int2"}, "constant QUANTIZATION = 'int2': "),
        ({"ROOT": "playground"}, "constant ROOT = 'playground': "),
        ({"CAPTION_NUMBERS": ("0", 4)}, "constant CAPTION_NUMBERS = "),
        ({"RESTART": 1}, "constant RESTART = 1: "),
        ({"ROUNDS": 0}, "rounds: got 0, expected at least 1"),
    ],
)
def test_wrong_constants_are_errors_of_one_line(constants, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_settings(ExperimentSettings, constants, [])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", [None, *PRESETS])
@pytest.mark.parametrize("dataset", ["demo", "msrvtt", "image_folder"])
def test_presets_and_datasets_fill_what_is_open(dataset, preset):
    settings = ExperimentSettings(dataset=dataset, preset=preset).resolved()
    name = preset or ("demo" if dataset == "demo" else "rtx3090-int8")
    assert settings.preset == name
    assert {key: getattr(settings, key) for key in PRESETS[name]} == PRESETS[name]
    assert settings.split == {"demo": "test-medium", "msrvtt": "1k-A"}.get(dataset, "all")
    assert settings.root == DATA_FOLDER / dataset
    assert settings.caption_cache == DATA_FOLDER / "captions.sqlite"
    assert settings.index == DATA_FOLDER / dataset / f"index-{settings.split}"
    assert settings.resolved() == settings


def test_a_study_goes_on_at_another_address():
    fixed = result_settings(InteractiveSettings)
    assert "strategy" in fixed and not fixed & {"host", "port", "names", "terminal", "text", "describe"}


def test_a_search_without_words_is_refused():
    with pytest.raises(ValueError, match="text: got ' ', expected words, such as --text 'a dog on a beach'"):
        InteractiveSettings("demo", text=" ").resolved()


def test_a_run_is_named_after_what_makes_it():
    settings = ExperimentSettings(dataset="demo", strategy="append", user="random", protocol="reference")
    assert settings.resolved().output == Path("runs/demo-test-medium-reference-random-append")
    assert ComparisonSettings(dataset="demo").resolved().output == Path(
        "runs/compare-demo-test-medium-honest"
    )


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (None, 0, []),
        (ValueError("got 1, expected 2"), 2, ["error: got 1, expected 2"]),
        (FileNotFoundError("x: no such file"), 2, ["error: x: no such file"]),
        (ModuleNotFoundError("needs y"), 2, ["error: needs y"]),
        (KeyboardInterrupt(), 130, ["stopped; the same command goes on from here"]),
    ],
)
def test_mistakes_become_one_line_and_a_status(error, status, words, caplog):
    def main():
        if error:
            raise error

    with caplog.at_level(logging.INFO):
        assert run_script(main) == status
    assert caplog.messages == words


def test_our_own_mistakes_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_script(lambda: 1 // 0)


def test_the_page_starts_with_what_the_index_allows(tmp_path):
    folder = InteractiveSettings("image_folder", tmp_path, index=tmp_path)
    assert folder.resolved().strategy == "bayes"
    (tmp_path / "captions.json").write_text("{}")
    assert folder.resolved().strategy == "bayes-captions" and "bayes-captions" in str(
        folder.resolved().output
    )
    milvus = dataclasses.replace(folder, index="milvus://localhost:19530/images")
    assert milvus.resolved().strategy == "rewrite-anchored"
    assert dataclasses.replace(folder, strategy="append").resolved().strategy == "append"
