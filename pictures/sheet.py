"""Pictures to look at: in columns under their titles, or inside a page."""

import base64
import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

GAP, HEAD = 6, 26  # pixels between pictures, and above them


def data_address(picture: Image.Image, kind: str = "PNG", **options: int) -> str:
    """Return an address that is the picture itself, for pages without other files."""
    file = io.BytesIO()
    picture.save(file, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Draw pictures of one size next to each other, without a gap."""
    strip = Image.new("RGB", (sum(picture.width for picture in pictures), pictures[0].height))
    for place, picture in enumerate(pictures):
        strip.paste(picture.convert("RGB"), (place * picture.width, 0))
    return strip


def contact_sheet(columns: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Draw columns of a title and pictures; all pictures get the size of the first."""
    first = columns[0][1]
    width, height = first[0].width + GAP, first[0].height + GAP
    sheet = Image.new("RGB", (len(columns) * width + GAP, len(first) * height + HEAD), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, pictures) in enumerate(columns):
        left = GAP + column * width
        draw.text((left, 5), title, "black", _font_for(title, width))
        for row, picture in enumerate(pictures):
            picture = picture.resize(first[0].size).convert("RGB")
            sheet.paste(picture, (left, HEAD + row * height))
    return sheet


def _font_for(title: str, width: int) -> ImageFont.FreeTypeFont:
    """Return the largest font in which a title fits a width in pixels, or else the smallest."""
    fonts = [ImageFont.load_default(size) for size in (13, 11, 9, 7)]
    return next((font for font in fonts if font.getlength(title) < width), fonts[-1])
