"""What every page is made of: one HTML file with no reference to anything outside it; only a sweep's has scripts."""

from __future__ import annotations

import base64
from html import escape

from fedrobust.figures.drawing import DOTS_PER_INCH
from fedrobust.texts import visible


def document(title: str, body: str) -> str:
    """A page with everything that it needs."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped(title)}</title>
<style>{STYLE}</style>
</head>
<body><main>
{body}
</main></body></html>
"""


def escaped(text: object) -> str:
    """A text for a page, inside or in an attribute: nothing in it is a tag, and its control characters are seen."""
    return escape(visible(text, keep="\n"))


def picture(name: str, text: str, file: bytes) -> str:
    """A PNG file inside the page, with its caption."""
    data, width = base64.b64encode(file).decode(), int.from_bytes(file[16:20], "big") * 102 // DOTS_PER_INCH
    image = f'<img src="data:image/png;base64,{data}" width="{width}" alt="{escaped(text)}">'
    return f'<figure id="{name}">{image}<figcaption>{escaped(text)}</figcaption></figure>'


def plural(count: int, word: str) -> str:
    """`3 rounds`, `1 round`, `no rounds`."""
    return f"{count or 'no'} {word}{'' if count == 1 else 's'}"


STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f6f8; color: #1d2733; overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 0 0 16px; }
.facts, .note, figcaption, summary, th, .card span, .settings td:first-child { color: #56616d; }
.facts { margin: 0 0 24px; }
.note, figcaption { font-size: 14px; margin: 10px 0 0; max-width: 76ch; }
.cards { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); }
.card, section { background: #fff; border: 1px solid #e2e6ea; border-radius: 10px; padding: 12px 14px; }
.card b { display: block; font-size: 25px; font-weight: 650; font-variant-numeric: tabular-nums; }
.card span { font-size: 13px; }
.verdict { font-size: 17px; margin: 20px 0 24px; }
section { padding: 22px 24px; margin: 0 0 20px; }
figure { margin: 0 0 28px; }
figure:last-child { margin-bottom: 0; }
figure img { display: block; max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px 6px 0; border-bottom: 1px solid #edf0f2; text-align: left; vertical-align: bottom; }
td { white-space: nowrap; }
th { overflow-wrap: normal; }
.caught { color: #00734f; font-weight: 600; } .caught::before { content: "✓ "; }
.attacker td:nth-child(-n+2), .attack b, .missed, .wrongly { color: #b84f00; font-weight: 650; }
.missed::before { content: "✗ "; } .wrongly::before { content: "! "; }
.settings td { white-space: normal; min-width: 12em; }
summary { cursor: pointer; }
@media (max-width: 640px) { main { padding: 20px 10px 40px; } section { padding: 16px 14px; } }
"""
