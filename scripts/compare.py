"""Runs understudy and its peers side by side and writes what came out; started by scripts/compare.

For each number format every engine is opened once, in a process of its own (compare_worker.py), and answers the same
prompts in each of its modes, one at a time, mode after mode and prompt after prompt, so that drift of the machine
hits all alike. The raw answers go to a JSON file, to which --append adds; tables and docs/benchmarks.md are made from
that file alone (compare_report.py).
"""
import argparse
import datetime
import gzip
import json
import os
import platform
import shutil
import subprocess
import sys
import time

import compare_report

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PEERS = os.path.join(TOP, "build", "peers")
HERE = os.path.join(TOP, "scripts")
MODES = {"understudy": ["plain", "speculative", "staged"],
         "llama.cpp": ["plain", "look-up 2", "look-up 10", "draft 4"],
         "openvino": ["plain", "look-up 5", "draft 5"],
         "transformers": ["plain", "look-up 10", "draft"]}
OPENVINO_FORMS = {"bf16": "fp16", "q8_0": "int8", "q4_0": "int4"}
ROWS = [1, 4, 8, 16, 32]
PAUSE_S = 0.3  # after each answer: threads of the engine that gave it stop spinning


def parse_options():
    p = argparse.ArgumentParser(prog="scripts/compare", description="understudy beside its peers")
    p.add_argument("--target", default="build/pycode-gpt2-large.gguf", help="bf16 GGUF file of a GPT-2 [%(default)s]")
    p.add_argument("--draft", default="models/pycode-draft.gguf", help="[%(default)s]")
    p.add_argument("--ngram", default="models/pycode.ngram", help="[%(default)s]")
    p.add_argument("--prompts", default="data/humaneval/HumanEval.jsonl.gz", help="[%(default)s]")
    p.add_argument("--formats", default="bf16,q8_0,q4_0", help="[%(default)s]")
    p.add_argument("--engines", default=",".join(MODES), help="[%(default)s]")
    p.add_argument("--limit", type=int, default=4, help="prompts [%(default)s]")
    p.add_argument("-n", "--tokens", type=int, default=64, help="tokens to write for each [%(default)s]")
    p.add_argument("--temperature", type=float, default=0, help="0: greedy [0]")
    p.add_argument("--top-k", type=int, default=50, help="with a temperature: of the K likeliest tokens [%(default)s]")
    p.add_argument("--rounds", type=int, default=2, help="times through the prompts [%(default)s]")
    p.add_argument("--seconds", type=float, help="start no further prompt of a format after so many seconds")
    p.add_argument("--wait", action="store_true", help="once all is loaded, wait for Enter before measuring a format")
    p.add_argument("--quick", action="store_true", help="2 prompts, 32 tokens, 1 round")
    p.add_argument("--append", action="store_true", help="add to the answers that the JSON file has already")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="[%(default)s]")
    p.add_argument("--build", default="build", help="where understudy was built [%(default)s]")
    p.add_argument("--json", default="build/compare.json", help="[%(default)s]")
    p.add_argument("--doc", help="[docs/benchmarks.md; with --quick build/benchmarks.md]")
    p.add_argument("--prepare", action="store_true", help="only make the models' files")
    p.add_argument("--report", action="store_true", help="only print and write what the JSON file says")
    o = p.parse_args()
    if o.quick:
        o.limit, o.tokens, o.rounds = 2, 32, 1
    o.doc = o.doc or ("build/benchmarks.md" if o.quick else "docs/benchmarks.md")
    return o


def say(text):
    print(f"compare: {text}", file=sys.stderr, flush=True)


class Problem(Exception):
    """One line saying what could not be had."""


def python_of(engine):
    if engine == "understudy":
        return sys.executable
    if not os.path.exists(os.path.join(PEERS, engine, "installed.txt")):
        raise Problem(f"could not be installed, see build/peers/{engine}.log")
    return os.path.join(PEERS, engine, "bin", "python")


def made(out, source, command):
    """A file or folder made from another, unless it is there already, of that very source."""
    out = os.path.join(PEERS, "models", out)
    found = os.stat(source)
    stamp = f"{os.path.realpath(source)}, {found.st_size} bytes, {found.st_mtime_ns}\n"
    if os.path.exists(out) and os.path.exists(out + ".source") and open(out + ".source").read() == stamp:
        return out
    if os.path.isdir(out):
        shutil.rmtree(out)
    os.makedirs(os.path.dirname(out), exist_ok=True)
    say(f"making {os.path.relpath(out, TOP)}")
    done = subprocess.run([*command, out], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=TOP)
    with open(out + ".log", "w") as log:
        log.write(done.stdout)
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["no output"])[-1]
        raise Problem(f"cannot make {os.path.basename(out)}: {last[:200]}")
    with open(out + ".source", "w") as file:
        file.write(stamp)
    return out


def sampling(o, seed=0):
    return {"temperature": o.temperature, "top_k": o.top_k if o.temperature > 0 else 0, "seed": seed}


