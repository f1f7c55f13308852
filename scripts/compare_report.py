"""Turns the answers scripts/compare collected into a printed table and docs/benchmarks.md. Every figure in them is
computed here from the JSON file; nothing is typed by hand.

Rates are medians over the answers; ratios are medians of ratios within one turn, that is between answers to the same
prompt given moments apart, so that a drifting machine cancels.
"""
from statistics import median

NAMES = {"understudy": "understudy", "llama.cpp": "llama.cpp", "openvino": "OpenVINO GenAI",
         "transformers": "transformers"}
WEIGHTS = {"bf16": "16 bits a weight", "q8_0": "8 bits a weight", "q4_0": "4 bits a weight"}
HEAD = ["engine", "mode", "tokens/s", "of bandwidth", "speed-up", "as plain", "as understudy", "prompt tokens/s"]


def rate(answer):
    return answer["decode_tokens"] / answer["decode_s"] if answer["decode_s"] > 0 else None


def lanes_of(entry):
    """{(engine, mode): {(session, turn): answer}}, understudy first, modes in the order they were run in."""
    lanes = {}
    for answer in entry["answers"]:
        lanes.setdefault((answer["engine"], answer["mode"]), {})[answer["session"], answer["turn"]] = answer
    order = list(NAMES)
    return dict(sorted(lanes.items(), key=lambda item: order.index(item[0][0])))


def paired(over, under):
    """Median of over's rates by under's, each pair of one turn."""
    ratios = [rate(over[turn]) / rate(under[turn]) for turn in over
              if turn in under and rate(over[turn]) and rate(under[turn])]
    return median(ratios) if ratios else None


def alike(lane, other):
    """How many answers have the other's tokens, of how many; and where the earliest difference is."""
    turns = [turn for turn in lane if turn in other]
    first = [next((i for i, (a, b) in enumerate(zip(lane[t]["tokens"], other[t]["tokens"])) if a != b), None)
             for t in turns if lane[t]["tokens"] != other[t]["tokens"]]
    return len(turns) - len(first), len(turns), min((i for i in first if i is not None), default=None)


def in_words(same, total, first=None):
    if not total:
        return "–"
    if same == total:
        return "yes"
    return f"{same} of {total}" + (f", from token {first + 1}" if first is not None else "")


def missing(entry):
    """(engine or mode, why) of what has no row."""
    absent = {engine: "not run" for engine in NAMES if engine not in entry["engines"]}
    return [(NAMES.get(engine, engine), problem) for engine, problem in {**absent, **entry["problems"]}.items()]


def number(value, form="{:.1f}"):
    return "–" if value is None else form.format(value)


def summary(entry):
    lanes = lanes_of(entry)
    ours = lanes.get(("understudy", "plain"), {})
    bandwidth = median(m["read_gb_per_s"] for m in entry["machine"])
    rows = []
    for (engine, mode), lane in lanes.items():
        plain = lanes.get((engine, "plain"), {})
        rates = [r for r in map(rate, lane.values()) if r]
        typical = median(rates) if rates else None
        prompts = [p["tokens"] / p["seconds"] for p in entry["long_prompts"] if p["engine"] == engine]
        same, total, _ = alike(lane, plain)
        share = typical * entry["engines"][engine]["weight_bytes"] / bandwidth / 1e9 if typical else None
        rows.append({
            "engine": engine, "mode": mode, "rate": typical,
            "share": share if mode == "plain" else None,
            "speed_up": paired(lane, plain), "as_plain": in_words(same, total),
            # whoever draws with noise of its own writes a text of its own
            "as_ours": in_words(*alike(lane, ours)) if entry["greedy"] or engine == "understudy" else "–", "answers": len(lane),
            "prompt_rate": median(prompts) if prompts and mode == "plain" else None})
    return rows, bandwidth


