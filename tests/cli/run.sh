# run: the answer alone on stdout, the same in every mode; prompts from everywhere; what cannot be written.
model=$FIXTURES/gpt2-tiny
run() { "$UNDERSTUDY" run -m "$model" "$@"; }
digest() { sha256sum | cut -c1-64; }

run -n 40 hello >plain-default 2>statistics || echo "exit $?"
sed -E 's/[0-9.]+ s:/T s:/; s/[0-9.]+ tokens\/s/R tokens\/s/; s/[0-9.]+ tokens\/pass/P tokens\/pass/; /^found by/s/ [0-9]+/ N/g' statistics
for options in "--mode plain" "--mode staged" "-d $model --mode speculative" "-d $model" "--threads 1" "--quiet"; do
  # shellcheck disable=SC2086
  run -n 40 $options hello 2>/dev/null | cmp - plain-default || echo "$options: another text"
done
run -n 40 --quiet hello 2>&1 >/dev/null
printf hello >prompt
run -n 40 -f prompt 2>/dev/null | cmp - plain-default
run -n 40 <prompt 2>/dev/null | cmp - plain-default
run -n 40 -f - <prompt 2>/dev/null | cmp - plain-default

echo "== sampled: a function of the seed"
run -n 40 --temperature 1 --top-k 50 --seed 7 hello 2>/dev/null >seven
run -n 40 --temperature 1 --top-k 50 --seed 7 --mode plain hello 2>/dev/null | cmp - seven
run -n 40 --temperature 1 --top-k 50 --seed 7 -d "$model" hello 2>/dev/null | cmp - seven
run -n 40 --temperature 1 --top-k 50 --seed 8 hello 2>/dev/null | cmp -s - seven && echo "seed 8 gave seed 7's text"
run -n 3 --top-k 50 hello 2>&1 >/dev/null | sed 1q
run -n 3 --quiet --top-k 50 hello 2>&1 >/dev/null

echo "== the report's digest is the text's"
for n in 0 1 2 31 62; do
  run -n $n --json report.json --temperature 2 hi >text 2>/dev/null || echo "exit $?"
  digest <text | grep -q "$(sed -n 's/.*"text_sha256": "\(.*\)".*/\1/p' report.json)" || echo "n=$n: another digest"
done
run -n 60 --json report.json --temperature 2 --seed 2 hi >text 2>/dev/null
sed -n 's/^   "text": "\(.*\)",$/\1/p' report.json | while IFS= read -r piece; do printf %b "$piece"; done | tr -dc ' -~\n' |
  cmp - <(tr -dc ' -~\n' <text) && echo "the pieces are the text"
sed -E 's/"(depth|ranks|rows|pieces|tokens)": \[\]/"\1": […]/
        /"(depth|ranks|rows|pieces|tokens)": \[$/,/^ +\]/{s/\[$/[…]/; t; s/^ +\],$/,/; t; d}' report.json | grep -vx , |
  sed -E 's/[0-9]+\.[0-9]+(e[-+]?[0-9]+)?/X/; s/("(isa|path|text_sha256)"): ".*"/\1: "…"/; s/(…\]),?/\1/
        s/("(threads|tokens|target_passes|draft|ngram|context)"): [0-9]+/\1: N/; s/("bytes_vs_plain"): .*,/\1: …,/'

echo "== --explain: a line a step, whose tokens add up"
run -n 40 -d "$model" --explain hello 2>explained >text && cmp text plain-default
run -n 40 -d "$model" --explain --quiet hello 2>&1 >/dev/null
sed -n 1,2p explained
awk 'NF == 14 && $1 + 0 == steps + 1 { steps++; rows += $2; parts += 1 + $3 + $4 + $5; tokens += $11; found += $12 + $13 + $14 }
     $2 == "tokens" { all = $1 } $1 == "found" { print (steps > 0), (rows == parts), (tokens == all), (all - found == $4 + 0) }' explained

echo "== the context"
run -n 100 hello 2>&1 >/dev/null | sed 1q
run -n 40 --context 45 hello 2>&1 >/dev/null | grep -c full

echo "== odd prompts"
run -n 3 --quiet '' >out && [ -s out ] && echo "empty: exit 0"
printf '\346\255\377\300\200' | run -n 3 --quiet >/dev/null && echo "invalid UTF-8: exit 0"
run -n 3 --quiet -- --help >/dev/null && echo "after --: exit 0"
for length in 63 64 65; do
  run -n 3 --quiet "$(head -c $length /dev/zero | tr '\0' '~')" 2>&1 >/dev/null
  echo "$length tokens: exit $?"
done
run -n 0 --quiet hi | wc -c
run -n 2147483647 --quiet hi >out && [ -s out ] && echo "n = 2^31-1: exit 0"

echo "== a path that is no UTF-8"
odd=$'m\xe8'
cp -r "$model" "$odd"
"$UNDERSTUDY" run -q -m "$odd" -n 3 --json odd.json hi >/dev/null && grep '"path"' odd.json
"$UNDERSTUDY" eval -m "$odd" --json odd.json hello >/dev/null && grep '"model"' odd.json

echo "== colour"
run -n 62 --quiet hi | grep -c "$(printf '\033')"
run -n 62 --quiet --color hi >tinted
sed 's/\x1b\[[0-9]*m//g' tinted >bare
run -n 62 --quiet hi | cmp - bare

echo "== what cannot be written or opened"
run -n 3 hi >/dev/full 2>stderr || { echo "exit $?"; grep -v 'tokens/s' stderr; }
run -n 3 --json absent/x.json hi 2>&1 | tail -1
run -n 3 --json . hi 2>&1 | tail -1
run -n 3 --json /dev/full hi 2>&1 >/dev/null | tail -1
[ -c /dev/full ] || echo "/dev/full was replaced"
run -n 3 -f absent 2>&1
run -n 3 -d absent hi 2>&1
run -n 3 --ngram absent hi 2>&1
find . -name '*.tmp*'
exit 0
