"""Kills the demo's experiment at random and at exact moments, lets it go on, and compares: ``make soak``.

A small experiment (embedding, captions, rounds with rewriting, report) is played once undisturbed. Then it is
played again and again from an empty folder, each lap killed with SIGKILL at random moments of each stage and
given the same command again until it ends. Then it is killed before every single change that it makes to a
file, one after the other. All that a lap has made must be the same bytes, and nothing else may be there.

Exit status: 0 when all laps ended with the same bytes, 1 when one did not.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.faults_world import PROJECT, World, kill, make_pictures, run, start

REWRITING = ("--strategy", "rewrite-anchored")
WITHOUT_LANGUAGE_MODEL = ("--strategy", "append")
PLAYED = ("--protocol", "chatir", "--user", "reference", "--caption-numbers", "4", "--query-batch", "1")
IN_A_ROW = 4  # kills in each stage of a lap, at most
WRITING_SECONDS = 0.005
POLL_SECONDS = 0.0005


@dataclass(frozen=True)
class Aim:
    """A stage to kill in.

    Attributes:
        command: Whose stage it is.
        seconds: The kill comes so long after the stage has begun, at most.
        begun: Tells from the size of the log and of the records at the start whether it has.
    """

    command: str
    seconds: float
    begun: Callable[[int, int], bool] = lambda log, records: True


class Soak:
    """One campaign.

    Attributes:
        world: Where it is played.
        reference: What an undisturbed run makes.
        killed: Kills that ended a process, by stage.
        left: What they left behind, by kind.
        laps: How they ended.
    """

    def __init__(self, world: World, seed: int, minutes: float, short: bool = False) -> None:
        self.world = world
        self.end = time.monotonic() + 60 * minutes
        self.random = random.Random(seed)
        self.killed: Counter[str] = Counter()
        self.left: Counter[str] = Counter()
        self.laps: Counter[str] = Counter()
        self.records = world.place("--output") / "rounds.jsonl"
        self.control = world.place("--output") / "scrolling.rounds.jsonl"
        for name in ("embed", "caption", "play"):
            if short:
                self._finish(name)
                continue
            script, *arguments = world.arguments(name)  # in fresh interpreters, as a person starts them
            command = [sys.executable, f"{script}.py", *arguments]
            done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{name} failed: {done.stderr}")
        self.reference = world.result()

    def log(self, name: str) -> Path:
        return self.world.home / f"{name}.log"

    def aims(self) -> dict[str, Aim]:
        """Plays a lap in forked processes, undisturbed, to see how long the stages take."""
        self.world.clear()
        self._finish("embed")  # until then the libraries are loaded
        self.world.clear()
        seconds = {}
        for name in ("embed", "caption", "play"):
            begun = time.monotonic()
            process = start(self.world.arguments(name), self.log(name))
            while name == "play" and process.is_alive() and not self._reporting(0, 0):
                time.sleep(POLL_SECONDS)
            seconds["before the report"] = time.monotonic() - begun
            process.join()
            seconds[name] = time.monotonic() - begun
        self._compare("undisturbed")
        return {
            # Half the time: what was finished is kept, so that a later kill meets later work.
            "embedding": Aim("embed", seconds["embed"] / 2),
            "captioning": Aim("caption", seconds["caption"] / 2),
            "rewriting": Aim("play", seconds["before the report"] / 2),
            "writing": Aim("play", WRITING_SECONDS, lambda log, records: _size(self.records) > records),
            "reporting": Aim("play", seconds["play"] - seconds["before the report"], self._reporting),
        }

    def _reporting(self, log: int, records: int) -> bool:
        """Whether the control is played, by this process or, as this process has said, by one before."""
        if _size(self.control) < len(self.reference["--output scrolling.rounds.jsonl"]):
            return False
        with self.log("play").open("rb") as file:
            file.seek(log)
            said = file.read()
        return log == 0 or b"scrolling.rounds.jsonl: going on" in said or b"round 1" in said

    def kill_at_random(self, kills: int) -> None:
        """Plays laps until as many processes have been killed, each stage its share."""
        aims = self.aims()
        quota = {name: kills // len(aims) + (place < kills % len(aims)) for place, name in enumerate(aims)}
        while any(self.killed[name] < quota[name] for name in quota) and time.monotonic() < self.end:
            self.world.clear()
            for command in ("embed", "caption", "play"):
                names = IN_A_ROW * [name for name in aims if aims[name].command == command]
                self.random.shuffle(names)
                for name in sorted(names, key="reporting".__eq__):  # the report comes last
                    if self.killed[name] < quota[name]:
                        self.killed[name] += self._killed_once(name, aims[name])
                self._finish(command)
            self._compare("laps")
            sys.stdout.write(f"{dict(self.killed)}, laps: {dict(self.laps)}\n")
            sys.stdout.flush()

    def _killed_once(self, name: str, aim: Aim) -> bool:
        records, log = _size(self.records), _size(self.log(aim.command))
        delay = self.random.uniform(0, aim.seconds)
        process = start(self.world.arguments(aim.command), self.log(aim.command))
        while process.is_alive() and not aim.begun(log, records):
            time.sleep(POLL_SECONDS)
        process.join(delay)
        if not kill(process):
            return False
        self._note_what_is_left(name, records)
        return True

    def _note_what_is_left(self, name: str, records: int) -> None:
        made = self.world.made
        self.left["unfinished files"] += len([*made.rglob("*.building"), *made.rglob("*.new")])
        self.left["parts of an index"] += any(made.glob("index/.partial/*.json"))
        self.left["journals of the captions"] += any(made.glob("*-journal"))
        grown = _size(self.records) - records
        if name == "writing" and grown > 0 and self.random.random() < 0.5:
            # As if the kill, or a power cut, had come when a part of the batch was on the disk.
            with self.records.open("r+b") as file:
                file.truncate(records + self.random.randrange(grown))
            self.left["batches cut at a random byte"] += 1
        if self.records.is_file() and not self.records.read_bytes().endswith(b"\n"):
            self.left["torn last lines"] += 1

    def _finish(self, command: str) -> None:
        if run(self.world.arguments(command), self.log(command)):
            tail = self.log(command).read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{command} did not end after a kill: {tail}")

    def _compare(self, kind: str, part: str = "") -> None:
        result = self.world.result()
        differing = sorted(
            name
            for name in {*result, *self.reference}
            if name.startswith(part) and result.get(name) != self.reference.get(name)
        )
        self.laps[f"{kind}: the same bytes" if not differing else f"{kind}: DIFFERENT"] += 1
        if differing:
            kept = self.world.home / f"different-{sum(self.laps.values())}"
            shutil.copytree(self.world.made, kept)
            sys.stdout.write(f"differing: {', '.join(differing)}; kept in {kept}\n")

    def kill_at_changes(self, most: int | None) -> None:
        """Kills embedding and experiment before each change to a file that they make."""
        for command in ("embed", "play"):
            self.world.clear()
            prepared = self.world.home / "prepared"
            shutil.rmtree(prepared, ignore_errors=True)
            if command == "play":
                self._finish("embed")
                self._finish("caption")
            shutil.copytree(self.world.made, prepared)
            run(self.world.arguments(command), self.log(command), watched=self.world.made)
            changes = int(self.log(command).with_name(f"{command}.log.changes").read_text())
            count = changes if most is None else min(most, changes)
            done = 0
            for place in self.random.sample(range(count), count):  # so that less time tries as many sorts
                if time.monotonic() > self.end:
                    break
                shutil.rmtree(self.world.made)
                shutil.copytree(prepared, self.world.made)
                die_at = 1 + place * changes // count
                arguments, log = self.world.arguments(command), self.log(command)
                if run(arguments, log, die_at=die_at, watched=self.world.made) != -9:
                    raise RuntimeError(f"{command}: change {die_at} of {changes} never came")
                self.killed[f"{command}, before a change to a file"] += 1
                self._finish(command)
                self._compare(f"changes while {command}", "--index" if command == "embed" else "")
                done += 1
            sys.stdout.write(f"{command}: killed before {done} of {changes} changes\n")
            sys.stdout.flush()

    def report(self) -> None:
        """Prints the counts."""
        for title, counts in (("kills", self.killed), ("they left", self.left), ("laps", self.laps)):
            sys.stdout.write(f"{title}: {json.dumps(counts)}\n")

    @property
    def failed(self) -> bool:
        return any("DIFFERENT" in how for how in self.laps)


def make_tiny_language_model(folder: Path) -> tuple[str, str]:
    """Writes the tests' language model, in a process of its own: the forked ones load no library twice."""
    code = (
        f"from pathlib import Path; from tests.conftest import *; make_language_model(Path({str(folder)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, capture_output=True)
    return "--rewrite-model", str(folder)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="at random moments (default: %(default)s)")
    parser.add_argument("--changes", type=int, help="kills before changes to files; all when not given")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end each part after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--queries", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--short", action="store_true", help="small pictures, a language model of random weights"
    )
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="soak-"))
    played = (*PLAYED, "--queries", str(options.queries), "--rounds", str(options.rounds))
    appending = World(home, play_options=(*WITHOUT_LANGUAGE_MODEL, *played))
    rewriter = make_tiny_language_model(home / "language-model") if options.short else ()
    rewriting = replace(appending, play_options=(*REWRITING, *played, *rewriter))
    make_pictures(appending.pictures, options.pictures, 112 if options.short else 448)
    appending.made.mkdir()
    begun = time.monotonic()
    soak = Soak(rewriting, options.seed, options.minutes, options.short)
    soak.kill_at_random(options.kills)
    soak.report()
    failed = soak.failed
    if not options.short:  # the exact moments are many, and with a language model each takes long
        soak.world.clear()
        soak = Soak(appending, options.seed, options.minutes)
    soak.kill_at_changes(options.changes)
    soak.report()
    failed |= soak.failed
    sys.stdout.write(f"{time.monotonic() - begun:.0f} s, seed {options.seed}\n")
    if not failed:
        shutil.rmtree(home)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