def cells(row):
    return [NAMES[row["engine"]], row["mode"], number(row["rate"]),
            f"{100 * row['share']:.0f} %" if row["share"] else "–",
            "1" if row["mode"] == "plain" else number(row["speed_up"], "{:.2f}×"),
            "–" if row["mode"] == "plain" else row["as_plain"],
            "–" if row["engine"] == "understudy" and row["mode"] == "plain" else row["as_ours"],
            number(row["prompt_rate"], "{:.0f}")]


def verdicts(entry):
    """Ours by the best of the others: plain by plain, and our best mode by the best of any mode."""
    lanes = lanes_of(entry)
    if ("understudy", "plain") not in lanes:
        return [f"understudy did not run here: {entry['problems'].get('understudy', 'left out')}"]
    lines = []

    def best(candidates, ours):
        ratios = {lane: paired(lanes[ours], lanes[lane]) for lane in candidates}
        ratios = {lane: ratio for lane, ratio in ratios.items() if ratio}
        return min(ratios.items(), key=lambda item: item[1]) if ratios else None

    peers = [lane for lane in lanes if lane[0] != "understudy"]
    plain = best([lane for lane in peers if lane[1] == "plain"], ("understudy", "plain"))
    if plain:
        lines.append(f"plain: {plain[1]:.2f}× the fastest plain peer ({NAMES[plain[0][0]]})")
    for mode in ("speculative", "staged"):
        if ("understudy", mode) in lanes:
            found = best(peers, ("understudy", mode))
            if found:
                lines.append(f"{mode}: {found[1]:.2f}× the fastest peer in any mode "
                             f"({NAMES[found[0][0]]}, {found[0][1]})")
    return lines


def monotony(entry):
    """A sentence when the texts are mostly one token: such text is too easy to draft for its speed-ups to count."""
    texts = [a["tokens"] for a in entry["answers"] if a["mode"] == "plain"]
    tokens = sum(texts, [])
    most = max(map(tokens.count, set(tokens)), default=0)
    if not tokens or most < len(tokens) / 2:
        return []
    return [f"{100 * most / len(tokens):.0f} % of what was written is one and the same token: too easy to draft for "
            "the speed-ups of speculation to say much"]


def pass_costs(entry):
    """[[engine, cost of a pass by rows…]…] of the latest measurement, each by the engine's own one row."""
    if not entry["passes"]:
        return []
    latest = entry["passes"][-1]
    lines = [["engine"] + [f"{rows} row{'s' * (rows > 1)}" for rows in latest["rows"]]]
    for engine, times in latest["ms"].items():
        lines.append([NAMES[engine]] + [f"{ms:.0f} ms" + (f", {ms / times[0]:.2f}×" if i else "") if ms else "–"
                                        for i, ms in enumerate(times)])
    return lines


def print_aligned(table, left):
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        print("  " + "  ".join(text.ljust(widths[i]) if i in left else text.rjust(widths[i])
                               for i, text in enumerate(line)).rstrip())


def print_tables(result):
    for form, entry in result["formats"].items():
        rows, bandwidth = summary(entry)
        print(f"\n{form}: {WEIGHTS[entry['form']]}, reads at {bandwidth:.1f} GB/s, {entry['date']}")
        print_aligned([HEAD] + [cells(row) for row in rows], left=(0, 1, 5, 6))
        if entry["passes"]:
            print("  one pass over several rows after 128 tokens, by one row:")
            print_aligned(pass_costs(entry), left=(0,))
        for line in verdicts(entry) + monotony(entry):
            print(f"  {line}")
        for engine, problem in missing(entry):
            print(f"  missing: {engine}: {problem}")


INTRODUCTION = """# Beside the peers

Made by `scripts/compare` from what it measured; not edited by hand. The commands at its end make it anew.

Every engine has the same weights, prompts and number of threads, and its own process; they answer in turn, one prompt
in one mode at a time, greedily where nothing else is said. *tokens/s* is decoding alone, the median over the answers; the time until the
first token is in *prompt tokens/s*, of a prompt of {long} tokens. *of bandwidth* is the weights' bytes times
tokens/s by the reads this machine reached in the same run. *speed-up* is by the engine's own plain decoding of the
same prompt moments before or after, the median. *as plain*: are the texts those of the engine's own plain decoding;
*as understudy*: are they those of understudy's plain decoding, and where not, the first token that differs in any
answer (another order of adding in bf16 decides near ties differently; in a format of its own a peer has other
weights).
"""

