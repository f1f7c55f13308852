"""The report's pictures: three charts drawn by gnuplot, and an answer with its tokens tinted, written as SVG here."""
import html
import os
import subprocess

import data

BLUE, RED, GREEN, GREY = "#1f5fa8", "#c8443c", "#3c8f4f", "#8a8a8a"
TINTS = {"draft": "#cdebc9", "ngram": "#bfe6f0", "context": "#fbe9a6", "target": "#ffffff"}


def gnuplot(path, width, height, lines):
    """Draws into a file beside `path`, which replaces it when it is whole."""
    temporary = path + ".tmp"
    script = ["set encoding utf8",
              f"set terminal svg size {width},{height} noenhanced font 'Helvetica,Arial,sans-serif,13' "
              "background '#ffffff'",
              f"set output '{temporary}'", "set border 3 lc rgb '#444444'",
              "set tics nomirror out scale 0.6, 0.3 tc rgb '#444444'",
              "set grid ytics lt 1 lc rgb '#e6e6e6'", "set key above maxrows 2 samplen 2 tc rgb '#222222'", *lines,
              "unset output"]
    done = subprocess.run(["gnuplot", "-"], input="\n".join(script) + "\n", text=True, capture_output=True)
    if done.returncode != 0 or not os.path.exists(temporary) or not os.path.getsize(temporary):
        raise SystemExit(f"reproduce: {path}: gnuplot failed: {done.stderr.strip()[:300]}")
    os.replace(temporary, path)


def block(name, rows):
    return [f"${name} << EOD", *(" ".join(f"{v:g}" for v in row) for row in rows), "EOD"]


def depth(path, curves):
    """curves: [(label, [(depth, share)], colour, dash)]; how far the accepted path of a pass reaches."""
    lines, plots = [], []
    for i, (label, points, colour, dash) in enumerate(curves):
        points = [(d, 100 * share) for d, share in points if share >= 0.005]
        if not points:
            continue
        lines += block(f"c{i}", [(0, 100)] + points)
        plots.append(f"$c{i} with linespoints pt 7 ps 0.4 lw 2 dt {dash} lc rgb '{colour}' title '{label}'")
    gnuplot(path, 760, 380, lines + [
        "set xlabel 'depth: accepted candidates in a row' tc rgb '#444444'",
        "set ylabel 'share of target passes (%)' tc rgb '#444444'", "set yrange [0:100]", "set xrange [0:*]",
        "plot " + ", ".join(plots)])


def prompts(path, sets):
    """sets: [(label, [speed-up, ...], colour)]; one bar a prompt, each set sorted on its own."""
    lines, plots = [], []
    widest = max(len(values) for _, values, _ in sets)
    for i, (label, values, colour) in enumerate(sets):
        lines += block(f"s{i}", [(k + 0.5, v) for k, v in enumerate(sorted(values, reverse=True))])
    lines += ["set multiplot", "set xrange [0:%d]" % widest, "unset key",
              "set boxwidth 0.8", "set style fill solid noborder", "set bmargin 3.5",
              "set xlabel 'prompts, fastest first' tc rgb '#444444'"]
    for i, (label, values, colour) in enumerate(sets):
        left, right = (i + 0.12 * (i == 0) + 0.06) / len(sets), (i + 1) / len(sets) - 0.02
        lines += [f"set lmargin at screen {left:.4f}", f"set rmargin at screen {right:.4f}",
                  "set ylabel 'times plain decoding' tc rgb '#444444'" if i == 0 else "unset ylabel",
                  f"set title '{label}' tc rgb '#222222'", f"set yrange [0:{1.1 * max(values):g}]",
                  f"plot $s{i} with boxes lc rgb '{colour}', 1 with lines lw 1.5 lc rgb '#222222'"]
    gnuplot(path, 900, 340, lines + ["unset multiplot"])


