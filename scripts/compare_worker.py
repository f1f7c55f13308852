"""One engine behind one protocol, for scripts/compare: a process per engine, run by that engine's own Python.

Reads one JSON request a line and answers each with one line: `open` a target and what drafts for it, `tokenize` a text,
`generate` in one of the engine's modes, greedily or,
with a temperature above 0, drawn from the top_k likeliest tokens. Every engine is timed in the same way: a time stamp for each burst of
tokens it hands out. The first burst ends the prompt's processing; decoding is what comes after it.

usage: compare_worker.py understudy|llama.cpp|openvino|transformers
"""
import ctypes
import json
import os
import re
import sys
import time

END = 50256  # GPT-2's end-of-text token


class Watch:
    """Time stamps of the bursts of tokens of one answer."""

    def __init__(self):
        self.start = time.perf_counter()
        self.bursts = []  # (seconds since start, tokens)

    def add(self, tokens):
        tokens = list(tokens)
        if tokens:
            self.bursts.append((time.perf_counter() - self.start, tokens))

    def answer(self, limit):
        """Tokens up to the limit and the end token; decoding's share of them and its seconds."""
        kept, last, first = [], 0.0, None
        for at, tokens in self.bursts:
            if END in tokens:
                tokens = tokens[:tokens.index(END)]
            tokens = tokens[:limit - len(kept)]
            kept += tokens
            if tokens:
                last = at
            if first is None:
                first = (at, len(kept))
        if first is None:
            first = (0.0, 0)
        return {"tokens": kept, "prompt_s": first[0], "decode_tokens": len(kept) - first[1],
                "decode_s": last - first[0]}


# ---- understudy, through the C API -----------------------------------------------------------------------------------

C_TYPES = {"int": ctypes.c_int, "bool": ctypes.c_bool, "float": ctypes.c_float, "double": ctypes.c_double,
           "char": ctypes.c_char, "uint64_t": ctypes.c_uint64, "const char *": ctypes.c_char_p,
           "void *": ctypes.c_void_p, "understudy_progress_fn": ctypes.c_void_p, "understudy_status": ctypes.c_int}


def c_struct(header, name):
    """The ctypes class of a struct of understudy.h, read from the header so that it cannot fall behind it."""
    body = re.search(r"typedef struct %s \{(.*?)\} %s;" % (name, name), header, re.S).group(1)
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.S)
    fields = []
    for line in filter(None, (part.strip() for part in body.split(";"))):
        kind, names = re.match(r"(const char \*|void \*|\w+\s)\s*(.*)", line, re.S).groups()
        c_type = C_TYPES[kind.strip()]
        for one in names.split(","):
            field, length = re.match(r"\s*(\w+)(?:\[(\d+)\])?", one).groups()
            fields.append((field, c_type * int(length) if length else c_type))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