LEGEND = """
Modes: *look-up N* copies up to N tokens that followed the same words earlier in the text, *draft N* lets the
draft model write N tokens ahead (transformers chooses the number itself), *speculative* and *staged* are understudy's. With a
temperature every engine draws with its own noise, seeded alike for each of its modes.
"""

FORMATS = """
What a format is to whom: understudy and llama.cpp read the same GGUF file{own}. OpenVINO computes in bf16 from weights
its converter stored as fp16, as int8 with a scale for each output, or as symmetric int4 in groups of 32. transformers
has the weights of bf16 alone, and computes in f32 on a processor without AVX-512. A target made by `understudy grow` has added layers that are equal; for OpenVINO, whose converter
stores equal matrices once, and transformers they are made to differ, still adding nothing to speak of.
"""


def write_document(result, path):
    m, s = result["machine"], result["settings"]
    formats = result["formats"]
    longs = {p["tokens"] for entry in formats.values() for p in entry["long_prompts"]}
    own = [entry["form"] for entry in formats.values()
           if entry["engines"].get("llama.cpp", {}).get("file", "").endswith("-llama.gguf")]
    lines = [INTRODUCTION.format(long=" or ".join(map(str, sorted(longs))) or "–")]
    lines.append(f"{m['cores']} cores of {m['processor']} (family {m['family']}, model {m['model']}"
                 f"{', with AMX' if m['amx'] else ''}), {m['memory_gb']} GB, {m['system']}, Linux {m['kernel']}; "
                 f"{s['threads']} threads. Prompts of `{s['prompts']}`. "
                 f"Target `{s['target']}`, draft `{s['draft']}`, n-gram `{s['ngram']}`.")
    for form, entry in formats.items():
        rows, bandwidth = summary(entry)
        answers = max((row["answers"] for row in rows), default=0)
        lines += [f"\n## {form}: {WEIGHTS[entry['form']]}", "",
                  f"{entry['date']}; {entry['prompts']} prompts, {entry['tokens']} tokens each; reads {bandwidth:.1f} GB/s; "
                  f"answers a mode: {answers}.", "",
                  "| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
        lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
        if verdicts(entry):
            lines += ["", "understudy, " + "; ".join(verdicts(entry)) + "."]
        lines += ["", *(f"{line}." for line in monotony(entry))] if monotony(entry) else []
        costs = pass_costs(entry)
        if costs:
            lines += ["", "One pass over several rows after 128 tokens, and by one row:", "",
                      "| " + " | ".join(costs[0]) + " |", "|" + "---|" * len(costs[0])]
            lines += ["| " + " | ".join(line) + " |" for line in costs[1:]]
        absent = [f"{engine}: {problem}" for engine, problem in missing(entry)]
        if absent:
            lines += ["", f"Missing here: {'; '.join(absent)}."]
    lines += [LEGEND.rstrip(), FORMATS.rstrip().format(
        own=f" (in {', '.join(own)} one that llama.cpp's quantizer wrote)" if own else ""), "", "## Versions", "",
        "| engine | version | build |", "|---|---|---|"]
    seen = {}
    for entry in formats.values():
        for engine, facts in entry["engines"].items():
            seen[engine] = f"| {NAMES[engine]} | {facts['version']} | {facts['build']} |"
    lines += seen.values()
    lines += ["", f"understudy at commit {m['commit']}, compiled by {m['compiler']}; Python {m['python']}. Commands:",
              "", "```", *result["commands"], "```"]
    with open(path, "w") as file:
        file.write("\n".join(lines) + "\n")


def write(result, path):
    print_tables(result)
    write_document(result, path)
    print(f"\n{path}")
