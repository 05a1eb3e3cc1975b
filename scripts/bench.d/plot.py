"""The ratios as a picture: a dot for the median, a line from the least to the greatest, by workload and side."""

from html import escape

COLOURS = {"zenith": "#1f6feb", "btrfs": "#b35900", "juicefs": "#6e7781"}
LEFT, WIDTH, ROW, TOP = 170, 560, 26, 46
LABEL_SPACE = 60


def write_svg(ratios, path):
    top = max([1.1, *(row["max"] for row in ratios)])
    height = TOP + ROW * len(ratios) + 40
    body = [*axis(top, height), *legend(ratios), *(mark for index, row in enumerate(ratios) for mark in draw(row, index, ratios, top))]
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + LABEL_SPACE}" height="{height}" '
        f'font-family="sans-serif" font-size="13">\n<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n")


def x(value, top):
    return LEFT + WIDTH * value / top


def text(left, y, words, anchor="start", colour="#24292f"):
    return f'<text x="{left:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def line(x1, y1, x2, y2, colour, width=1):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def axis(top, height):
    """A tick each 0.2; the plain filesystem is the strong line at 1."""
    ticks = [tick / 5 for tick in range(int(top * 5) + 1)]
    for tick in ticks:
        yield line(x(tick, top), TOP - 8, x(tick, top), height - 30, "#24292f" if tick == 1 else "#d0d7de", 1.5 if tick == 1 else 1)
        yield text(x(tick, top), height - 12, f"{tick:.1f}", "middle")


def legend(ratios):
    yield text(LEFT, 20, "rate / rate on the plain filesystem, same turn:")
    for index, side in enumerate(dict.fromkeys(row["side"] for row in ratios)):
        yield text(LEFT + 330 + 70 * index, 20, side, colour=COLOURS[side])


def draw(row, index, ratios, top):
    y = TOP + ROW * index + ROW / 2
    colour = COLOURS[row["side"]]
    if index == 0 or ratios[index - 1]["workload"] != row["workload"]:
        yield text(LEFT - 12, y + 4, row["workload"], "end")
    yield line(x(row["min"], top), y, x(row["max"], top), y, colour, 3)
    yield f'<circle cx="{x(row["median"], top):.1f}" cy="{y:.1f}" r="6" fill="{colour}"/>'
    yield text(LEFT + WIDTH + 10, y + 4, f'{row["median"]:.2f}', colour=colour)
