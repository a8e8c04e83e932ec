"""Kills the experiment at random and at exact moments, lets it go on, and compares: ``make soak``.

A small experiment (embedding, captions, rounds with rewriting, report) is played once undisturbed. Then it
is played again and again from an empty folder, its commands killed with SIGKILL at random moments and given
again until they end. Then it is killed before every single change that it makes to a file, one after the
other. All that a lap has made must be the same bytes, and nothing else may be there.

Exit status: 0 when all laps ended with the same bytes, 1 when one did not.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.faults_world import PLAYED, SHARD_SIZE, World, kill, make_pictures, run, start, work_done

COMMANDS = ("embed", "caption", "play")
CAPTIONS_AT_ONCE = 8
IN_A_ROW = 3  # kills of each command of a lap, at most


class Campaign:
    """Kills in one world.

    Attributes:
        world: Where it is played.
        reference: What an undisturbed run makes.
        killed: Kills that ended a process, by command and kind.
        laps: How many ended, and how.
    """

    def __init__(self, world: World, seed: int = 0, minutes: float = float("inf")) -> None:
        self.world = world
        self.killed: Counter[str] = Counter()
        self.laps: Counter[str] = Counter()
        self.random = random.Random(seed)
        self.seconds: dict[str, float] = {}
        world.clear()
        self._finish("embed")  # until then the libraries are loaded
        world.clear()
        (world.home / "work").unlink(missing_ok=True)
        for name in COMMANDS:
            begun = time.monotonic()
            self._finish(name)
            self.seconds[name] = time.monotonic() - begun
        self.reference = world.result()
        self.work = work_done(world.home / "work")  # of a lap without a kill
        self.twice: Counter[str] = Counter()
        self.end = time.monotonic() + 60 * minutes

    def kill_at_random(self, kills: int) -> None:
        """Plays laps until as many processes have been killed."""
        while self.killed.total() < kills and time.monotonic() < self.end:
            self.world.clear()
            (self.world.home / "work").unlink(missing_ok=True)
            before = self.killed.total()
            for name in COMMANDS:
                for _ in range(IN_A_ROW):
                    if not self._killed_once(name):
                        break
                self._finish(name)
            self._compare("killed at random")
            self._count_twice(self.killed.total() - before)

    def _count_twice(self, kills: int) -> None:
        """Counts what was embedded or captioned again; a kill may cost the part or batch under way."""
        done = work_done(self.world.home / "work")
        for what, at_once in (("embedded", SHARD_SIZE), ("captioned", CAPTIONS_AT_ONCE)):
            again = done[what] - self.work[what]
            self.twice[what] += again
            if again > kills * at_once:
                self.laps[f"DIFFERENT: {again} {what} again after {kills} kills"] += 1

    def _killed_once(self, name: str) -> bool:
        """Starts a command and kills it after a while; says whether it had not ended before."""
        records = self.world.place("--output") / "rounds.jsonl"
        before = records.stat().st_size if records.exists() else 0
        process = start(self.world.arguments(name), self.log(name))
        process.join(self.random.uniform(0, self.seconds[name]))
        if not kill(process):
            return False
        self.killed[f"{name}, at random"] += 1
        if records.exists() and self.random.random() < 0.5:
            # As if the kill, or a power cut, had come when a part of the batch was on the disk.
            with records.open("r+b") as file:
                file.truncate(self.random.randint(before, records.stat().st_size))
        return True

    def kill_at_changes(self, most: int | None = None) -> None:
        """Kills embedding and experiment before each change to a file; of each before `most` at random."""
        prepared = self.world.home / "prepared"
        for name in ("embed", "play"):
            place = COMMANDS.index(name)
            self.world.clear()
            for before in COMMANDS[:place]:
                self._finish(before)
            shutil.rmtree(prepared, ignore_errors=True)
            shutil.copytree(self.world.made, prepared)
            run(self.world.arguments(name), self.log(name), watched=self.world.made)
            changes = int(self.log(name).with_name(f"{name}.log.changes").read_text())
            for die_at in self.random.sample(range(1, changes + 1), min(most or changes, changes)):
                if time.monotonic() > self.end:
                    break
                shutil.rmtree(self.world.made)
                shutil.copytree(prepared, self.world.made)
                status = run(
                    self.world.arguments(name), self.log(name), die_at=die_at, watched=self.world.made
                )
                if status != -9:
                    raise RuntimeError(f"{name}: change {die_at} of {changes} never came")
                self.killed[f"{name}, before a change to a file"] += 1
                for after in COMMANDS[place:]:
                    self._finish(after)
                self._compare(f"killed before a change, {name}")

    def log(self, name: str) -> Path:
        return self.world.home / f"{name}.log"

    def _finish(self, name: str) -> None:
        if run(self.world.arguments(name), self.log(name)):
            tail = self.log(name).read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{name} did not end after a kill: {tail}")

    def _compare(self, kind: str) -> None:
        result = self.world.result()
        names = {*result, *self.reference}
        differing = sorted(name for name in names if result.get(name) != self.reference.get(name))
        self.laps[f"{kind}: {'DIFFERENT' if differing else 'the same bytes'}"] += 1
        if differing:
            kept = self.world.home / f"different-{self.laps.total()}"
            shutil.copytree(self.world.made, kept)
            sys.stdout.write(f"differing: {', '.join(differing)}; kept in {kept}\n")
        sys.stdout.write(f"{dict(self.killed)}, laps: {dict(self.laps)}, again: {dict(self.twice)}\n")
        sys.stdout.flush()

    @property
    def failed(self) -> bool:
        return any("DIFFERENT" in how for how in self.laps)


def main() -> int:
    from tests.conftest import make_language_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="at random moments (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rewriter", help="a language model; one of random weights when not given")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="soak-"))
    model = options.rewriter or make_language_model(home / "model")
    rewriter = ("--strategy", "rewrite-anchored", "--rewrite-model", model)
    world = World(home, play_options=(*PLAYED, *rewriter))
    make_pictures(world.pictures, 96, side=112)
    campaign = Campaign(world, options.seed, options.minutes)
    campaign.kill_at_random(options.kills)
    campaign.kill_at_changes()
    if not campaign.failed:
        shutil.rmtree(home)
    return int(campaign.failed)


if __name__ == "__main__":
    sys.exit(main())
