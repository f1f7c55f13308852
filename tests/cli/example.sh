# examples/generate.c: what a newcomer copies runs, repeats itself, and says what is wrong.
example=$(dirname "$UNDERSTUDY")/example_generate
model=$FIXTURES/gpt2-tiny
"$example" "$model" hello >one && [ -s one ] && echo "it writes"
"$example" "$model" hello "$model" | cmp - one
"$UNDERSTUDY" run --quiet -m "$model" -n 64 --temperature 0.8 --top-k 50 --seed 1 hello | cmp - one
"$example" absent hello || echo "exit $?"
"$example" 2>&1 | sed 's#/.*/##'
exit 0
