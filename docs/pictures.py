"""The pictures of the README as SVG text. What is drawn comes from `update.py`.

Colours follow the reader's light or dark scheme by a media query inside the file, which browsers apply to
embedded pictures too; there is no background.
"""

import math
from xml.sax.saxutils import escape

STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
  .title { font-size: 16px; font-weight: 600 }
  .small { font-size: 11.5px; fill: #59636e }
  .strong { font-weight: 600 }
  .end { text-anchor: end } .middle { text-anchor: middle }
  .grid { stroke: #d1d9e0; stroke-width: 1 }
  .span { stroke: #d1d9e0; stroke-width: 2 }
  .ours { fill: #0969da; stroke: #0969da } .peer { fill: #bc4c00; stroke: #bc4c00 } .burn { fill: #6e7781; stroke: #6e7781 }
  text.ours, text.peer, text.burn { stroke: none }
  polyline { fill: none !important; stroke-width: 2.5; stroke-linejoin: round }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .small { fill: #9198a1 } .grid, .span { stroke: #3d444d }
    .ours { fill: #58a6ff; stroke: #58a6ff } .peer { fill: #f0883e; stroke: #f0883e } .burn { fill: #9198a1; stroke: #9198a1 }
  }"""


def text(x, y, words, classes=""):
    return f'  <text x="{x:.1f}" y="{y:.1f}" class="{classes}">{escape(words)}</text>'


def line(x1, y1, x2, y2, classes):
    return f'  <line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{classes}"/>'


def dot(x, y, classes, radius=5):
    return f'  <circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="{classes}"/>'


def picture(width, height, name, parts):
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-label="{escape(name)}">\n  <style>{STYLE}\n  </style>')
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def speed(rows, captions):
    """Times in multiples of ours, one row a shape: `(label, PyTorch's, burn-nn's)`, on a logarithmic axis."""
    left, right, top, step = 150, 800, 98, 30
    ticks = [1, 2, 4, 8, 16, 32]
    bottom = top + step * len(rows)
    x = lambda multiple: left + (right - left) * math.log2(multiple) / math.log2(ticks[-1])
    title = "Batch norm in training (forward + backward): time, in multiples of ours"
    parts = [text(16, 26, title, "title")]
    legend = [(528, "ours", "burn-batchnorm"), (664, "peer", "PyTorch"), (748, "burn", "burn-nn")]
    for at, classes, name in legend:
        parts += [dot(at, 52, classes), text(at + 10, 56.5, name)]
    parts.append(text(16, 56.5, "less is better; the axis is logarithmic", "small"))
    for tick in ticks:
        parts.append(line(x(tick), top - 12, x(tick), bottom, "grid"))
        parts.append(text(x(tick), bottom + 16, f"{tick}×", "small middle"))
    for index, (label, peer, burn) in enumerate(rows):
        y = top + step * index
        strong = "strong" if index == 0 else ""
        parts.append(text(left - 16, y + 4.5, label, f"end {strong}"))
        parts.append(line(x(1), y, x(max(peer, burn)), y, "span"))
        parts.append(dot(x(1), y, "ours", 6 if index == 0 else 5))
        for multiple, classes in [(peer, "peer"), (burn, "burn")]:
            parts.append(dot(x(multiple), y, classes, 6 if index == 0 else 5))
            parts.append(text(x(multiple), y - 8, f"{multiple:.1f}", f"{classes} middle {strong}"))
    for index, caption in enumerate(captions):
        parts.append(text(16, bottom + 42 + 17 * index, caption, "small"))
    return picture(840, bottom + 36 + 17 * len(captions), title, parts)


def article(panels, captions):
    """Validation accuracy by epoch, one panel a learning rate: `(rate, with the layer, without)`.

    A course that lies below the axis is told in words.
    """
    title = "The article's network with and without batch norm: accuracy by epoch"
    left, top, size, gap, height = 44, 78, 178, 18, 170
    low, high = 0.70, 0.90
    y = lambda share: top + height * (high - share) / (high - low)
    parts = [text(16, 26, title, "title")]
    for at, classes, name in [(690, "ours", "with"), (755, "burn", "without")]:
        parts += [dot(at, 21, classes), text(at + 10, 25.5, name)]
    for index, (rate, *courses) in enumerate(panels):
        start = left + index * (size + gap)
        x = lambda epoch: start + 6 + (size - 12) * epoch / (len(courses[0]) - 1)
        parts.append(text(start + size / 2, top - 14, f"learning rate {rate:g}", "middle strong"))
        for share in [0.70, 0.75, 0.80, 0.85, 0.90]:
            parts.append(line(start, y(share), start + size, y(share), "grid"))
            if index == 0:
                parts.append(text(left - 6, y(share) + 4, f"{share:.0%}", "small end"))
        for epoch in [1, 5, 10]:
            parts.append(text(x(epoch - 1), top + height + 16, str(epoch), "small middle"))
        for course, classes in reversed(list(zip(courses, ["ours", "burn"]))):
            if max(course) < low:
                words = f"without: {course[0]:.0%} to {course[-1]:.0%}, below"
                parts.append(text(start + size / 2, y(low) - 8, words, "small burn middle"))
                continue
            points = " ".join(f"{x(epoch):.1f},{y(share):.1f}" for epoch, share in enumerate(course))
            parts.append(f'  <polyline points="{points}" class="{classes}"/>')
    bottom = top + height
    for index, caption in enumerate(captions):
        parts.append(text(16, bottom + 42 + 17 * index, caption, "small"))
    return picture(840, bottom + 36 + 17 * len(captions), title, parts)
