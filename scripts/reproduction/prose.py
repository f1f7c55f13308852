"""Numbers, tables and paragraphs as the report writes them."""
import re
import textwrap

HOW = {"greedy": "greedy", "sampled": "top-k 50, T = 1"}
MODES = ("plain", "speculative", "staged")


def table(head, rows):
    """Columns of figures are set to the right."""
    figures = lambda i: all(re.fullmatch(r"([\d.,]+( %|×)?)?", str(row[i])) for row in rows)
    align = "|".join("---:" if i and figures(i) else "---" for i in range(len(head)))
    return "\n".join(["| " + " | ".join(head) + " |", f"|{align}|",
                      *("| " + " | ".join(str(c) for c in row) + " |" for row in rows)])


def wrapped(paragraph):
    """Prose in lines of 120 columns, so that a changed number is a small difference; tables, code and lists as such."""
    if paragraph.startswith(("|", "```", "#", "![")):
        return paragraph
    lines = paragraph.split("\n")
    return "\n".join(textwrap.fill(line, 120, subsequent_indent="  " if line.startswith("- ") else "",
                                   break_long_words=False, break_on_hyphens=False) for line in lines)


def capital(text):
    return text[:1].upper() + text[1:]


def percent(share):
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.1f} %"


def times(ratio):
    return f"{ratio:.2f}×"


def number(count):
    return f"{count:,}"


def megabytes(size):
    return f"{size / 1e6:.1f} MB" if size < 1e8 else f"{size / 1e6:.0f} MB"


def ending(text, lines=12):
    """The last lines of a text, with a mark where there were more."""
    all_lines = text.rstrip("\n").split("\n")
    newlines = text[len(text.rstrip("\n")):]
    return ("…\n" if len(all_lines) > lines else "") + "\n".join(all_lines[-lines:]) + newlines
