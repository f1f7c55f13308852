# Every subcommand: what is missing or wrong is one line that names the option, what was found and what was expected;
# exit code 2 and nothing on stdout.
model=$FIXTURES/gpt2-tiny
check() {
  "$UNDERSTUDY" "$@" >stdout 2>stderr </dev/null
  echo "exit $?, stdout $(wc -c <stdout), stderr $(wc -l <stderr): $(sed "s#$FIXTURES/##g" stderr)"
}
echo "== missing"
for command in run bench eval tokenize inspect train distill ngram grow quantize; do check $command; done
check quantize "$model"
check quantize "$model" -o out.gguf
check grow "$model" -o out.gguf
check ngram -m "$model"
check bench -m "$model"
check run -m
echo "== numbers"
for n in -1 2147483648 5x '' ' 5' 0x10 1.5; do check run -m "$model" -n "$n" hi; done
for t in nan inf -0.1 1e999 x; do check run -m "$model" --temperature "$t" hi; done
for p in 0 1.1 -1; do check run -m "$model" --top-p "$p" hi; done
check run -m "$model" --min-p 2 hi
check run -m "$model" --repetition-penalty -1 hi
check run -m "$model" --frequency-penalty nan hi
check run -m "$model" --presence-penalty 1001 hi
check run -m "$model" --top-k -1 hi
check run -m "$model" --seed -1 hi
check run -m "$model" --seed 99999999999999999999 hi
check run -m "$model" --threads 1025 hi
check bench -m "$model" --prompts x --limit 0
check ngram -m "$model" -o x --tokens 0
echo "== words"
check run -m "$model" --isa sse hi
check run -m "$model" --mode fast hi
check run -m "$model" --json '' hi
check run -m "$model" --mode speculative hi
check quantize "$model" -o out.gguf --type q3_0
check grow "$model" -o out.gguf --like gpt3
check roofline --device gtx1080
check roofline -o chart.jpg
echo "== arguments"
check run -m "$model" one two
check run -m "$model" -f file text
check run -m "$model" --quiet=3 hi
check run -m "$model" -Z hi
check bench -m "$model" --prompts x more
check inspect a b
check tokenize -m "$model" one two
printf 'line\nbreak' >name
check "$(cat name)"
ls out.gguf chart.jpg 2>/dev/null
exit 0