def rows(path, sets):
    """sets: [(label, {rows: share of passes}, colour)]; how many rows the target's passes had."""
    most = max(max(values) for _, values, _ in sets)
    lines = []
    for i, (_, values, _) in enumerate(sets):
        lines += block(f"r{i}", [(r, 100 * share) for r, share in sorted(values.items())])
    lines += ["set xlabel 'rows of a target pass (1: nothing proposed)' tc rgb '#444444'", f"set xrange [0:{most + 1}]",
              "set ylabel 'share of passes (%)' tc rgb '#444444'", "set yrange [0:*]",
              "set style fill solid noborder", "set boxwidth 0.4"]
    plots = [f"$r{i} using ($1{'-+'[i]}0.2):2 with boxes lc rgb '{colour}' title '{label}'"
             for i, (label, _, colour) in enumerate(sets)]
    gnuplot(path, 760, 320, lines + ["plot " + ", ".join(plots)])


# ---- an answer, tinted ----

CELL, LINE, COLUMNS = 7.83, 19, 96  # of a 13 px monospaced face; textLength holds every viewer to it


class Page:
    def __init__(self):
        self.row = self.column = 0
        self.boxes, self.texts = [], []

    def cell(self, count, tint, text=None, colour="#222222"):
        x, y = 16 + self.column * CELL, 64 + self.row * LINE
        if tint:
            self.boxes.append(f'<rect x="{x:.2f}" y="{y:.1f}" width="{count * CELL - 0.8:.2f}" height="{LINE - 3}" '
                              f'rx="2" fill="{tint}" stroke="#d8d8d8" stroke-width="0.5"/>')
        if text and text.strip():
            lead = len(text) - len(text.lstrip(" "))
            body = text.strip(" ")
            self.texts.append(f'<text x="{x + lead * CELL:.2f}" y="{y + 12:.1f}" fill="{colour}" '
                              f'textLength="{len(body) * CELL:.2f}" lengthAdjust="spacingAndGlyphs">'
                              f'{html.escape(body)}</text>')
        self.column += count

    def add(self, text, tint, colour="#222222"):
        """A token never breaks inside, except where it holds a line's end."""
        for i, part in enumerate(text.expandtabs(4).split("\n")):
            if i:
                self.cell(1, tint, "↵" if tint else None, "#aaaaaa")
                self.row, self.column = self.row + 1, 0
            if self.column + len(part) > COLUMNS and self.column:
                self.row, self.column = self.row + 1, 0
            part = "".join(c if c.isprintable() else "·" for c in part[:COLUMNS])
            if part:
                self.cell(len(part), tint, part, colour)


def answer(path, prompt, tokens, title):
    page = Page()
    page.add(prompt, None, "#999999")
    for text, origin in tokens:
        page.add(text, TINTS.get(origin, "#ffffff"))
    counts = {o: sum(origin == o for _, origin in tokens) for o in ("context", "ngram", "draft", "target")}
    width, height = 32 + COLUMNS * CELL, 64 + (page.row + 1) * LINE + 12
    head, x = [], 16
    for origin, count in counts.items():
        label = f"{data.STAGE_NAMES[origin]}: {count} of {len(tokens)}"
        head.append(f'<rect x="{x}" y="30" width="14" height="14" rx="2" fill="{TINTS[origin]}" stroke="#bbbbbb"/>'
                    f'<text x="{x + 20}" y="42" fill="#222222">{html.escape(label)}</text>')
        x += 34 + len(label) * CELL
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
                   f'width="{width:.0f}" height="{height:.0f}" '
                   'font-family="DejaVu Sans Mono,Menlo,Consolas,monospace" font-size="13">\n'
                   f'<title>{html.escape(title)}</title>\n<rect width="100%" height="100%" fill="#ffffff"/>\n'
                   f'<text x="16" y="20" fill="#222222">{html.escape(title)}</text>\n'
                   + "\n".join(head + page.boxes + page.texts) + "\n</svg>\n")
