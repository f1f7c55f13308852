# quantize, inspect, eval, tokenize, grow: files in and out, and nothing half written.
model=$FIXTURES/gpt2-tiny
figures() { "$UNDERSTUDY" eval -m "$1" --isa scalar "hello world, this is a test" | tr -s ' \n' ' '; }
echo "directory: $(figures "$model" | sed -E 's/(\.[0-9])[0-9]+/\1/g')"
for type in f32 f16 bf16 q8_0 q4_0; do
  "$UNDERSTUDY" quantize "$model" -o $type.gguf --type $type || echo "exit $?"
  echo "$type: $(figures $type.gguf | sed -E 's/(\.[0-9])[0-9]+/\1/g')"
  "$UNDERSTUDY" inspect $type.gguf | grep -E 'token_embd|position_embd|blk.0.attn_qkv|\.tokens|shape'
done
"$UNDERSTUDY" quantize q8_0.gguf -o again.gguf --type q8_0 && cmp q8_0.gguf again.gguf
"$UNDERSTUDY" quantize q4_0.gguf -o again.gguf --type q4_0 && cmp q4_0.gguf again.gguf
"$UNDERSTUDY" quantize f32.gguf -o again.gguf --type f32 && cmp f32.gguf again.gguf

echo "== eval --json"
"$UNDERSTUDY" eval -m "$model" --json scores.json "hello world" >/dev/null
grep -E '"(tokens|bytes)"' scores.json
echo "$(grep -cE '^  -[0-9.]+,?$' scores.json) log-probabilities"
awk '/^  -/ { sum -= $1 } /nll/ { nll = $2 + 0 } END { print (sum - nll < 1e-3 && nll - sum < 1e-3) ? "they add up" : "sum " sum " nll " nll }' scores.json
"$UNDERSTUDY" eval -m "$model" '' 2>&1

echo "== tokenize"
"$UNDERSTUDY" tokenize -m "$model" 'Hello  world<|endoftext|>'
"$UNDERSTUDY" tokenize -m q8_0.gguf --special 'Hello  world<|endoftext|>'
printf 'a\000b\377' | "$UNDERSTUDY" tokenize -m "$model" | "$UNDERSTUDY" tokenize -m "$model" --decode | od -An -tx1
"$UNDERSTUDY" tokenize -m "$model" --decode 39 68 2>&1
"$UNDERSTUDY" tokenize -m "$FIXTURES/gpt2" 'def main():'
printf '39\0 68' | "$UNDERSTUDY" tokenize -m "$model" --decode 2>&1; echo
for ids in 300 1x 99999999999999999999 x; do "$UNDERSTUDY" tokenize -m "$model" --decode "1 $ids" 2>&1; done

echo "== what cannot be made"
mkdir empty pickled
cp "$model"/config.json pickled
: >pickled/pytorch_model.bin
ln -s f32.gguf link.gguf
printf ab >short.txt
: >nothing.txt
for arguments in "quantize $model --type q8_0 -o absent/q.gguf" "quantize empty --type q8_0 -o q.gguf" \
  "grow $model --like gpt2 -o q.gguf" "tokenize -m empty hi" "inspect empty" "inspect pickled" "inspect short.txt" "ngram -m $model -o absent/x.ngram -n 5" \
  "quantize $model --type f32 -o -" "quantize f32.gguf --type q8_0 -o f32.gguf" "quantize link.gguf --type q8_0 -o f32.gguf" \
  "grow f32.gguf --like gpt2 -o ./f32.gguf" "ngram -m f32.gguf -o f32.gguf -n 5" "ngram -m $model --corpus short.txt -o short.txt" \
  "ngram -m $model --corpus short.txt -o q.gguf" "ngram -m $model --corpus nothing.txt -o q.gguf" \
  "run -m f32.gguf -n 1 --json f32.gguf hi" "eval -m $model -f short.txt --json short.txt" "run -m $model -n 1 --json - hi" "bench -m $model --prompts nothing.txt" "bench -m $model --prompts short.txt -n 0"; do
  # shellcheck disable=SC2086
  "$UNDERSTUDY" $arguments >stdout 2>stderr
  echo "exit $?, stdout $(wc -c <stdout): $(sed "s#$FIXTURES/##g" stderr)"
done
"$UNDERSTUDY" inspect "$model" >/dev/full 2>stderr
echo "exit $?: $(cat stderr)"
cmp f32.gguf again.gguf
find . -name 'q.gguf*' -o -name '*.tmp*'

echo "== a model's directory keeps its files"
cp -r "$model" own
for arguments in "quantize own --type f32 -o own/model.safetensors" "run -m own -n 1 --json own/config.json hi" \
  "ngram -m own -n 5 -o ./own/tokenizer.json" "train --tokenizer own --corpus short.txt -o own/tokenizer.json" \
  "roofline -m own --json chart.csv -o chart.svg" "quantize f32.gguf --type q8_0|bf16 -o q.gguf" \
  "quantize own -o $(printf '%0252d' 0).gguf --type f32"; do
  # shellcheck disable=SC2086
  "$UNDERSTUDY" $arguments >stdout 2>stderr
  echo "exit $?, stdout $(wc -c <stdout): $(sed -E 's/0{200,}/0…0/g' stderr)"
