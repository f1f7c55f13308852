"""Runs the experiment step by step. Each step leaves a file in build/reproduction/KEY/, and a step whose file is there
is not run again: a stopped experiment goes on where it was. KEY stands for the models and the numbers chosen, so other
models or numbers start afresh. When all files are there they are joined, and the report is written from them."""
import argparse
import datetime
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import time

import data
import report

PROGRAM = os.environ.get("UNDERSTUDY", "build/understudy")
PROMPTS = "data/humaneval/HumanEval.jsonl.gz"
LARGE = "build/pycode-gpt2-large.gguf"
PART = 20  # prompts measured in one go
SAMPLING = {"greedy": [], "sampled": ["--temperature", "1", "--top-k", "50"]}
# Greedy text of a young model repeats itself; with this it cannot go on for ever.
PENALTY = ["--frequency-penalty", "0.1"]
# Without noise there is none to share, and 'likeliest' and 'independent' are what staged does anyway.
VARIANTS = {"greedy": "chain,tree,no-context,context",
            "sampled": "chain,tree,no-context,context,likeliest,independent"}


def parse():
    p = argparse.ArgumentParser(
        prog="scripts/reproduce",
        description="Repeats the experiment of the staged speculative decoding paper and writes what came out to "
                    "docs/reproduction.md. Stopped, the same command goes on where it was.",
        epilog="With models of your own: scripts/reproduce -m gpt2-large/ -d distilgpt2/ -o report/")
    p.add_argument("--quick", action="store_true", help="20 prompts, 5 of them for comparing variants; half an hour "
                   "instead of three")
    p.add_argument("--prompts", type=int, metavar="N", help="how many of HumanEval's 164 prompts, evenly spread [164]")
    p.add_argument("--tokens", type=int, metavar="N", default=128, help="tokens to write for each prompt [128]")
    p.add_argument("--some", type=int, metavar="N", help="prompts for the comparison of variants and drafts [20]")
    p.add_argument("-m", "--model", metavar="TARGET", help="a target of your own: a GGUF file or a Hugging Face "
                   "directory [models/pycode-target.gguf grown to GPT-2 Large]")
    p.add_argument("-d", "--draft", metavar="DRAFT", help="its draft model [models/pycode-draft.gguf]")
    p.add_argument("--small-draft", metavar="DRAFT", help="a second, smaller one [models/pycode-draft-small.gguf]")
    p.add_argument("--ngram", metavar="FILE", help="an n-gram file the draft wrote [models/pycode.ngram; with -d one "
                   "is fitted]")
    p.add_argument("--ngram-tokens", type=int, metavar="N",
                   help="tokens the draft writes for each n-gram file that is fitted here [1000000; --quick 200000]")
    p.add_argument("-o", "--output", metavar="DIR", help="where the report goes [docs; with -m build/own-report]")
    p.add_argument("--folder", help=argparse.SUPPRESS)
    p.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    a = p.parse_args()
    if (a.model is None) != (a.draft is None):
        p.error("-m and -d belong together: a target and a draft of the same vocabulary")
    for name in ("prompts", "tokens", "some", "ngram_tokens"):
        if getattr(a, name) is not None and getattr(a, name) < 1:
            p.error(f"--{name.replace('_', '-')}: found {getattr(a, name)}, expected at least 1")
    a.prompts = min(a.prompts or (20 if a.quick else 164), 164)
    a.some = min(a.some or (5 if a.quick else 20), a.prompts)
    a.ngram_tokens = a.ngram_tokens or (200000 if a.quick else 1000000)
    for name in ("model", "draft", "small_draft", "ngram", "output"):  # given relative to where the user stands
        if a.folder and getattr(a, name):
            setattr(a, name, os.path.relpath(os.path.join(a.folder, getattr(a, name))))
        if name != "output" and getattr(a, name) and not os.path.exists(getattr(a, name)):
            p.error(f"{getattr(a, name)}: no such file or directory")
    if a.check:
        sys.exit(0)
    return a