class Understudy:
    def open(self, request):
        with open(request["header"]) as file:
            header = file.read()
        self.lib = lib = ctypes.CDLL(request["library"])
        lib.understudy_token_bytes.restype = ctypes.c_char_p
        lib.understudy_version.restype = ctypes.c_char_p
        self.error = c_struct(header, "understudy_error")()
        options = c_struct(header, "understudy_engine_options")()
        options.target = request["target"].encode()
        options.draft = request["draft"].encode()
        options.ngram = request["ngram"].encode()
        options.threads = request["threads"]
        self.engine = ctypes.c_void_p()
        self.check(lib.understudy_engine_open(ctypes.byref(options), ctypes.byref(self.engine),
                                              ctypes.byref(self.error)))
        info = c_struct(header, "understudy_engine_info")()
        lib.understudy_engine_get_info(self.engine, ctypes.byref(info))
        self.sampling = c_struct(header, "understudy_sampling")
        self.sessions = {}
        modes = re.search(r"typedef enum understudy_mode \{(.*?)\}", header, re.S).group(1)
        modes = [m.lower() for m in re.findall(r"^\s*UNDERSTUDY_(\w+)", modes, re.M)]
        for mode in request["modes"]:
            session = ctypes.c_void_p()
            self.check(lib.understudy_session_create(self.engine, modes.index(mode),
                                                     ctypes.byref(self.sampling(**request["sampling"])),
                                                     ctypes.byref(session), ctypes.byref(self.error)))
            self.sessions[mode] = session
        return {"version": lib.understudy_version().decode(), "build": f"{info.isa.decode()} kernels",
                "weight_bytes": info.weight_bytes}

    def check(self, status):
        if status:
            raise RuntimeError(self.error.message.decode())

    def tokenize(self, text):
        data = text.encode()
        tokens, count = ctypes.POINTER(ctypes.c_int32)(), ctypes.c_size_t()
        self.check(self.lib.understudy_tokenize(self.engine, data, ctypes.c_size_t(len(data)), False,
                                                ctypes.byref(tokens), ctypes.byref(count), ctypes.byref(self.error)))
        ids = tokens[:count.value]
        self.lib.understudy_free(tokens)
        return ids

    def generate(self, mode, prompt, limit, sampling):
        session, error = self.sessions[mode], ctypes.byref(self.error)
        self.check(self.lib.understudy_session_reset(session, ctypes.byref(self.sampling(**sampling)), error))
        watch, burst = Watch(), []
        # A step hands out its tokens one call after another, microseconds apart; steps are milliseconds apart.
        seen = [0.0]

        def keep(_user, token, _bytes, _length, _origin):
            now = time.perf_counter() - watch.start
            if watch.bursts and now - seen[0] < 2e-4:
                watch.bursts[-1][1].append(token)
            else:
                watch.bursts.append((now, [token]))
            seen[0] = now
            return False

        callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_size_t,
                                    ctypes.c_int)(keep)
        ids = (ctypes.c_int32 * len(prompt))(*prompt)
        self.check(self.lib.understudy_session_prompt(session, ids, ctypes.c_size_t(len(prompt)), None, None, error))
        self.check(self.lib.understudy_session_generate(session, limit, callback, None, None, error))
        return watch.answer(limit)


# ---- llama.cpp, through llama-cpp-python -----------------------------------------------------------------------------