done
diff -r "$model" own && "$UNDERSTUDY" quantize -q own --type f32 -o own/q.gguf
ln -sf f32.gguf link.gguf
chmod 600 f32.gguf
"$UNDERSTUDY" quantize -q own --type f32 -o link.gguf && cmp f32.gguf own/q.gguf && stat -c %a f32.gguf && test -L link.gguf

echo "== an output matrix of its own that is not there"
cp -r "$model" headless
sed -i 's/^{/{"tie_word_embeddings": false,/' headless/config.json
"$UNDERSTUDY" run -q -m headless -n 3 hi 2>&1

echo "== a directory says what ends a text"
sed -i 's/"eos_token_id": 299/"eos_token_id": 35/' own/config.json
"$UNDERSTUDY" quantize -q own --type f32 -o end.gguf
for path in own end.gguf; do
  "$UNDERSTUDY" run -q -m $path -n 30 --temperature 1 --seed 3 hi | od -An -c
done
echo "== trained"
yes 'hello world, hello there' | head -c 3000 >text.txt
learn() {
  "$UNDERSTUDY" "$@" --width 32 --layers 1 --heads 1 --context 256 --steps 2 --batch 256 -o t.gguf >stdout 2>stderr
  echo "exit $?, stdout $(wc -c <stdout): $(grep -v ^step stderr | sed "s#$FIXTURES/##g")"
}
learn train --tokenizer "$model" --corpus text.txt
learn distill --teacher f32.gguf --corpus text.txt --heldout text.txt
for text in nothing.txt short.txt; do
  learn train --tokenizer "$model" --corpus $text
  learn train --tokenizer "$model" --corpus text.txt --heldout $text
done
learn distill --teacher t.gguf --corpus text.txt
learn train --tokenizer "$model" --corpus text.txt --checkpoint text.txt
learn train --tokenizer "$model" --corpus text.txt --log text.txt
learn train --tokenizer "$model" --corpus text.txt --log absent/x.csv
learn train --tokenizer t.gguf --corpus text.txt
learn train --tokenizer "$model" --corpus text.txt --log same --checkpoint ./same
learn train --tokenizer "$model" --corpus text.txt --log x.gguf --checkpoint t.gguf
find . -name '*.ckpt*'
echo "== trained on from a model"
learn train --tokenizer "$model" --corpus text.txt --from t.gguf
learn train --tokenizer "$model" --corpus text.txt --from none.gguf
again() {
  "$UNDERSTUDY" train --tokenizer "$model" --corpus text.txt --steps 1 --batch 256 --rate 1e-9 --type f32 "$@" -o on.gguf 2>&1 |
    grep -v ^step
}
again --from t.gguf --width 64
again --from "$FIXTURES/gpt2-tiny" | sed "s#$FIXTURES/##g"
"$UNDERSTUDY" train -q --tokenizer "$model" --corpus text.txt --width 64 --layers 2 --heads 2 --context 256 --steps 3 \
  --batch 256 --type f32 -o first.gguf
again --from first.gguf
for path in first.gguf on.gguf; do "$UNDERSTUDY" run -q -m $path -n 30 --temperature 1 --seed 3 hi | od -An -c; done
find . -name '*.ckpt*'
echo "== what stands before an open descriptor stays; the input is not written over"
echo before >log
"$UNDERSTUDY" run -q -m "$model" -n 2 --json /dev/stdout hi >>log && head -1 log && grep -c '"isa"' log
ln -s /dev/stdout out
for name in out /dev//stdout /dev/./fd/1 /proc/thread-self/fd/1; do
  echo before >log
  "$UNDERSTUDY" run -q -m "$model" -n 2 --json $name hi >>log && head -1 log && grep -c '"isa"' log
done
echo before >log
"$UNDERSTUDY" train -q --tokenizer "$model" --corpus text.txt --width 32 --layers 1 --heads 1 --context 256 --steps 2 \
  --batch 256 -o t.gguf --log /dev/stdout >>log
cut -d, -f1 log
"$UNDERSTUDY" run -q -m "$model" -n 2 --json out hi 2>&1 >/dev/full | sed 1d
"$UNDERSTUDY" train -q --tokenizer "$model" --corpus text.txt --width 32 --layers 1 --heads 1 --context 256 --steps 2 \
  --batch 256 -o /dev/stdout | cat >piped
head -c 4 piped; echo
find . -name '*.ckpt*'
echo prompt >given
"$UNDERSTUDY" run -q -m "$model" -n 2 --json given <given || echo "exit $?"
cat given
echo "== names"
"$UNDERSTUDY" run -m "$(printf '\303\274n\303\257/nichts')" hi 2>&1
"$UNDERSTUDY" run -m "$(printf '%0200d/%0200d/%0200d' 1 2 3)/none.gguf" hi 2>&1
"$UNDERSTUDY" run -m "$(printf 'a\033[2Jb\302\233c')" hi 2>&1
POSIXLY_CORRECT=1 "$UNDERSTUDY" tokenize hi -m "$model"
exit 0
