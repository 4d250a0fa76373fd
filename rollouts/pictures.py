"""Pictures in words, for models that read text alone: size, dominant colours, a grid of greys. Needs Pillow."""

from __future__ import annotations

import base64
import io
from collections import Counter
from posixpath import splitext

from sandbox.checkout import Checkout

COLUMNS, ROWS = 40, 16  # of the grid
COLOURS = 4
GREYS = " .:-=+*#%@"  # from white to black
STEP = 32  # of a colour's channel: nearer ones count as the same
RENDER_S, PNG_KB = 60.0, 8192
MOST_PIXELS = 16_000_000
# By the file's suffix: renderers, each a shell command from "$1" to ../picture.png; the first one that is there counts.
RENDERERS = {
    ".svg": ('rsvg-convert -o ../picture.png -- "$1"', 'resvg -- "$1" ../picture.png'),
    ".html": ('chromium --headless --no-sandbox --disable-gpu --screenshot=../picture.png "$1"',),
}


def described(name: str, data: bytes) -> str:
    """The picture in words; why not, where it cannot be read or Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError:
        return f"{name}: pictures are described by Pillow, which is not installed (pip install pillow)"
    try:
        with Image.open(io.BytesIO(data)) as file:
            if file.width * file.height > MOST_PIXELS:
                return f"{name}: {file.width} x {file.height} pixels, too many to describe"
            whole = file.convert("RGBA")
    except Exception as error:  # of any type: Pillow's readers raise many, and a model may have made the file
        return f"{name}: not a picture that can be read ({error})"
    flat = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")
    small = flat.resize((COLUMNS, ROWS), Image.Resampling.BOX)
    pixels = list(flat.resize((4 * COLUMNS, 4 * ROWS), Image.Resampling.NEAREST).tobytes())
    near = Counter(tuple(c // STEP for c in pixels[i : i + 3]) for i in range(0, len(pixels), 3))
    total = sum(near.values())
    colours = ", ".join(f"{_hex(colour)} {count / total:.0%}" for colour, count in near.most_common(COLOURS))
    greys = small.convert("L").tobytes()
    grid = ["".join(_grey(g) for g in greys[r * COLUMNS : (r + 1) * COLUMNS]).rstrip() for r in range(ROWS)]
    head = f"{name}: {whole.width} x {whole.height} pixels; colours: {colours}; {COLUMNS} x {ROWS} greys, @ is black:"
    return "\n".join([head, *grid])


def _hex(colour: tuple[int, ...]) -> str:
    """The middle of a colour's cell; the ends of a channel stand for black and full."""
    most = 256 // STEP - 1
    middle = (0 if c == 0 else 255 if c == most else c * STEP + STEP // 2 for c in colour)
    return "#" + "".join(f"{c:02x}" for c in middle)


def _grey(value: int) -> str:
    return GREYS[(255 - value) * len(GREYS) // 256]


def rendered(checkout: Checkout, path: str) -> str:
    """A file of the tree as a picture in words; where no renderer is installed, that."""
    suffix = splitext(path)[1].lower()
    if suffix not in RENDERERS:
        return f"{path}: only {' and '.join(RENDERERS)} files can be rendered"
    for command in RENDERERS[suffix]:
        program = command.split()[0]
        if checkout.run(["sh", "-c", f"command -v {program}"]).exit_code:
            continue
        ran = checkout.run(["sh", "-c", f"rm -f ../picture.png; {command}", "sh", path], RENDER_S)
        found = checkout.run(["base64", "-w0", "../picture.png"], RENDER_S, PNG_KB)
        if found.exit_code != 0:
            return f"{path}: {program} gave no picture: {ran.output.strip()[-300:]}"
        return described(path, base64.b64decode(found.output))
    return f"{path}: there is no renderer for {suffix} files on this machine"
