"""The report of scripts/reproduce: joining measurements, the statistics in it, sentences that follow the numbers, and
that the committed page is what its measurements give. Needs python3 alone; charts are not drawn here."""
import copy
import os
import sys
import tempfile
import unittest

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path.insert(0, os.path.join(TOP, "scripts", "reproduction"))
import charts  # noqa: E402
import data  # noqa: E402
import report  # noqa: E402

charts.gnuplot = lambda path, width, height, lines: None


def made_mode(name, tokens, seconds, passes, prompts):
    """A mode's figures, evenly spread over its prompts."""
    count = len(prompts)
    plain = name == "plain"
    return {"mode": name, "tokens": tokens * count, "seconds": seconds * count,
            "tokens_per_s": tokens / seconds, "target_passes": passes * count, "tokens_per_pass": tokens / passes,
            "bytes_per_token": 1000.0 * passes / tokens, "bytes_vs_plain": passes / tokens,
            "flop_per_s": 1e9, "flop_per_byte": 2.0,
            "accepted": {"draft": 0 if plain else (tokens - passes) * count, "ngram": 0, "context": 0},
            "per_prompt": [{"prompt": i, "tokens": tokens, "seconds": seconds, "target_passes": passes,
                            "text_sha256": f"text {p}"} for i, p in enumerate(prompts)],
            "depth": [] if plain else [{"depth": 1, "proposed": 20 * count, "accepted": 10 * count}],
            "ranks": [] if plain else [{"stage": "draft", "rank": 0, "proposed": 20 * count, "accepted": 15 * count}],
            "rows": [{"rows": 1 if plain else 16, "passes": passes * count}],
            "stage_passes": {"draft": 0 if plain else 30 * count, "draft_rows": 0},
            "time": {"target_s": 0.8 * seconds * count, "draft_s": 0.1 * seconds * count, "ngram_s": 0.0,
                     "choice_s": 0.0, "planning_s": 0.1 * seconds * count}}


def made_bench(prompts, staged_seconds, names=("plain", "speculative", "staged"), temperature=0.0):
    timing = {"plain": (10.0, 100), "speculative": (4.0, 25)}
    return {"isa": "amx", "threads": 2, "machine": {"read_gb_per_s": 20.0, "peak_tflop_per_s": 4.0},
            "target": {"path": "some/where/big.gguf", "architecture": "gpt2", "parameters": 10, "weight_bytes": 20},
            "sampling": {"temperature": temperature}, "outputs_identical": True,
            "modes": [made_mode(n, 100, *timing.get(n, (staged_seconds, 20)), prompts) for n in names]}


class Joining(unittest.TestCase):
    def test_sums_and_prompt_numbers(self):
        joined = data.merge([made_bench([3, 5], 2.0), made_bench([9], 4.0)], [[3, 5], [9]])
        staged = data.mode(joined, "staged")
        self.assertEqual(staged["tokens"], 300)
        self.assertAlmostEqual(staged["seconds"], 8.0)
        self.assertAlmostEqual(staged["tokens_per_s"], 37.5)
        self.assertAlmostEqual(staged["bytes_vs_plain"], 0.2)
        self.assertEqual([e["prompt"] for e in staged["per_prompt"]], [3, 5, 9])
        self.assertEqual(staged["rows"], [{"rows": 16, "passes": 60}])
        self.assertEqual(joined["target"]["path"], "big.gguf")

    def test_ranks_in_order(self):
        part = made_bench([0], 2.0)
        data.mode(part, "staged")["ranks"] = [{"stage": "draft", "rank": r, "proposed": 1, "accepted": 0}
                                              for r in (10, 2, 0)]
        staged = data.mode(data.merge([part], [[0]]), "staged")
        self.assertEqual([e["rank"] for e in staged["ranks"]], [0, 2, 10])

    def test_saved_text_is_the_same_json(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "a.json")
            bench = made_bench([1, 2], 2.0)
            data.save(path, bench)
            self.assertEqual(data.load(path), bench)


