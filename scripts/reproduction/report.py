"""Writes reproduction.md and its charts from the measurements alone: every number and every sentence that depends on
one is chosen here. Can be run by itself: report.py MEASUREMENTS_DIR OUTPUT_DIR"""
import os
import sys

import charts
import data
from ablations import Ablations
from prose import HOW, MODES, capital, ending, megabytes, number, percent, table, times, wrapped

# Spector & Ré 2023, arXiv 2308.04623, tables 1 and 2; the speed-ups of staged decoding as its text gives them.
PAPER = {"greedy": {"tokens_per_s": {"plain": 150, "speculative": 350, "staged": 475},
                    "speed_up": {"plain": 1, "speculative": 350 / 150, "staged": 3.16},
                    "bytes": {"plain": 1, "speculative": 0.31, "staged": 0.23}},
         "sampled": {"tokens_per_s": {"plain": 150, "speculative": 219, "staged": 298},
                     "speed_up": {"plain": 1, "speculative": 219 / 150, "staged": 1.98},
                     "bytes": {"plain": 1, "speculative": 0.48, "staged": 0.35}}}


class Report(Ablations):
    def __init__(self, records, output):
        self.records, self.output = records, output
        self.setup = data.load(os.path.join(records, "setup.json"))
        self.benches = {}
        for file in sorted(os.listdir(records)):
            if file.endswith(("-greedy.json", "-sampled.json")) and not file.startswith("answers"):
                self.benches[file[:-5]] = data.load(os.path.join(records, file))
        self.answers = {how: data.load(os.path.join(records, f"answers-{how}.json")) for how in HOW}
        penalised = os.path.join(records, "answers-penalised.json")
        self.penalised = data.load(penalised) if os.path.exists(penalised) else []
        self.main = {how: self.benches[f"main-{how}"] for how in HOW}
        self.parts = []

    def say(self, *paragraphs):
        self.parts += [wrapped(p) for p in paragraphs if p.strip()]

    def figure(self, name):
        return os.path.join(self.output, "reproduction", name)

    def detailed(self):
        return "time" in data.mode(self.main["sampled"], "staged")

    # ---- head ----

    def head(self):
        s, bench = self.setup, self.main["sampled"]
        target = bench["target"]
        models = s["models"]
        shape = lambda role: (f"{models[role]['parameters'] / 1e6:.1f} M parameters, {models[role]['layers']} layers "
                              f"of width {models[role]['width']}")
        grown = "" if s["own"] else (f", grown from {models['small target']['file']} "
                                     f"({models['small target']['parameters'] / 1e6:.1f} M)")
        rows = [("machine", f"{s['cpu']}, {bench['threads']} threads, {bench['isa']} kernels; "
                            f"reads {bench['machine']['read_gb_per_s']:.1f} GB/s, multiplies "
                            f"{bench['machine']['peak_tflop_per_s']:.2f} TFLOP/s (measured in the same runs)"),
                ("target", f"{models['target']['file']}: {shape('target')}{grown}; "
                           f"{megabytes(target['weight_bytes'])} of weights"),
                ("draft", f"{models['draft']['file']}: {shape('draft')}, {megabytes(models['draft']['bytes'])}")]
        if "small draft" in models:
            rows.append(("small draft", f"{models['small draft']['file']}: {shape('small draft')}, "
                                        f"{megabytes(models['small draft']['bytes'])}"))
        rows.append(("n-gram file", f"Katz back-off trigram, {megabytes(s['ngram_bytes']['pack'])}"))
        rows.append(("prompts", f"{len(s['prompts'])} of HumanEval's 164, {s['tokens']} tokens written for each, one "
                                f"at a time; comparisons of variants on {len(s['some'])} of them, spread evenly"))
        builds = len(s["programs"])
        rows.append(("measured", f"{' to '.join(dict.fromkeys((s['dates'][0], s['dates'][-1])))}, "
                                 f"{s['seconds'] / 60:.0f} minutes"
                                 + (f", by {builds} builds of the program" if builds > 1 else "")))
        self.say("# Staged speculative decoding: the experiment repeated",
                 "The experiment of Spector & Ré, *Accelerating LLM Inference with Staged Speculative Decoding* "
                 "([arXiv 2308.04623](https://arxiv.org/abs/2308.04623)), with this program and its own models. "
                 "`scripts/reproduce` measures everything on this page and writes the page; the measurements are in "
                 "[measurements/reproduction](measurements/reproduction). Modes take turns prompt by prompt, so that a "
                 "drifting machine hits all alike, and every comparison has plain decoding of its own run beside it.",
                 table(("", ""), rows),
                 self.identical_sentence(), self.short_answer())

    def identical_sentence(self):
        found = data.identity(self.benches)
        self.all_identical = not found["differing"] and not self.strangers()
        if not self.all_identical:
            return (f"**Texts differ**: {', '.join(found['differing'] + self.strangers())}. The promise is broken and "
                    "nothing below counts until that is mended.")
        runs = f"{found['runs']} runs, {found['modes']} modes in all"
        if not found["texts"]:
            return f"**Every text is identical** to plain decoding's ({runs})."
        return (f"**Every text is identical** to plain decoding's: {number(found['texts'])} texts of "
                f"{number(found['answers'])} answers, compared across {runs}.")

    def strangers(self):
        """Answers written by 'run' whose text is not the one 'bench' compared."""
        out = []
        told = [(HOW[how], self.main[how], self.answers[how]) for how in HOW]
        if "penalised-greedy" in self.benches:
            told.append(("greedy with a penalty", self.benches["penalised-greedy"], self.penalised))
        for how, bench, answers in told:
            compared = data.mode(bench, "plain").get("per_prompt", [])
            known = {e["prompt"]: e.get("text_sha256") for e in compared}
            out += [f"'run' on {a['task']} ({how})" for a in answers
                    if known.get(a["prompt"]) not in (None, a["text_sha256"])]
        return out

    def short_answer(self):
        lines = []
        for how in HOW:
            ours = data.speed_up(self.main[how], "staged")
            paper = PAPER[how]["speed_up"]["staged"]
            bytes_ours = data.mode(self.main[how], "staged")["bytes_vs_plain"]
            word = "more than" if ours > 1.02 * paper else "less than" if ours < 0.98 * paper else "as much as"
            lines.append(f"- {HOW[how]}: staged decoding is {times(ours)} plain, {word} the paper's {times(paper)}, "
                         f"and reads {bytes_ours:.2f} of the bytes a token (paper: "
                         f"{PAPER[how]['bytes']['staged']:.2f}).")
        return "\n".join(lines + [self.threat_in_a_line()])

    def threat_in_a_line(self):
        worst = max((data.median([self.repetition(a) for a in self.answers[how]]), how) for how in HOW)
        if worst[0] > 0.5:
            return (f"- Read the {worst[1]} figure with care: in the median answer {percent(worst[0])} of the token "
                    "triples had stood there before, and text that repeats itself is easy to draft.")
        return ("- The answers do not merely repeat themselves: in the median answer "
                f"{percent(worst[0])} of the token triples or fewer had stood there before.")

    def repetition(self, answer):
        return data.repetition(answer["pieces"])

    def blank(self, answer):
        return data.blank(answer["pieces"])

    # ---- 1 ----

    def tables(self, benches, paper=True):
        head = ["sampling", "mode"] + (["paper", "ours", "ours : paper"] if paper else ["of plain's"])
        rows = []
        for how, bench in benches.items():
            for name in MODES:
                ours = data.mode(bench, name)["bytes_vs_plain"]
                theirs = PAPER[how]["bytes"][name]
                rows.append([HOW[how], name] + ([f"{theirs:.2f}", f"{ours:.2f}", f"{ours / theirs:.2f}"] if paper
                                                else [f"{ours:.2f}"]))
        bytes_table = table(head, rows)
        head = ["sampling", "mode"] + (["paper: tokens/s", "speed-up"] if paper else []) + \
            ["ours: tokens/s", "speed-up", "tokens a pass"] + (["speed-up, ours : paper"] if paper else [])
        rows = []
        for how, bench in benches.items():
            for name in MODES:
                m, ours = data.mode(bench, name), data.speed_up(bench, name)
                theirs = PAPER[how]["speed_up"][name]
                rows.append([HOW[how], name] + ([PAPER[how]["tokens_per_s"][name], times(theirs)] if paper else [])
                            + [f"{m['tokens_per_s']:.1f}", times(ours), f"{m['tokens_per_pass']:.2f}"]
                            + ([f"{ours / theirs:.2f}"] if paper else []))
        return bytes_table, table(head, rows)

    def section_tables(self):
        bytes_table, speed_table = self.tables(self.main)
        self.say("## 1. The paper's tables", "**Table 1. Bytes read for a token, plain = 1.** Weights and KV cache of "
                 "all stages. Lower is better.", bytes_table,
                 "**Table 2. Tokens a second.** The paper's GPU and this machine differ; the speed-ups compare.",
                 speed_table, *self.goals(), *self.anatomy(self.main))

    def goals(self):
        """The marks the project set itself, and whether they were met."""
        out = []
        for how, least, aim, most_bytes in (("greedy", 3.16, 4.35, 0.23), ("sampled", 2.5, 3.16, 0.30)):
            ours = data.speed_up(self.main[how], "staged")
            read = data.mode(self.main[how], "staged")["bytes_vs_plain"]
            met = (f"above the aim of {times(aim)}" if ours >= aim else
                   f"above the mark of {times(least)}, below the aim of {times(aim)}" if ours >= least else
                   f"**below the mark of {times(least)}**")
            bytes_met = "within" if read <= most_bytes else "**above**"
            out.append(f"- {HOW[how]}: {times(ours)} is {met}; {read:.2f} of plain's bytes is {bytes_met} the limit of "
                       f"{most_bytes:.2f}.")
        gains = {how: data.mode(self.main[how], "staged")["tokens_per_s"]
                 / data.mode(self.main[how], "speculative")["tokens_per_s"] for how in HOW}
        earned = [how for how in HOW if gains[how] >= 1.1]
        listed = " and ".join(f"{times(gains[how])} ({HOW[how]})" for how in HOW)
        verdict = ("it earns its place (mark: 1.10×) in both" if len(earned) == 2 else
                   f"it earns its place (mark: 1.10×) with {HOW[earned[0]]} only" if earned else
                   "**it stays below the mark of 1.10×**")
        out.append(f"- The second stage brings {listed} over the first alone; {verdict}.")
        return ["Beside the marks this project set itself:", "\n".join(out)]

    def anatomy(self, benches):
        if not self.detailed():
            return []
        head = ["sampling", "mode", "rows a pass", "target ms", "draft ms", "n-gram and text ms", "choice ms",
                "planning ms", "step ms", "tokens a step"]
        rows = []
        for how, bench in benches.items():
            for name in MODES:
                m = data.mode(bench, name)
                ms = data.step_ms(m)
                rows.append([HOW[how], name, f"{data.rows_per_pass(m):.1f}",
                             *(f"{ms.get(k, 0):.2f}" for k in ("target", "draft", "ngram", "choice", "planning")),
                             f"{sum(ms.values()):.2f}", f"{m['tokens_per_pass']:.2f}"])
        return ["**Where a step's time goes.** A step is one pass of the target and the drafting before it; choice is "
                "the target's token drawn from its logits, planning all that is left.",
                table(head, rows), *(self.account(how, bench) for how, bench in benches.items())]

    def account(self, how, bench):
        plain, m, spec = (data.mode(bench, n) for n in ("plain", "staged", "speculative"))
        base, ms, spec_ms = (sum(data.step_ms(plain).values()), data.step_ms(m), data.step_ms(spec))
        target, others = ms["target"] / base, (sum(ms.values()) - ms["target"]) / base
        price = (f"{capital(HOW[how])}: a staged step costs {target:.2f} plain steps for the target's pass over "
                 f"{data.rows_per_pass(m):.1f} rows and {others:.2f} for drafting and the rest, and brings "
                 f"{m['tokens_per_pass']:.2f} tokens: {m['tokens_per_pass']:.2f} / {target + others:.2f} = "
                 f"{times(m['tokens_per_pass'] / (target + others))}.")
        lost = sorted(((target - 1, "rows that are not free"), (others, "drafting")), reverse=True)
        bound = "" if lost[0][0] < 0.15 else (f" Most in the way: {lost[0][1]}; at no cost there, the same "
                                              f"tokens would give "
                                              f"{times(m['tokens_per_pass'] / (target + others - lost[0][0]))}.")
        per_token = [s["stage_passes"]["draft"] / s["tokens"] for s in (spec, m)]
        saved = 1 - per_token[1] / per_token[0] if per_token[0] else 0
        stage = (f" The second stage saves {percent(saved)} of the draft's passes ({per_token[0]:.2f} → "
                 f"{per_token[1]:.2f} a token)" if saved > 0.02 else
                 f" The second stage saves no draft passes ({per_token[0]:.2f} → {per_token[1]:.2f} a token)")
        share = spec_ms["draft"] / sum(spec_ms.values())
        stage += (f". Those passes are {percent(share)} of a speculative step's time: a second stage that made them "
                  f"free would bring {times(1 / (1 - share))} for the same tokens, and no more.")
        return price + bound + stage

    # ---- 2, 3 ----

    def section_roofline(self):
        m = {n: data.mode(self.main["greedy"], n) for n in MODES}
        self.say("## 2. The roofline (the paper's figure 1)",
                 "![Roofline: this machine with our three dots, the RTX 4090 with the "
                 "paper's](reproduction/roofline.svg)",
                 f"*Greedy. Plain decoding sits on the slope where memory is the limit, at "
                 f"{m['plain']['flop_per_byte']:.1f} "
                 f"FLOP a byte; staged does {m['staged']['flop_per_byte']:.0f} FLOP for each byte it reads and "
                 f"{m['staged']['flop_per_s'] / m['plain']['flop_per_s']:.1f} times the arithmetic a second. (Paper: "
                 "from about 1 to about 30 FLOP a byte, and 4 times the arithmetic.)*")

    def middle(self, how):
        """Best, median and worst prompt by speed-up, among those whose answers were kept."""
        kept = {a["prompt"] for a in self.answers[how]}
        order = sorted((ratio, i) for i, (ratio, _) in data.per_prompt(self.main[how], "staged").items())
        if not order:
            return {}
        chosen = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
        return {k: v for k, v in chosen.items() if v[1] in kept}

    def answer(self, how, prompt):
        return next(a for a in self.answers[how] if a["prompt"] == prompt)

    def section_origin(self):
        middle = self.middle("sampled").get("median")
        answer = self.answer("sampled", middle[1]) if middle else self.answers["sampled"][0]
        if not answer["pieces"]:
            return
        charts.answer(self.figure("answer.svg"), ending(answer["prompt_text"]), [tuple(p) for p in answer["pieces"]],
                      f"{answer['task']}, {HOW['sampled']}: every token by who found it")
        target = sum(o == "target" for _, o in answer["pieces"])
        which = "the prompt of median speed-up" if middle else "the first prompt"
        self.say("## 3. Who found which token (the idea of the paper's figure 3)",
                 f"![An answer with each token tinted by its origin](reproduction/answer.svg)",
                 f"*{answer['task']} ({answer['function']}), {which}. The prompt is grey; of the answer's "
                 f"{len(answer['pieces'])} tokens the target had to find {target} itself; the others it only "
                 "had to confirm.* In a terminal: `understudy run --color`, with the same tints.")

    # ---- 5, 6 ----

    def section_own_size(self):
        own = {how: self.benches[f"own-{how}"] for how in HOW if f"own-{how}" in self.benches}
        if not own:
            return
        bytes_table, speed_table = self.tables(own, paper=False)
        target = next(iter(own.values()))["target"]
        best = max((data.speed_up(b, "staged"), how) for how, b in own.items())
        size = self.setup["models"]["draft"]["bytes"] / self.setup["models"]["small target"]["bytes"]
        self.say("## 5. The same models at their own size",
                 f"Without growing, the target has {target['parameters'] / 1e6:.1f} M parameters "
                 f"({megabytes(target['weight_bytes'])}) and its draft's file is {percent(size)} of its size.",
                 "**Bytes read for a token.**", bytes_table, "**Tokens a second.**", speed_table)
        self.say(*self.anatomy(own))
        self.say(f"At best staging gives {times(best[0])} here ({HOW[best[1]]}). " + self.draft_price(own))

    def draft_price(self, own):
        """What a pass of the draft costs beside a plain step, at both sizes."""
        prices = []
        for bench in (own["sampled"], self.main["sampled"]):
            m, plain = data.mode(bench, "speculative"), data.mode(bench, "plain")
            passes = m.get("stage_passes", {}).get("draft", 0)
            if not passes:
                return "The planner leaves the draft alone." if bench is own["sampled"] and "time" in m else ""
            prices.append(m["time"]["draft_s"] / passes / (plain["seconds"] / plain["target_passes"]))
        said = (f"A pass of the draft costs {prices[0]:.2f} of a plain step of this target, against {prices[1]:.2f} at the "
                "size above")
        return said + (": that much less there is to save, and what finds tokens without the draft counts for more."
                       if prices[0] > prices[1] else ": it is no dearer here.")

    def section_threats(self):
        s = self.setup
        lines = []
        if not s["own"]:
            lines.append("- **The target is a grown small model.** `understudy grow` gives it GPT-2 Large's shape and "
                         f"cost and leaves it the function of a {s['models']['small target']['parameters'] / 1e6:.0f} "
                         "M model. Its drafts began as that model made smaller and were distilled from it, and a draft "
                         f"of {s['models']['draft']['parameters'] / 1e6:.0f} M parameters is hardly smaller: it agrees "
                         "more readily than any draft agrees with a real GPT-2 Large. The table of drafts above shows how "
                         "the result moves with agreement"
                         + self.moves() + ".")
        for how in HOW:
            written = [a for a in self.answers[how] if a["pieces"]]
            repeated = data.median([self.repetition(a) for a in written])
            blank = data.median([self.blank(a) for a in written])
            lines.append(f"- **Text, {HOW[how]}.** In the median of {len(written)} answers {percent(repeated)} of the "
                         f"token triples had stood there before and {percent(blank)} of the characters are blank"
                         + (": text like this is far easier to draft than a useful answer."
                            if repeated > 0.5 or blank > 0.6 else "."))
        lines.append(f"- **One machine, shared.** Its reads were measured between "
                     f"{min(b['machine']['read_gb_per_s'] for b in self.benches.values()):.1f} and "
                     f"{max(b['machine']['read_gb_per_s'] for b in self.benches.values()):.1f} GB/s during the runs. "
                     "Ratios of modes that took turns are sound; figures of different tables compare less well.")
        lines.append(f"- **Length.** {s['tokens']} tokens an answer, one seed for the sampled ones; the paper does "
                     "not say how long its answers were.")
        lines.append(f"- **Variants, drafts and n-gram files** were compared on {len(s['some'])} prompts, not all.")
        self.say("## 6. Threats to validity", "\n".join(lines),
                 "The same page for models of your own, for example the real ones as downloaded:",
                 "```\nscripts/reproduce -m gpt2-large/ -d distilgpt2/ -o report/\n```")

    def moves(self):
        parts = []
        for role in ("variants", "small", "random"):
            bench = self.benches.get(f"{role}-sampled")
            if bench:
                parts.append(f"{data.mode(bench, 'staged')['tokens_per_pass']:.2f} tokens a pass give "
                             f"{times(data.speed_up(bench, 'staged'))}")
        return f" ({HOW['sampled']}: {', '.join(parts)})" if len(parts) > 1 else ""

    def write(self):
        self.head()
        self.section_tables()
        self.section_roofline()
        self.section_origin()
        self.section_ablations()
        self.section_own_size()
        self.section_threats()
        path = os.path.join(self.output, "reproduction.md")
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n\n".join(self.parts) + "\n")
        return path, self.all_identical


def write(records, output):
    os.makedirs(os.path.join(output, "reproduction"), exist_ok=True)
    return Report(records, output).write()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: report.py MEASUREMENTS_DIR OUTPUT_DIR")
    sys.exit(0 if write(sys.argv[1], sys.argv[2])[1] else 1)
