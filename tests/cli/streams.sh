# Streams and files that cannot be read or written, and signals: one line, exit 1, nothing half written; the answer so
# far and its figures after Ctrl-C.
model=$FIXTURES/gpt2-tiny
tiny() { "$UNDERSTUDY" run -m "$model" -n 3 --quiet "$@"; }
said() { echo "$1: exit $2, $(wc -l <stderr) line: $(sed "s#$FIXTURES/##g" stderr)"; }

echo "== a full disk"
for command in "run -m $model hi" "eval -m $model hi" "tokenize -m $model hi" "inspect $model" "--help" "run --help" "--version"; do
  # shellcheck disable=SC2086
  "$UNDERSTUDY" $command 2>stderr >/dev/full
  said "${command%% *} to a full device" $?
done
"$UNDERSTUDY" quantize "$model" --type f32 -o /dev/full 2>stderr
said "quantize to a full device" $?
for command in "quantize $model --type f32 -o y.gguf" "ngram -m $model -n 5000 -o y.ngram"; do
  # shellcheck disable=SC2086
  (ulimit -f 8 && exec "$UNDERSTUDY" $command) 2>stderr
  said "${command%% *} past the file size limit" $?
done
ls y.* 2>/dev/null

echo "== closed streams"
tiny <&- 2>stderr
said "no standard input" $?
tiny hi <&- >text 2>stderr
said "not needed" $?
tiny hi >&- 2>stderr
said "no standard output" $?
tiny hi 2>&- | cmp - text && echo "no standard error: exit ${PIPESTATUS[0]}"
"$UNDERSTUDY" quantize "$model" --type q8_0 -o closed.gguf <&- >&- 2>&- && "$UNDERSTUDY" quantize "$model" --type q8_0 -o open.gguf &&
  cmp closed.gguf open.gguf && echo "a file is whole without any stream"
"$UNDERSTUDY" tokenize -m "$model" "$(head -c 60000 /dev/zero | tr '\0' a)" 2>stderr | head -c 1 >/dev/null
said "a reader that leaves" "${PIPESTATUS[0]}"
mkfifo pipe
printf hi >pipe &
tiny -f pipe | cmp - text && echo "a prompt from a pipe"
wait

echo "== signals"
yes '{"prompt": "hello"}' | head -100000 >many.jsonl
yes 'hello world' | head -200000 >long.txt
interrupt() { # NAME ARGUMENTS…
  local name=$1
  shift
  "$UNDERSTUDY" "$@" >stdout 2>stderr &
  computed $! 60
  kill -INT $!
  wait $!
  said "$name" $?
}
interrupt eval eval -m "$model" -f long.txt --json y.json | sed 's/after [0-9]* of/after N of/'
interrupt ngram ngram -m "$model" -n 100000000 -o z.ngram | sed 's/after [0-9]* of/after N of/'
tokens=$(grep -o 'after [0-9]*' stderr | tr -dc 0-9)
"$UNDERSTUDY" ngram -m "$model" -n "$tokens" -o again.ngram --quiet && cmp z.ngram again.ngram && rm z.ngram
printf kept >z.ngram
interrupt 'ngram again' ngram -m "$model" -n 100000000 -o z.ngram | sed 's/after [0-9]* of/after N of/'
cat z.ngram && echo
interrupt corpus ngram -m "$model" --corpus <(yes 'hello world' | head -c 300000000) -o y.ngram
ls y.* ./.*.tmp 2>/dev/null

echo "== threads and kernel levels"
for threads in 1 2 5 64; do tiny --threads $threads hi | cmp - text; done
for isa in scalar avx2 avx512 amx; do
  tiny --isa $isa hi >stdout 2>stderr || { [ $? = 1 ] && grep -c "$isa cannot run here" stderr | grep -qx 1; } || said $isa $?
done
exit 0