class Statistics(unittest.TestCase):
    def test_rank_correlation(self):
        self.assertAlmostEqual(data.rank_correlation([1, 2, 3, 4, 5], [10, 20, 30, 400, 500]), 1)
        self.assertAlmostEqual(data.rank_correlation([1, 2, 3, 4, 5], [5, 4, 3, 2, 1]), -1)
        self.assertAlmostEqual(data.rank_correlation([1, 2, 2, 3, 4], [1, 2, 2, 3, 4]), 1)
        self.assertIsNone(data.rank_correlation([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]))
        self.assertIsNone(data.rank_correlation([1, 2], [1, 2]))

    def test_repetition(self):
        words = lambda text: [[word, "draft"] for word in text.split()]
        self.assertEqual(data.repetition(words("a b c d e")), 0)
        self.assertAlmostEqual(data.repetition(words("a b c a b c")), 1 / 4)
        self.assertEqual(data.repetition(words("a")), 0)

    def test_one_text_that_differs_is_found(self):
        one, other = (data.merge([made_bench([3, 5], 2.0)], [[3, 5]]) for _ in range(2))
        self.assertEqual(data.identity({"a": one, "b": other})["differing"], [])
        data.mode(other, "staged")["per_prompt"][1]["text_sha256"] = "another"
        self.assertEqual(data.identity({"a": one, "b": other})["differing"], ["prompt 5 of big.gguf"])


class Page(unittest.TestCase):
    def write(self, staged_seconds, spoil=None):
        """The page of an experiment whose staged decoding takes that long a prompt (plain: 10 s)."""
        with tempfile.TemporaryDirectory() as folder:
            prompts = [0, 1, 2, 3]
            names = ("plain", "speculative", "staged", "chain", "independent")
            for how, temperature in (("greedy", 0.0), ("sampled", 1.0)):
                for name in ("main", "variants", "random", "own"):
                    bench = made_bench(prompts, staged_seconds, names if name == "variants" else names[:3], temperature)
                    data.save(os.path.join(folder, f"{name}-{how}.json"), data.merge([bench], [prompts]))
                answers = [{"prompt": p, "task": f"HumanEval/{p}", "function": "f", "prompt_text": "def f():\n",
                            "text_sha256": f"text {p}", "pieces": [[f" {i}", "draft"] for i in range(9)]}
                           for p in prompts]
                data.save(os.path.join(folder, f"answers-{how}.json"), answers)
            model = {"file": "m.gguf", "bytes": 10**7, "parameters": 10**7, "layers": 2, "width": 64}
            roles = ("target", "draft", "random draft", "small target")
            setup = {"own": False, "cpu": "A CPU", "dates": ["2026-01-01"], "seconds": 60, "programs": ["x"],
                     "tokens": 100, "prompts": prompts, "some": prompts, "part": 20, "ngram_tokens": 5,
                     "models": {role: model for role in roles}, "ngram_bytes": {"pack": 5, "1": 1, "5": 5}}
            data.save(os.path.join(folder, "setup.json"), setup)
            if spoil:
                spoil(folder)
            path, identical = report.write(folder, folder)
            with open(path, encoding="utf-8") as file:
                return " ".join(file.read().split()), identical

    def test_sentences_follow_the_numbers(self):
        fast, identical = self.write(2.0)
        self.assertTrue(identical)
        self.assertIn("greedy: staged decoding is 5.00× plain, more than the paper's 3.16×", fast)
        self.assertIn("5.00× is above the aim of 4.35×", fast)
        self.assertIn("2.00× (greedy)", fast)
        self.assertIn("At best staging gives 5.00× here", fast)
        slow, _ = self.write(5.0)
        self.assertIn("greedy: staged decoding is 2.00× plain, less than the paper's 3.16×", slow)
        self.assertIn("2.00× is **below the mark of 3.16×**", slow)
        self.assertIn("it stays below the mark of 1.10×", slow)

    def test_a_text_that_differs_is_said_first(self):
        def spoil(folder):
            path = os.path.join(folder, "variants-greedy.json")
            bench = copy.deepcopy(data.load(path))
            bench["modes"][2]["per_prompt"][0]["text_sha256"] = "another"
            data.save(path, bench)
        page, identical = self.write(2.0, spoil)
        self.assertFalse(identical)
        self.assertIn("**Texts differ**: prompt 0 of big.gguf", page)

    def test_the_committed_pages_are_what_their_measurements_give(self):
        for place in ("docs", "docs/avx2"):
            records = os.path.join(TOP, place, "measurements", "reproduction")
            with self.subTest(place), tempfile.TemporaryDirectory() as folder:
                path, _ = report.write(records, folder)
                with open(path, encoding="utf-8") as ours, \
                        open(os.path.join(TOP, place, "reproduction.md"), encoding="utf-8") as committed:
                    self.assertEqual(ours.read(), committed.read())


if __name__ == "__main__":
    unittest.main()