class LlamaCpp:
    """Plain decoding calls llama_decode with one token at a time; speculation is the package's own generate() with
    its prompt look-up, or with a draft model behind its LlamaDraftModel interface."""

    def open(self, request):
        import llama_cpp
        import llama_cpp.llama_speculative as speculative
        import numpy
        self.cpp, self.numpy = llama_cpp, numpy
        options = {"n_ctx": 1024, "n_batch": 512, "n_ubatch": 512, "n_threads": request["threads"],
                   "n_threads_batch": request["threads"], "verbose": bool(os.environ.get("COMPARE_VERBOSE"))}
        self.llm = llama_cpp.Llama(request["target"], logits_all=True, **options)
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)
        self.drafts = {"plain": None}
        for mode in request["modes"]:
            if mode.startswith("look-up"):
                self.drafts[mode] = speculative.LlamaPromptLookupDecoding(num_pred_tokens=int(mode.split()[1]))
            elif mode.startswith("draft"):
                small = llama_cpp.Llama(request["draft"], **options)
                self.drafts[mode] = self.draft_model(speculative.LlamaDraftModel, small, int(mode.split()[1]))
        from gguf import GGUFReader
        size = sum(int(t.n_bytes) for t in GGUFReader(request["target"]).tensors if t.name != "position_embd.weight")
        system = llama_cpp.llama_print_system_info().decode()
        flags = [word for word in ("AMX_INT8", "AVX512_BF16", "AVX512_VNNI", "AVX512") if f"{word} = 1" in system]
        return {"version": llama_cpp.__version__, "build": f"{request['build']}; {', '.join(flags)}",
                "weight_bytes": size}

    def tokenize(self, text):
        return self.llm.tokenize(text.encode(), add_bos=False)

    def evaluate(self, llm, tokens, past, all_logits=False):
        for at in range(0, len(tokens), 512):
            piece = tokens[at:at + 512]
            self.batch.n_tokens = len(piece)
            for i, token in enumerate(piece):
                self.batch.token[i] = token
                self.batch.pos[i] = past + at + i
                self.batch.n_seq_id[i] = 1
                self.batch.seq_id[i][0] = 0
                self.batch.logits[i] = all_logits or at + i == len(tokens) - 1
            if self.cpp.llama_decode(llm.ctx, self.batch):
                raise RuntimeError("llama_decode failed")

    def likeliest(self, llm):
        logits = self.cpp.llama_get_logits_ith(llm.ctx, -1)
        return int(self.numpy.argmax(self.numpy.ctypeslib.as_array(logits, shape=(llm.n_vocab(),))))

    def cut(self, llm, length):
        self.cpp.llama_memory_seq_rm(self.cpp.llama_get_memory(llm.ctx), 0, length, -1)

    def passes(self, rows, context):
        """Milliseconds of one pass over some rows after a context, logits of every row; the best of three."""
        self.cut(self.llm, 0)
        self.evaluate(self.llm, [198] * context, 0)
        best = []
        for count in rows:
            times = []
            for _ in range(3):
                start = time.perf_counter()
                self.evaluate(self.llm, [198] * count, context, all_logits=True)
                self.cpp.llama_get_logits_ith(self.llm.ctx, -1)
                times.append(1e3 * (time.perf_counter() - start))
                self.cut(self.llm, context)
            best.append(min(times))
        self.cut(self.llm, 0)
        return {"pass_ms": best}

    def draft_model(self, base, small, count):
        worker = self

        class Draft(base):
            """A chain of the small model's likeliest tokens; what it has evaluated stays in its cache."""
            held = []

            def __call__(self, input_ids, /, **_):
                ids = [int(i) for i in input_ids]
                same = 0
                while same < min(len(self.held), len(ids) - 1) and self.held[same] == ids[same]:
                    same += 1
                worker.cut(small, same)
                chain = []
                worker.evaluate(small, ids[same:], same)
                self.held = list(ids)
                for _i in range(count):
                    chain.append(worker.likeliest(small))
                    if len(chain) < count:
                        worker.evaluate(small, chain[-1:], len(self.held))
                        self.held.append(chain[-1])
                return worker.numpy.array(chain, dtype=worker.numpy.intc)

        return Draft()

    def sampler(self, sampling):
        """llama.cpp's own chain of samplers."""
        cpp, chain = self.cpp, self.cpp.llama_sampler_chain_init(self.cpp.llama_sampler_chain_default_params())
        if sampling["temperature"] > 0:
            cpp.llama_sampler_chain_add(chain, cpp.llama_sampler_init_top_k(sampling["top_k"]))
            cpp.llama_sampler_chain_add(chain, cpp.llama_sampler_init_temp(sampling["temperature"]))
            cpp.llama_sampler_chain_add(chain, cpp.llama_sampler_init_dist(sampling["seed"]))
        else:
            cpp.llama_sampler_chain_add(chain, cpp.llama_sampler_init_greedy())
        return chain

    def generate(self, mode, prompt, limit, sampling):
        self.cut(self.llm, 0)
        self.llm.reset()
        watch = Watch()
        if mode == "plain":
            chain = self.sampler(sampling)
            self.evaluate(self.llm, prompt, 0)
            for i in range(limit):
                token = int(self.cpp.llama_sampler_sample(chain, self.llm.ctx, -1))
                watch.add([token])
                if token == END or i + 1 == limit:
                    break
                self.evaluate(self.llm, [token], len(prompt) + i)
            self.cpp.llama_sampler_free(chain)
            return watch.answer(limit)
        self.llm.draft_model = self.drafts[mode]
        self.llm.set_seed(sampling["seed"])
        made = 0
        for token in self.llm.generate(prompt, temp=sampling["temperature"], top_k=sampling["top_k"], top_p=1.0,
                                       min_p=0.0, repeat_penalty=1.0):
            watch.add([token])
            made += 1
            if token == END or made == limit:
                break
        return watch.answer(limit)


# ---- OpenVINO GenAI --------------------------------------------------------------------------------------------------

