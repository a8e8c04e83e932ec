"""The expansion scripts are one script: they differ in what is declared here, and in nothing else."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
FIRST = "multi_modal_query_expansion"
# Title and constants in which a script differs from the first.
DIFFERENCES = {
    FIRST: ("Flickr30k", {"DATASET": "flickr30k", "PROTOCOL": "honest", "USER": "independent"}),
    f"{FIRST}_mscoco": ("MSCOCO", {"DATASET": "mscoco"}),
    f"{FIRST}_msrvtt": ("MSR-VTT", {"DATASET": "msrvtt", "PROTOCOL": "paper", "USER": "ground-truth"}),
}


def test_every_sibling_is_declared():
    assert {path.stem for path in PROJECT.glob(f"{FIRST}*.py")} == set(DIFFERENCES)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_sibling_is_the_first_script_with_the_declared_differences(name):
    title, constants = DIFFERENCES[name]
    expected = (PROJECT / f"{FIRST}.py").read_text(encoding="utf-8")
    expected = expected.replace(f"{FIRST}.py", f"{name}.py").replace("over Flickr30k:", f"over {title}:")
    for constant, value in constants.items():
        expected, count = re.subn(rf'(?m)^{constant} = "[\w-]+"', f'{constant} = "{value}"', expected)
        assert count == 1
    assert (PROJECT / f"{name}.py").read_text(encoding="utf-8") == expected
