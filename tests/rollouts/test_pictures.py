"""Pictures in words: what a grid of greys and its colours say, by pictures whose pixels are known."""

from __future__ import annotations

import io
import shutil

from PIL import Image, ImageDraw

from rollouts.pictures import COLUMNS, ROWS, described, rendered
from sandbox.checkouts import Checkout


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_size_colours_and_greys():
    picture = Image.new("RGB", (400, 160), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, 199, 79), fill="black")
    draw.rectangle((200, 80, 399, 159), fill="red")
    head, *grid = described("a.png", png(picture)).split("\n")
    assert head.startswith("a.png: 400 x 160 pixels; colours: #ffffff 50%, ")
    assert "#000000 25%" in head and "#ff0000 25%" in head
    assert len(grid) == ROWS and grid[: ROWS // 2] == ["@" * (COLUMNS // 2)] * (ROWS // 2)
    red = round(0.299 * 255)
    assert set(grid[-1].strip()) == {" .:-=+*#%@"[(255 - red) * 10 // 256]} and grid[-1].startswith(" " * 20)


def test_transparent_pixels_are_white():
    head, *grid = described("t.png", png(Image.new("RGBA", (10, 10), (0, 0, 0, 0)))).split("\n")
    assert "#ffffff 100%" in head and not "".join(grid)


def test_what_is_no_picture_says_so():
    assert described("x.png", b"not a picture").startswith("x.png: not a picture that can be read")
    assert "not a picture" in described("x.png", png(Image.new("L", (9, 9)))[:30])


def test_rendering_says_what_is_missing(tmp_path):
    (tmp_path / "a.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>')
    with Checkout(str(tmp_path), disk_mb=64) as checkout:
        said = rendered(checkout, "a.svg")
        there = any(shutil.which(program) for program in ("rsvg-convert", "resvg"))
        assert said.startswith("a.svg: 8 x 8 pixels" if there else "a.svg: there is no renderer for .svg files")
        assert rendered(checkout, "a.py") == "a.py: only .svg and .html files can be rendered"
