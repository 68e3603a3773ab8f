"""What the converter's pictures have in common: SVG that follows the reader's light or dark colours."""

from collections.abc import Iterable
from html import escape


def document(title: str, size: tuple[int, int], style: str, drawn: Iterable[str]) -> str:
    """A picture of a width and a height on its ground, which `style` gives its colours."""
    width, height = size
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{style}</style>",
        f'<rect class="ground" width="{width}" height="{height}"/>',
    ]
    return "\n".join([*lines, *drawn, "</svg>", ""])


def label(x: float, y: float, anchor: str, words: str) -> str:
    """Words at a place; anchor: the class that says which end of them stands there."""
    return f'<text class="ink {anchor}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'