class OpenVino:
    def open(self, request):
        import openvino
        import openvino_genai as genai
        self.genai, self.openvino = genai, openvino
        options = {"INFERENCE_NUM_THREADS": request["threads"]}
        self.pipes = {}
        for mode in request["modes"]:
            if mode == "plain":
                self.pipes[mode] = genai.LLMPipeline(request["target"], "CPU", **options)
            elif mode.startswith("draft"):
                self.pipes[mode] = genai.LLMPipeline(
                    request["target"], "CPU", draft_model=genai.draft_model(request["draft"], "CPU", **options),
                    **options)
            else:
                self.pipes[mode] = genai.LLMPipeline(request["target"], "CPU", prompt_lookup=True, **options)
        found = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        size = os.path.getsize(os.path.join(request["target"], "openvino_model.bin"))
        return {"version": genai.__version__.split("-")[0], "build": "the package's; CPU: " + ", ".join(found),
                "weight_bytes": size}

    def generate(self, mode, prompt, limit, sampling):
        watch = Watch()
        genai = self.genai

        class Stamp(genai.StreamerBase):
            def write(self, token):
                watch.add(token if isinstance(token, (list, tuple)) else [token])
                return genai.StreamingStatus.RUNNING

            def end(self):
                pass

        config = genai.GenerationConfig()
        config.max_new_tokens = limit
        config.do_sample = sampling["temperature"] > 0
        if config.do_sample:
            config.temperature, config.top_k, config.rng_seed = sampling["temperature"], sampling["top_k"], sampling["seed"]
        config.eos_token_id = END
        config.stop_token_ids = {END}
        if mode.startswith("draft"):
            config.num_assistant_tokens = int(mode.split()[1])
        elif mode.startswith("look-up"):
            config.num_assistant_tokens = int(mode.split()[1])
            config.max_ngram_size = 2
        import numpy
        ids = self.openvino.Tensor(numpy.array([prompt], dtype=numpy.int64))
        try:
            self.pipes[mode].generate(ids, config, Stamp())
        except RuntimeError:  # 2026.4.1: the first sampled answer with a draft model fails, all later ones do not
            watch = Watch()
            self.pipes[mode].generate(ids, config, Stamp())
        return watch.answer(limit)


# ---- Hugging Face transformers ---------------------------------------------------------------------------------------

class Transformers:
    def open(self, request):
        import torch
        import transformers
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(request["threads"])
        self.torch = torch
        capability = torch.backends.cpu.get_cpu_capability()
        # without instructions for bf16 its products are by far slower than those of f32
        self.dtype = torch.bfloat16 if capability.startswith("AVX512") else torch.float32
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(request["target"], dtype=self.dtype).eval()
        self.draft = load(request["draft"], dtype=self.dtype).eval()
        size = sum(p.numel() * p.element_size() for name, p in self.model.named_parameters() if "wpe" not in name)
        return {"version": transformers.__version__, "weight_bytes": size,
                "build": f"torch {torch.__version__}, {capability}, {str(self.dtype).removeprefix('torch.')}"}

    def generate(self, mode, prompt, limit, sampling):
        options = {"do_sample": sampling["temperature"] > 0}
        if options["do_sample"]:
            options.update(temperature=float(sampling["temperature"]), top_k=sampling["top_k"], top_p=1.0)
            self.torch.manual_seed(sampling["seed"])
        if mode.startswith("draft"):
            options["assistant_model"] = self.draft
        elif mode.startswith("look-up"):
            options["prompt_lookup_num_tokens"] = int(mode.split()[1])
        watch = Watch()

        class Stamp:
            prompt_seen = False

            def put(self, value):
                if self.prompt_seen:
                    watch.add(value.reshape(-1).tolist())
                self.prompt_seen = True

            def end(self):
                pass

        ids = self.torch.tensor([prompt])
        with self.torch.inference_mode():
            self.model.generate(ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=limit,
                                pad_token_id=END, eos_token_id=END, streamer=Stamp(), **options)
        return watch.answer(limit)


def main():
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever an engine prints is not an answer
    engine = {"understudy": Understudy, "llama.cpp": LlamaCpp, "openvino": OpenVino,
              "transformers": Transformers}[sys.argv[1]]()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "open":
                reply = engine.open(request)
            elif request["do"] == "tokenize":
                reply = {"tokens": engine.tokenize(request["text"])}
            elif request["do"] == "passes":
                reply = engine.passes(request["rows"], request["context"])
            else:
                reply = engine.generate(request["mode"], request["prompt"], request["limit"], request["sampling"])
        except Exception as problem:  # one line for the driver, whatever it was
            if os.environ.get("COMPARE_VERBOSE"):
                import traceback
                traceback.print_exc()
            reply = {"problem": " ".join(f"{type(problem).__name__}: {problem}".split())[:300]}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


main()