def section(o, form):
    """Where a format's answers are kept: greedy ones and those of each temperature apart."""
    return form if o.temperature == 0 else f"{form}, temperature {o.temperature:g}, top-k {o.top_k}"


def stem(path):
    return os.path.splitext(os.path.basename(path))[0]


def hugging_face(model):
    return made(f"{stem(model)}-hf", model, [python_of("transformers"), f"{HERE}/compare_models.py", "hf", model,
                                             "data/gpt2"])


def quantized(o, form):
    """The GGUF file understudy and llama.cpp share; llama.cpp's own where understudy cannot write the format."""
    if form == "bf16":
        return o.target
    try:
        return made(f"{stem(o.target)}-{form}.gguf", o.target,
                    [os.path.join(o.build, "understudy"), "quantize", o.target, "--type", form, "-o"])
    except Problem as problem:
        say(f"understudy: {form}: {problem}; taking llama.cpp's quantizer")
    return made(f"{stem(o.target)}-{form}-llama.gguf", o.target,
                [python_of("llama.cpp"), f"{HERE}/compare_models.py", "llama-quantize", o.target, form])


def model_files(o, engine, form):
    """Target and draft in the engine's own form."""
    if engine in ("understudy", "llama.cpp"):
        return quantized(o, form), o.draft
    if engine == "transformers":
        if form != "bf16":
            raise Problem(f"no {form}: it has no kernels for it on CPUs")
        return hugging_face(o.target), hugging_face(o.draft)
    convert = [python_of("transformers"), f"{HERE}/compare_models.py", "openvino"]
    forms = {o.target: OPENVINO_FORMS[form], o.draft: "int8"}
    return tuple(made(f"{stem(m)}-openvino-{f}", hugging_face(m), [*convert, hugging_face(m), f])
                 for m, f in forms.items())


class Worker:
    def __init__(self, o, engine, form):
        target, draft = model_files(o, engine, form)
        self.engine = engine
        log = open(os.path.join(PEERS, f"{engine}-{form}-run.log"), "w")
        self.process = subprocess.Popen([python_of(engine), f"{HERE}/compare_worker.py", engine], cwd=TOP, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                                        env={**os.environ, "OMP_NUM_THREADS": str(o.threads), "HF_HUB_OFFLINE": "1",
                                             "TOKENIZERS_PARALLELISM": "false"})
        log.close()
        with open(os.path.join(PEERS, "compiler.txt")) as file:
            compiler = file.read().strip()
        self.facts = self.ask({"do": "open", "target": target, "draft": draft, "ngram": o.ngram,
                               "threads": o.threads, "sampling": sampling(o), "modes": MODES[engine], "build": compiler,
                               "library": os.path.join(o.build, "libunderstudy.so"),
                               "header": "include/understudy.h"})
        self.facts["file"] = os.path.relpath(target, TOP)

    def ask(self, request):
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            raise Problem(f"stopped with {f'signal {-code}' if code < 0 else f'exit code {code}'}")
        reply = json.loads(line)
        if "problem" in reply:
            raise Problem(reply["problem"])
        return reply

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def read_prompts(path, limit):
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt") as file:
        return [json.loads(line)["prompt"] for line, _ in zip(file, range(limit))]


def roofline(o, model=None):
    """What the machine reads and multiplies now; with a model, also what our passes cost by rows."""
    out = os.path.join(PEERS, "roofline.json")
    subprocess.run([os.path.join(o.build, "understudy"), "roofline", "--threads", str(o.threads), "--json", out, "-q",
                    *(["-m", model] if model else [])], cwd=TOP, check=True, stdout=subprocess.DEVNULL)
    with open(out) as file:
        return json.load(file)


def measure_passes(o, workers, entry, session):
    """The cost of a pass by rows, where an engine lets one ask: why speculation pays for one and not for another."""
    found = {}
    if "llama.cpp" in workers:
        found["llama.cpp"] = workers["llama.cpp"].ask({"do": "passes", "rows": ROWS, "context": 128})["pass_ms"]
        time.sleep(PAUSE_S)
    if "understudy" in workers:
        target = os.path.join(TOP, workers["understudy"].facts["file"])
        ours = {p["rows"]: p["ms"] for p in roofline(o, target)["pass_ms"] if p["context"] == 128}
        found["understudy"] = [ours.get(rows) for rows in ROWS]
    entry["passes"].append({"session": session, "rows": ROWS, "context": 128, "ms": found})


def save(o, result):
    with open(o.json + ".part", "w") as file:
        json.dump(result, file)
    os.replace(o.json + ".part", o.json)


