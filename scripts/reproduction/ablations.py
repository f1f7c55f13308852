"""The report's fourth section: what each part of the design is worth, and how the figures spread."""
import charts
import data
from prose import HOW, MODES, capital, megabytes, number, percent, table, times

WHAT = {"plain": "plain", "speculative": "speculative: the draft model drafts",
        "staged": "staged: the draft model, drafted for by n-gram file and text so far",
        "chain": "staged, but a chain of 4", "tree": "staged, but one fixed tree",
        "no-context": "staged without the text so far", "context": "the text so far alone, no draft, no file",
        "likeliest": "staged, stages rank by likelihood, without noise",
        "independent": "staged, stages rank with noise of their own"}


class Ablations:
    """Used by Report, which has the measurements."""

    def section_ablations(self):
        self.say("## 4. What the paper leaves out")
        if self.detailed():
            self.stages()
            self.depth()
            self.tree_sizes()
        self.variants()
        self.penalty()
        self.drafts()
        self.ngrams()
        self.spread()

    def penalty(self):
        """Greedy decoding of text that cannot repeat itself for ever."""
        bench = self.benches.get("penalised-greedy")
        if not bench or not self.penalised:
            return
        rows = [(name, f"{m['tokens_per_s']:.1f}", times(data.speed_up(bench, name)), f"{m['tokens_per_pass']:.2f}",
                 f"{m['bytes_vs_plain']:.2f}") for name, m in ((n, data.mode(bench, n)) for n in MODES)]
        prompts = {a["prompt"] for a in self.penalised}
        without = [a for a in self.answers["greedy"] if a["prompt"] in prompts]
        share = lambda of, answers: percent(data.median([of(a) for a in answers if a["pieces"]]))
        self.say(f"**Greedy, with a frequency penalty of {bench['sampling']['frequency_penalty']:g}** "
                 f"({len(bench['prompts'])} prompts). A token's logit falls by that for each time it stands before, so that "
                 "no token goes on for ever; the text is as determined as greedy text is, and drafts rank with the same "
                 "penalty.",
                 table(("mode", "tokens/s", "speed-up", "tokens a pass", "bytes"), rows),
                 f"In the median of these answers {share(self.repetition, self.penalised)} of the token triples had stood "
                 f"there before and {share(self.blank, self.penalised)} of the characters are blank; without the penalty "
                 f"it is {share(self.repetition, without)} and {share(self.blank, without)}.")

    def stages(self):
        rows = []
        for how in HOW:
            m = data.mode(self.main[how], "staged")
            for stage in data.STAGES:
                ranks = data.by_rank(m, stage)
                places = max((p for _, p, _ in ranks), default=0)
                if places:
                    hits = [percent(a / places) for _, _, a in ranks[:4]]
                    rows.append([HOW[how], data.STAGE_NAMES[stage], number(places), *hits, *[""] * (4 - len(hits)),
                                 percent(sum(a for _, _, a in ranks) / places),
                                 percent(m["accepted"][stage] / m["tokens"])])
        if rows:
            self.say("**Acceptance by stage and rank** (staged). Of the places where the target chose a token and a "
                     "stage had candidates: how often its first, second, … candidate was the choice. Last: the share "
                     "of all tokens that the stage was first to find.",
                     table(("sampling", "stage", "places", "first", "second", "third", "fourth", "any",
                            "of all tokens"), rows))

    def depth(self):
        curves = [(f"{name}, {HOW[how]}", data.reach(data.mode(self.main[how], name)), colour, dash)
                  for how, colour in (("greedy", charts.BLUE), ("sampled", charts.RED))
                  for name, dash in (("staged", 1), ("speculative", 2))]
        charts.depth(self.figure("depth.svg"), curves)
        halves = {how: next((d for d, share in data.reach(data.mode(self.main[how], "staged")) if share < 0.5), None)
                  for how in HOW}
        told = " and ".join(f"{halves[how] - 1} ({HOW[how]})" for how in HOW if halves[how] and halves[how] > 1)
        self.say("**Acceptance by depth.**", "![How far the accepted path of a pass reaches](reproduction/depth.svg)",
                 "*A curve's height at depth d: the share of target passes that accept at least d candidates in a row."
                 + (f" Half of all staged passes accept {told} or more.*" if told else "*"))

    def tree_sizes(self):
        sets, told = [], []
        for how, colour in (("greedy", charts.BLUE), ("sampled", charts.RED)):
            m = data.mode(self.main[how], "staged")
            passes = sum(r["passes"] for r in m["rows"])
            shares = {r["rows"]: r["passes"] / passes for r in m["rows"]}
            sets.append((HOW[how], shares, colour))
            told.append(f"{data.rows_per_pass(m):.1f} on average {HOW[how]}, the most frequent "
                        f"{max(shares, key=shares.get)}")
        charts.rows(self.figure("rows.svg"), sets)
        self.say("**Tree sizes the planner chose** (staged).",
                 "![Histogram of rows of a target pass](reproduction/rows.svg)", f"*Rows of a pass: "
                                                                                 f"{'; '.join(told)}.*")

    def variants(self):
        told = {}
        for how in HOW:
            bench = self.benches.get(f"variants-{how}")
            if not bench or len(bench["modes"]) <= 3:
                continue
            names = [m["mode"] for m in bench["modes"]]
            gains = told[how] = {n: data.speed_up(bench, n) for n in names}
            rows = []
            for name in names:
                m = data.mode(bench, name)
                rows.append([WHAT.get(name, name), f"{m['tokens_per_s']:.1f}", times(gains[name]),
                             f"{m['tokens_per_pass']:.2f}",
                             *([f"{data.rows_per_pass(m):.1f}", f"{m['stage_passes']['draft'] / m['tokens']:.2f}"]
                               if "rows" in m else ["", ""]), f"{m['bytes_vs_plain']:.2f}"])
            self.say(f"**Variants, {HOW[how]}** ({len(bench['prompts'])} prompts, one run, modes taking turns).",
                     table(("what drafts", "tokens/s", "speed-up", "tokens a pass", "rows a pass",
                            "draft passes a token", "bytes"), rows))
        self.lessons(told)

    def lessons(self, told):
        """What each part of the design is worth: staged against staged without it."""
        parts = (("chain", "a chain of 4 (what the planned tree brings)"), ("tree", "one fixed tree (what planning "
                                                                                    "brings)"),
                 ("speculative", "one stage (what the second stage and the text so far bring)"),
                 ("no-context", "no text so far"), ("context", "the text so far alone (what draft and file bring)"),
                 ("likeliest", "ranking by likelihood, without noise"),
                 ("independent", "noise of each stage's own (what sharing it brings)"))
        rows = [(text, *(times(told[how]["staged"] / told[how][name]) if name in told[how] else "" for how in told))
                for name, text in parts if any(name in gains for gains in told.values())]
        if not rows:
            return
        self.say("**What each part is worth.** Staged decoding's speed over that of the same with something else in "
                 "place; below 1.00× the part costs more than it brings.",
                 table(("staged against …", *(HOW[how] for how in told)), rows), self.noise())

    def noise(self):
        bench = self.benches.get("variants-sampled")
        if not bench or not data.mode(bench, "independent"):
            return ""
        a, b = (data.mode(bench, n)["tokens_per_pass"] for n in ("staged", "independent"))
        more = a / b - 1
        return (f"With shared noise a sampled pass brings {a:.2f} tokens, with independent noise {b:.2f}: drawing the "
                "randomness first, and drafting for it, "
                + (f"brings {percent(more)} more tokens a pass." if more > 0.02 else "brings nothing here."))

    def drafts(self):
        rows = []
        for how in HOW:
            for name, role in (("variants", "draft"), ("small", "small draft"), ("random", "random draft")):
                bench = self.benches.get(f"{name}-{how}")
                if not bench:
                    continue
                model = self.setup["models"][role]
                spec, staged = data.mode(bench, "speculative"), data.mode(bench, "staged")
                rows.append([HOW[how], f"{role}, {model['parameters'] / 1e6:.1f} M", f"{spec['tokens_per_pass']:.2f}",
                             times(data.speed_up(bench, "speculative")), f"{staged['tokens_per_pass']:.2f}",
                             times(data.speed_up(bench, "staged"))])
        draft_table = table(("sampling", "draft", "speculative: tokens a pass", "speed-up", "staged: tokens a pass",
                                  "speed-up"), rows)
        told = []
        for how in HOW:
            big, small = self.benches.get(f"variants-{how}"), self.benches.get(f"small-{how}")
            if big and small:
                a, b = data.speed_up(big, "staged"), data.speed_up(small, "staged")
                told.append(f"{HOW[how]}, staged, the {'larger' if a > b else 'smaller'} draft wins, "
                            f"{times(max(a, b))} against "
                            f"{times(min(a, b))}")
        useless = [data.speed_up(self.benches[f"random-{how}"], "speculative") for how in HOW
                   if f"random-{how}" in self.benches]
        if useless:
            told.append(f"a useless draft leaves {times(min(useless))} of plain decoding's speed at worst"
                        + (" (mark: 0.97×)" if min(useless) >= 0.97 else ", **below the mark of 0.97×**"))
        self.say("**Drafts, good and bad.** The random draft was never trained; it shows what a useless draft costs. "
                 "The n-gram file is the first draft's in all.",
                 draft_table, capital("; ".join(told)) + "." if told else "")

    def ngrams(self):
        sizes = self.setup["ngram_bytes"]
        rows, brought = [], []
        for role, bench in (("none", self.benches.get("variants-sampled")), ("1", self.benches.get("ngram-1-sampled")),
                            ("5", self.benches.get("ngram-5-sampled")), ("pack", self.benches.get("variants-sampled"))):
            if not bench:
                continue
            m = data.mode(bench, "speculative" if role == "none" else "staged")
            what = {"none": "none, and no text so far", "pack": f"the one used above, {megabytes(sizes['pack'])}"}.get(
                role, f"{number(self.setup['ngram_tokens'])} tokens, {megabytes(sizes.get(role, 0))}")
            if role != "none":
                brought.append(m["tokens_per_pass"])
            rows.append([what, f"{m['tokens_per_pass']:.2f}", times(data.speed_up(bench, m["mode"]))])
        if len(brought) < 2:
            return
        apart = max(brought) / min(brought) - 1
        self.say(f"**The n-gram file's size** ({HOW['sampled']}, staged). Each file was fitted on text the draft "
                 "wrote at T = 1.5 and pruned to its size.", table(("n-gram file", "tokens a pass", "speed-up"), rows),
                 f"The files' tokens a pass lie {percent(apart)} apart"
                 + (": its size hardly matters." if apart < 0.05 else "."))

    def spread(self):
        sets, rows = [], []
        for how, colour in (("greedy", charts.BLUE), ("sampled", charts.RED)):
            values = data.per_prompt(self.main[how], "staged")
            if not values:
                continue
            sets.append((HOW[how], [ratio for ratio, _ in values.values()], colour))
            for which, (ratio, prompt) in self.middle(how).items():
                answer = self.answer(how, prompt)
                found = {o: sum(p[1] == o for p in answer["pieces"]) for o in ("draft", "ngram", "context")}
                total = max(1, len(answer["pieces"]))
                rows.append([HOW[how], which, f"{answer['task'].split('/')[-1]} ({answer['function']})", times(ratio),
                             f"{values[prompt][1]:.2f}", *(percent(found[o] / total) for o in found),
                             percent(self.repetition(answer)), percent(self.blank(answer))])
        if not sets:
            return
        charts.prompts(self.figure("prompts.svg"), sets)
        self.say("**Spread over prompts** (staged against plain).",
                 "![Speed-up of each prompt, sorted](reproduction/prompts.svg)",
                 "*One bar a prompt; the line is plain decoding. "
                 + " ".join(self.below(label, values) for label, values, _ in sets) + "*",
                 table(("sampling", "prompt", "HumanEval", "speed-up", "tokens a pass", "draft", "n-gram", "context",
                        "repeated", "blank"), rows),
                 "Draft, n-gram, context: share of the answer's tokens each found. Repeated: share of its token "
                 "triples that stood in it before. Blank: share of its characters that are blank space.",
                 " ".join(filter(None, map(self.why, HOW))))

    def below(self, label, values):
        slow = sum(v < 1 for v in values)
        word = "no prompt is slower than plain" if slow == 0 else f"{slow} of {len(values)} slower than plain"
        return (f"{capital(label)}: {times(min(values))} to {times(max(values))}, median "
                f"{times(data.median(values))}; {word}.")

    def why(self, how):
        values = data.per_prompt(self.main[how], "staged")
        known = [a for a in self.answers[how] if a["prompt"] in values and a["pieces"]]
        of_pass = data.rank_correlation([v[0] for v in values.values()], [v[1] for v in values.values()])
        of_text = data.rank_correlation([values[a["prompt"]][0] for a in known], [self.repetition(a) for a in known])
        if of_pass is None or of_text is None:
            return ""
        strong = lambda r: "strongly" if abs(r) >= 0.7 else "moderately" if abs(r) >= 0.4 else "hardly"
        return (f"{capital(HOW[how])}: a prompt's speed-up goes {strong(of_pass)} with its tokens a pass (rank "
                f"correlation {of_pass:.2f} over {len(values)} prompts) and {strong(of_text)} with how much its answer "
                f"repeats itself ({of_text:.2f} over {len(known)}).")