def spread(items, count):
    return [items[i * len(items) // count] for i in range(count)]


def stamp(path):
    """What tells a model apart: its file, or those in its directory."""
    info = os.stat(path)
    if os.path.isdir(path):
        return [path, [stamp(os.path.join(path, name)) for name in sorted(os.listdir(path))]]
    return [path, info.st_size, info.st_mtime_ns]


class Experiment:
    def __init__(self, a):
        self.a = a
        self.own = a.model is not None
        pick = lambda given, usual: given or (None if self.own or not os.path.exists(usual) else usual)
        self.small_target = pick(None, "models/pycode-target.gguf")
        self.target = a.model or LARGE
        self.draft = pick(a.draft, "models/pycode-draft.gguf")
        self.small_draft = pick(a.small_draft, "models/pycode-draft-small.gguf")
        self.ngram = pick(a.ngram, "models/pycode.ngram")
        self.fits_ngram = self.draft is not None and self.ngram is None
        self.output = a.output or ("build/own-report" if self.own else "docs")
        with gzip.open(PROMPTS, "rt", encoding="utf-8") as file:
            self.tasks = [json.loads(line) for line in file]
        self.prompts = spread(range(len(self.tasks)), a.prompts)
        self.some = spread(self.prompts, a.some)
        self.penalised = spread(self.prompts, min(a.prompts, 3 * a.some))
        files = [self.small_target, a.model, self.draft, self.small_draft, self.ngram]
        config = [[stamp(f) for f in files if f], self.prompts, self.some, a.tokens, a.ngram_tokens]
        self.key = hashlib.sha256(json.dumps(config).encode()).hexdigest()[:12]
        self.state = os.path.join("build/reproduction", self.key)
        os.makedirs(self.state, exist_ok=True)
        self.log = os.path.join(self.state, "steps.json")
        self.taken = data.load(self.log) if os.path.exists(self.log) else []
        self.rate = None

    def path(self, name):
        return os.path.join(self.state, name)

    # ---- what there is to do: (name, file it leaves, expected seconds, how) ----

    def steps(self):
        out = []
        if not self.own:
            out.append(("grow", LARGE, 20, self.grow))
        out.append(("probe", self.path("probe.json"), 15, self.probe))
        if self.fits_ngram:
            self.ngram = self.path("draft.ngram")
            out.append(("n-gram file", self.ngram, self.a.ngram_tokens / 5e3, lambda: self.fit(self.ngram, 20)))
        out.append(("random draft", self.path("random.gguf"), 2, self.make_random))
        for how in SAMPLING:
            out += self.bench_steps("main", how, self.prompts, self.target, self.draft, self.ngram, 2)
        for how in SAMPLING:
            count = 2 + VARIANTS[how].count(",") + 1
            out += self.bench_steps("variants", how, self.some, self.target, self.draft, self.ngram, count,
                                    ["--variants", VARIANTS[how]])
        out += self.bench_steps("penalised", "greedy", self.penalised, self.target, self.draft, self.ngram, 2, PENALTY)
        for how in SAMPLING:
            if self.small_draft:
                out += self.bench_steps("small", how, self.some, self.target, self.small_draft, self.ngram, 2)
            out += self.bench_steps("random", how, self.some, self.target, self.path("random.gguf"), self.ngram, 5)
        for mb in (1, 5):
            file = self.path(f"ngram-{mb}.ngram")
            out.append((f"n-gram file of {mb} MB", file, self.a.ngram_tokens / 5e3,
                        lambda file=file, mb=mb: self.fit(file, mb)))
            out += self.bench_steps(f"ngram-{mb}", "sampled", self.some, self.target, self.draft, file, 2)
        for how in SAMPLING if self.small_target else ():
            out += self.bench_steps("own", how, self.prompts, self.small_target, self.draft, self.ngram, 2, speed=8)
        for how in SAMPLING:
            out.append((f"answers, {how}", self.path(f"answers-{how}.json"), self.answer_seconds(len(self.some) + 3),
                        lambda how=how: self.answers(f"answers-{how}", self.told(how), SAMPLING[how])))
        out.append(("answers, penalised", self.path("answers-penalised.json"), self.answer_seconds(len(self.penalised)),
                    lambda: self.answers("answers-penalised", self.penalised, PENALTY)))
        out.append(("roofline", self.path("roofline.svg"), 5, self.roofline))
        return out

    def bench_steps(self, name, how, prompts, target, draft, ngram, modes, further=(), speed=1):
        groups = [prompts[i:i + PART] for i in range(0, len(prompts), PART)]
        out = []
        for number, group in enumerate(groups):
            part = f"{name}-{how}-{number + 1}"
            title = f"{name}, {how}" + (f", part {number + 1} of {len(groups)}" if len(groups) > 1 else "")
            seconds = 6 + 1.5 * modes + (len(group) * self.a.tokens * (1 / self.rate + modes / (3 * self.rate)) / speed
                           if self.rate else 0)
            run = lambda part=part, group=group: self.bench(part, how, group, target, draft, ngram, further)
            out.append((title, self.path(part + ".json"), seconds, run))
        return out

    def answer_seconds(self, count):
        return count * (5 + (self.a.tokens / (3 * self.rate) if self.rate else 0))

    # ---- doing it ----

    def call(self, *arguments, output=None):
        command = [PROGRAM, *[str(a) for a in arguments]]
        done = subprocess.run(command, stdout=output or subprocess.DEVNULL)
        return done.returncode

    def must(self, *arguments, output=None):
        if self.call(*arguments, output=output) != 0:
            sys.exit(f"reproduce: '{' '.join(str(a) for a in arguments)}' failed; the same command goes on from here")

    def grow(self):
        self.must("grow", "-q", "--like", "gpt2-large", self.small_target, "-o", LARGE)

    def probe(self):
        self.must("bench", "-q", "-m", self.target, "--prompts", PROMPTS, "--limit", 1, "-n", 16,
                  "--json", self.path("probe.json"))

    def fit(self, path, mb):
        self.must("ngram", "-q", "-m", self.draft, "--tokens", self.a.ngram_tokens, "--temperature", 1.5, "--seed", 1,
                  "--max-mb", mb, "-o", path)

    def make_random(self):
        """One step at a rate of nearly nothing leaves a model as it was drawn."""
        text = self.path("corpus.txt")
        with open(text, "w", encoding="utf-8") as file:
            file.write("\n".join(task["prompt"] for task in self.tasks))
        self.must("train", "-q", "--corpus", text, "--tokenizer", self.target, "--width", 256, "--layers", 4,
                  "--heads", 4, "--steps", 1, "--batch", 256, "--rate", "1e-9", "-o", self.path("random.gguf"))

    def bench(self, part, how, group, target, draft, ngram, further):
        lines = self.path(part + ".jsonl")
        with open(lines, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"prompt": self.tasks[i]["prompt"]}) + "\n" for i in group)
        code = self.call("bench", "-m", target, "-d", draft, "--ngram", ngram, "--prompts", lines,
                         "-n", self.a.tokens, *SAMPLING[how], *further, "--json", self.path(part + ".json"))
        if code != 0 and not os.path.exists(self.path(part + ".json")):  # texts that differ leave a file that says so
            sys.exit(f"reproduce: bench '{part}' failed; the same command goes on from here")

    def told(self, how):
        """The prompts whose answers are kept: some, and the best, median and worst."""
        bench = self.joined(f"main-{how}")
        order = sorted((ratio, i) for i, (ratio, _) in data.per_prompt(bench, "staged").items())
        ends = [order[-1][1], order[len(order) // 2][1], order[0][1]] if order else []
        return sorted(set(self.some) | set(ends))

    def answers(self, name, prompts, sampling):
        """The texts themselves, with who found each token."""
        out = []
        for i in prompts:
            with open(self.path("prompt.txt"), "w", encoding="utf-8") as file:
                file.write(self.tasks[i]["prompt"])
            self.must("run", "-q", "-m", self.target, "-d", self.draft, "--ngram", self.ngram, "-n", self.a.tokens,
                      *sampling, "-f", self.path("prompt.txt"), "--json", self.path("run.json"))
            run = data.load(self.path("run.json"))
            out.append({"prompt": i, "task": self.tasks[i]["task_id"], "function": self.tasks[i]["entry_point"],
                        "prompt_text": self.tasks[i]["prompt"], "text_sha256": run["modes"][0]["text_sha256"],
                        "pieces": [[p["text"], p["from"]] for p in run.get("pieces", [])]})
        data.save(self.path(name + ".json"), out)

    def roofline(self):
        data.save(self.path("main-greedy.json"), self.joined("main-greedy"))
        self.must("roofline", "-q", "--bench", self.path("main-greedy.json"), "--device", "rtx4090",
                  "-o", self.path("roofline.svg"))

    # ---- the whole ----

    def joined(self, name):
        prompts = self.prompts if re.match("main|own", name) else self.penalised if name.startswith("penalised") \
            else self.some
        groups = [prompts[i:i + PART] for i in range(0, len(prompts), PART)]
        return data.merge([data.load(self.path(f"{name}-{n + 1}.json")) for n in range(len(groups))], groups)

    def run(self):
        probe = self.path("probe.json")
        said = False
        while True:
            if os.path.exists(probe) and not self.rate:
                self.rate = data.mode(data.load(probe), "plain")["tokens_per_s"]
            todo = [s for s in self.steps() if not os.path.exists(s[1]) or self.outdated(s[1])]
            if not todo:
                return
            name, file, seconds, how = todo[0]
            left = sum(s[2] for s in todo)
            if self.rate and not said:
                print(f"reproduce: {len(todo)} steps, about {minutes(left * self.pace())}; {self.state}/ keeps what "
                      "is measured", flush=True)
                said = True
            ahead = f", about {minutes(left * self.pace())} left" if self.rate else ""
            print(f"reproduce: {name}{ahead}", flush=True)
            start = time.monotonic()
            how()
            self.taken.append({"step": name, "seconds": round(time.monotonic() - start, 1), "expected": round(seconds),
                               "program": digest(PROGRAM)[:12], "date": datetime.date.today().isoformat()})
            data.save(self.log, self.taken)

    def outdated(self, file):
        return file == LARGE and os.path.getmtime(LARGE) < os.path.getmtime(self.small_target)

    def pace(self):
        """How much longer steps have taken than expected."""
        done = [t for t in self.taken if t["expected"] >= 20]
        expected = sum(t["expected"] for t in done)
        return sum(t["seconds"] for t in done) / expected if expected else 1.0

    def model(self, path):
        shape = subprocess.run([PROGRAM, "inspect", path], capture_output=True, text=True).stdout
        find = lambda pattern: next(iter(re.findall(pattern, shape)), "")
        size = os.path.getsize(path) if os.path.isfile(path) else \
            sum(os.path.getsize(os.path.join(path, f)) for f in os.listdir(path) if f.endswith(".safetensors"))
        return {"file": os.path.basename(path.rstrip("/")), "bytes": size,
                "parameters": int(find(r"parameters +(\d+)") or 0), "layers": int(find(r"(\d+) layers") or 0),
                "width": int(find(r"width (\d+)") or 0)}

    def finish(self):
        records = os.path.join(self.output, "measurements", "reproduction")
        figures = os.path.join(self.output, "reproduction")
        os.makedirs(records, exist_ok=True)
        os.makedirs(figures, exist_ok=True)
        names = sorted({re.sub(r"-\d+\.json$", "", f) for f in os.listdir(self.state)
                        if re.fullmatch(r"(main|variants|penalised|small|random|ngram-\d+|own)-(greedy|sampled)-\d+\.json", f)})
        for old in os.listdir(records):  # of an experiment with other steps
            if re.fullmatch(r"(main|variants|penalised|small|random|ngram-\d+|own)-(greedy|sampled)\.json", old):
                os.remove(os.path.join(records, old))
        for name in names:
            data.save(os.path.join(records, name + ".json"), self.joined(name))
        for name in ("answers-greedy.json", "answers-sampled.json", "answers-penalised.json"):
            data.save(os.path.join(records, name), data.load(self.path(name)))
        for name in ("roofline.svg", "roofline.csv"):
            with open(self.path(name), "rb") as source, open(os.path.join(figures, name), "wb") as copy:
                copy.write(source.read())
        data.save(os.path.join(records, "setup.json"), self.setup())
        return report.write(records, self.output)

    def setup(self):
        models = {"target": self.target, "draft": self.draft, "small draft": self.small_draft,
                  "random draft": self.path("random.gguf"), "small target": self.small_target}
        files = {"pack": self.ngram, "1": self.path("ngram-1.ngram"), "5": self.path("ngram-5.ngram")}
        cpu = re.findall(r"model name\s*: (.+)", open("/proc/cpuinfo", encoding="utf-8").read())
        return {"own": self.own, "cpu": re.sub(r"\((R|TM)\)", "", cpu[0]) if cpu else "a CPU",
                "dates": sorted({t["date"] for t in self.taken}), "seconds": sum(t["seconds"] for t in self.taken),
                "programs": sorted({t["program"] for t in self.taken}), "tokens": self.a.tokens,
                "prompts": self.prompts, "some": self.some, "part": PART, "ngram_tokens": self.a.ngram_tokens,
                "models": {role: self.model(path) for role, path in models.items() if path},
                "ngram_bytes": {role: os.path.getsize(path) for role, path in files.items()},
                "tasks": {str(i): [self.tasks[i]["task_id"], self.tasks[i]["entry_point"]] for i in self.prompts}}


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def minutes(seconds):
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{max(1, round(seconds / 60))} min"


def main():
    experiment = Experiment(parse())
    try:
        experiment.run()
    except KeyboardInterrupt:
        sys.exit("\nreproduce: stopped; the same command goes on from here")
    path, identical = experiment.finish()
    print(f"reproduce: {path}")
    if not identical:
        sys.exit("reproduce: found texts that differ between runs, expected the same; the report names them")


if __name__ == "__main__":
    main()
