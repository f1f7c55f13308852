"""What the measurements hold: reading, joining and comparing the JSON files of 'understudy bench' and 'run'.

A long bench is measured in parts of a few prompts, so that a stopped experiment loses little; merge() joins the parts
into one file of the same form. Everything the report computes from such a file is computed here."""
import json
import os
import statistics

STAGES = ("draft", "ngram", "context")
STAGE_NAMES = {"draft": "draft model", "ngram": "n-gram file", "context": "text so far", "target": "target"}


def load(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def save(path, value):
    """JSON with one line for each flat object, so that a changed measurement is a readable difference."""
    temporary = path + ".tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(_text(value, 0) + "\n")
    os.replace(temporary, path)


def _text(value, depth):
    flat = json.dumps(value, ensure_ascii=False)
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(c, (dict, list)) for c in children) or len(flat) < 100:
        return flat
    pad = " " * (depth + 1)
    if isinstance(value, dict):
        lines = [f"{pad}{json.dumps(k)}: {_text(v, depth + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(lines) + "\n" + " " * depth + "}"
    return "[\n" + ",\n".join(pad + _text(v, depth + 1) for v in value) + "\n" + " " * depth + "]"


# ---- joining the parts of one bench ----

def merge(parts, prompts):
    """parts: bench files in order; prompts: the numbers of the prompts each was given."""
    first = parts[0]
    target = dict(first["target"], path=os.path.basename(first["target"]["path"].rstrip("/")))
    machine = {k: statistics.median(p["machine"][k] for p in parts) for k in first["machine"]}
    names = [m["mode"] for m in first["modes"]]
    modes = [_merge_mode([mode(p, name) for p in parts], prompts) for name in names]
    for m in modes:
        m["bytes_vs_plain"] = m["bytes_per_token"] / modes[0]["bytes_per_token"] if names[0] == "plain" else None
    return {"isa": first["isa"], "threads": first["threads"], "machine": machine, "target": target,
            "sampling": first["sampling"], "prompts": [i for group in prompts for i in group], "modes": modes,
            "outputs_identical": all(p["outputs_identical"] for p in parts)}


def _merge_mode(parts, prompts):
    tokens = sum(p["tokens"] for p in parts)
    seconds = sum(p["seconds"] for p in parts)
    passes = sum(p["target_passes"] for p in parts)
    read = sum(p["bytes_per_token"] * p["tokens"] for p in parts)
    flop = sum(p["flop_per_s"] * p["seconds"] for p in parts)
    out = {"mode": parts[0]["mode"], "tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds,
           "target_passes": passes, "tokens_per_pass": tokens / passes, "bytes_per_token": read / tokens,
           "bytes_vs_plain": None, "flop_per_s": flop / seconds, "flop_per_byte": flop / read,
           "accepted": _sums([p["accepted"] for p in parts])}
    if all("time" in p for p in parts):
        out["time"] = _sums([p["time"] for p in parts])
        out["stage_passes"] = _sums([p["stage_passes"] for p in parts])
        out["depth"] = _joined(parts, "depth", ("depth",))
        out["ranks"] = _joined(parts, "ranks", ("stage", "rank"))
        out["rows"] = _joined(parts, "rows", ("rows",))
    if all("per_prompt" in p for p in parts):
        out["per_prompt"] = [dict(entry, prompt=number) for p, group in zip(parts, prompts)
                             for entry, number in zip(p["per_prompt"], group)]
    return out


def _sums(items):
    return {key: sum(item.get(key, 0) for item in items) for key in items[0]}


def _joined(parts, field, keys):
    rows = {}
    for entry in (entry for p in parts for entry in p[field]):
        row = rows.setdefault(tuple(entry[k] for k in keys), {k: entry[k] for k in keys})
        for k, v in entry.items():
            if k not in keys:
                row[k] = row.get(k, 0) + v
    return [rows[k] for k in sorted(rows)]


# ---- figures of one bench ----

def mode(bench, name):
    return next((m for m in bench["modes"] if m["mode"] == name), None)


def speed_up(bench, name):
    return mode(bench, name)["tokens_per_s"] / mode(bench, "plain")["tokens_per_s"]


def rows_per_pass(m):
    passes = sum(r["passes"] for r in m["rows"])
    return sum(r["rows"] * r["passes"] for r in m["rows"]) / passes if passes else 0


def step_ms(m):
    """Where the time of one step (one target pass) goes, in ms. The prompt is not part of a step."""
    return {k[:-2]: 1e3 * v / m["target_passes"] for k, v in m["time"].items() if k != "prompt_s"}


def reach(m):
    """Share of target passes whose accepted path is at least d tokens long: [(d, share)] from d = 1."""
    return [(e["depth"], e["accepted"] / m["target_passes"]) for e in sorted(m["depth"], key=lambda e: e["depth"])
            if e["depth"] > 0 and e["proposed"] > 0]


def by_rank(m, stage):
    return sorted(((e["rank"], e["proposed"], e["accepted"]) for e in m["ranks"] if e["stage"] == stage))


def per_prompt(bench, name):
    """{prompt: (speed-up, tokens a pass)} of a mode against plain decoding of the same prompt."""
    plain = {e["prompt"]: e for e in mode(bench, "plain").get("per_prompt", [])}
    out = {}
    for e in (mode(bench, name) or {}).get("per_prompt", []):
        base = plain.get(e["prompt"])
        if base and e["tokens"] and base["tokens"] and e["seconds"] > 0:
            ratio = (base["seconds"] / base["tokens"]) / (e["seconds"] / e["tokens"])
            out[e["prompt"]] = (ratio, e["tokens"] / max(1, e["target_passes"]))
    return out


# ---- texts ----

def repetition(pieces):
    """Share of an answer's token triples that stood in it before; pieces: [(text, origin), ...]."""
    texts = [text for text, _ in pieces]
    triples = list(zip(texts, texts[1:], texts[2:]))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def blank(pieces):
    """Share of an answer's characters that are blank space."""
    text = "".join(text for text, _ in pieces)
    return sum(c.isspace() for c in text) / len(text) if text else 0.0


def identity(benches):
    """Are all texts of one prompt the same in all runs and modes? Returns (runs, modes, texts compared, differing)."""
    texts, count = {}, 0
    for name, bench in benches.items():
        kind = (bench["target"]["path"], bench["target"]["weight_bytes"], json.dumps(bench["sampling"], sort_keys=True))
        for m in bench["modes"]:
            for e in m.get("per_prompt", []):
                texts.setdefault((kind, e["prompt"]), set()).add(e.get("text_sha256"))
                count += 1
    differing = [f"prompt {prompt} of {kind[0]}" for (kind, prompt), seen in texts.items() if len(seen) > 1]
    differing += [f"run {name}" for name, bench in benches.items() if not bench["outputs_identical"]]
    return {"runs": len(benches), "modes": sum(len(b["modes"]) for b in benches.values()), "texts": count,
            "answers": len(texts), "differing": differing}


# ---- statistics ----

def median(values):
    return statistics.median(values) if values else 0.0


def rank_correlation(xs, ys):
    """Spearman's, ties by mean rank; None where there are too few pairs to speak of."""
    if len(xs) < 5:
        return None
    a, b = _mean_ranks(xs), _mean_ranks(ys)
    try:
        return statistics.correlation(a, b)
    except statistics.StatisticsError:
        return None


def _mean_ranks(values):
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    i = 0
    while i < len(order):
        j = i
        while j + 1 < len(order) and values[order[j + 1]] == values[order[i]]:
            j += 1
        for k in range(i, j + 1):
            ranks[order[k]] = (i + j) / 2
        i = j + 1
    return ranks
