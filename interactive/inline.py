"""Pictures inside a terminal that can show them: kitty's protocol and iTerm2's.

Sources: kitty's terminal graphics protocol (sw.kovidgoyal.net/kitty/graphics-protocol), which Ghostty and
WezTerm speak too, and iTerm2's inline images protocol (iterm2.com/documentation-images.html).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from index.decode import open_image

SIDE_PIXELS = 320
ROWS = 8
CHUNK = 4096  # kitty reads no longer ones

Protocol = Literal["kitty", "iterm2", "none"]


def protocol_of(environment: Mapping[str, str]) -> Protocol:
    """Says how the terminal takes pictures, by the variables that it sets.

    A multiplexer between us and the terminal would swallow them, so there are none inside tmux and screen.
    """
    program = environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or environment.get("TERM", "").startswith("screen"):
        return "none"
    if "KITTY_WINDOW_ID" in environment or environment.get("TERM") == "xterm-kitty" or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    return "none"


def inline_picture(path: Path, protocol: Protocol) -> str:
    """Returns what shows a picture `ROWS` lines high; empty for a terminal that cannot.

    Raises:
        BrokenImage: (a ValueError) If the file gives no picture.
    """
    if protocol == "none":
        return ""
    picture = open_image(path)
    picture.thumbnail((SIDE_PIXELS, SIDE_PIXELS))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    if protocol == "iterm2":
        size = len(stream.getvalue())
        return f"\x1b]1337;File=inline=1;size={size};height={ROWS};preserveAspectRatio=1:{data}\x07\n"
    chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    parts = []
    for number, chunk in enumerate(chunks):
        how = f"a=T,f=100,r={ROWS}," if not number else ""
        parts.append(f"\x1b_G{how}q=2,m={int(number + 1 < len(chunks))};{chunk}\x1b\\")
    return "".join(parts) + "\n"