def run_format(o, form, prompts, result):
    """Opens every engine, answers every prompt in every mode, adds the answers to result."""
    workers, problems = {}, {}
    for engine in o.engines.split(","):
        try:
            workers[engine] = Worker(o, engine, form)
        except Problem as problem:
            problems[engine] = str(problem)
            say(f"{engine}: {form}: {problem}")
    tokenizer = workers.get("understudy") or workers.get("llama.cpp")
    if not tokenizer:
        sys.exit(f"compare: {form}: found neither understudy nor llama.cpp, expected one of them to read the prompts")
    entry = result["formats"].setdefault(section(o, form), {"engines": {}, "problems": {}, "machine": [], "answers": [],
                                                "long_prompts": [], "passes": []})
    entry["problems"] = problems
    entry["engines"].update({name: worker.facts for name, worker in workers.items()})
    entry.update(form=form, greedy=o.temperature == 0, prompts=o.limit, tokens=o.tokens)
    entry["date"] = datetime.date.today().isoformat()
    ids = [tokenizer.ask({"do": "tokenize", "text": text})["tokens"] for text in prompts]
    long_prompt = (sum(ids, []) * 4)[:512]
    lanes = [(worker, mode) for worker in workers.values() for mode in MODES[worker.engine]]

    def answer(worker, mode, prompt, limit, seed=0):
        try:
            return worker.ask({"do": "generate", "mode": mode, "prompt": prompt, "limit": limit,
                               "sampling": sampling(o, seed)})
        except Problem as problem:
            say(f"{worker.engine}: {form}: {mode}: {problem}")
            problems[f"{worker.engine}, {mode}"] = str(problem)
            lanes[:] = [lane for lane in lanes if lane != (worker, mode)]
            return None
        finally:
            time.sleep(PAUSE_S)

    for worker, mode in list(lanes):  # learn costs, compile, touch every page
        answer(worker, mode, ids[-1], 8)
    if o.wait:
        say(f"{form}: ready; Enter starts measuring")
        sys.stdin.readline()
    started = time.monotonic()
    entry["machine"].append(roofline(o))
    session = len(entry["machine"])
    for turn in range(o.rounds * len(ids)):
        if o.seconds and time.monotonic() - started > o.seconds:
            break
        prompt = (turn + session - 1) % len(ids)
        shift = turn % max(1, len(lanes))
        for worker, mode in lanes[shift:] + lanes[:shift]:
            found = answer(worker, mode, ids[prompt], o.tokens, turn + 1)
            if found:
                entry["answers"].append({"session": session, "turn": turn, "prompt": prompt, "engine": worker.engine,
                                         "mode": mode, **found})
        for worker, mode in [lane for lane in lanes if lane[1] == "plain"]:
            found = answer(worker, mode, long_prompt, 1)
            if found:
                entry["long_prompts"].append({"session": session, "turn": turn, "engine": worker.engine,
                                              "tokens": len(long_prompt), "seconds": found["prompt_s"]})
        say(f"{form}: prompt {turn + 1} of {o.rounds * len(ids)}, {time.monotonic() - started:.0f} s")
        save(o, result)
    try:
        measure_passes(o, workers, entry, session)
    except Problem as problem:
        say(f"{form}: cost of passes: {problem}")
    entry["machine"].append(roofline(o))
    for worker in workers.values():
        worker.close()


def describe(o):
    def line(command):
        return subprocess.run(command, shell=True, capture_output=True, text=True, cwd=TOP).stdout.strip()

    return {"processor": line("lscpu | sed -n 's/^Model name: *//p'"),
            "family": line("lscpu | sed -n 's/^CPU family: *//p'"), "model": line("lscpu | sed -n 's/^Model: *//p'"),
            "amx": "amx_tile" in line("lscpu"),
            "cores": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "system": line(". /etc/os-release; echo $PRETTY_NAME"), "kernel": platform.release(),
            "python": platform.python_version(), "compiler": line("cc --version | head -1"),
            "commit": line("git rev-parse --short HEAD")}


def main():
    o = parse_options()
    os.chdir(TOP)
    if o.report or o.append:
        with open(o.json) as file:
            result = json.load(file)
    else:
        result = {"commands": [], "formats": {}}
    if o.prepare:
        for form in o.formats.split(","):
            for engine in o.engines.split(","):
                try:
                    model_files(o, engine, form)
                except Problem as problem:
                    say(f"{engine}: {form}: {problem}")
        return
    if not o.report:
        settings = {"prompts": o.prompts, "threads": o.threads, "draft": o.draft, "ngram": o.ngram, "target": o.target}
        if result.get("settings", settings) != settings:
            sys.exit(f"compare: --append: {o.json} was measured with {result['settings']}, expected {settings}")
        result.update(settings=settings, machine=describe(o))
        result["commands"].append(" ".join(["scripts/compare", *sys.argv[1:]]))
        prompts = read_prompts(o.prompts, o.limit)
        for form in o.formats.split(","):
            before = result["formats"].get(section(o, form))
            if before and (before["prompts"], before["tokens"]) != (o.limit, o.tokens):
                sys.exit(f"compare: --append: {section(o, form)} was measured with {before['prompts']} prompts of "
                         f"{before['tokens']} tokens, expected {o.limit} of {o.tokens}")
            run_format(o, form, prompts, result)
            save(o, result)
    compare_report.write(result, o.doc)


main()
