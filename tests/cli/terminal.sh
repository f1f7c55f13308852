# On a terminal, which script(1) stands for: bars that leave no trace, tints, and no waiting for anybody.
model=$FIXTURES/gpt2-tiny
export TERM=xterm

on_terminal() { # ARGUMENTS…: what the terminal was sent goes to the file "sent"
  timeout 60 script -qec "$(printf '%q ' "$UNDERSTUDY" "$@")" sent </dev/null >/dev/null
  echo "exit $?"
  sed -i '1d;/^Script done/d' sent # script's own lines
}
bars() { tr '\r' '\n' <sent | grep -c '%'; }
some() { [ "$(bars)" -gt 0 ] && echo "bars" || echo "no bars"; }
left() { # what stands on the screen at the end
  tr -d '\r' <sent | sed -E 's/.*\x1b\[K//' | sed "s#$FIXTURES/##g" | grep -v '^$'
}

echo "== bars"
on_terminal quantize "$model" -o q.gguf --type q8_0
some
left
rm q.gguf
TERM=dumb on_terminal quantize "$model" -o q.gguf --type q8_0
some
left
on_terminal quantize -q "$model" -o q.gguf --type q8_0
some
left
timeout 60 script -qec "stty cols 30; $(printf '%q ' "$UNDERSTUDY" ngram -m "$model" --tokens 3000 -o x.ngram)" sent </dev/null >/dev/null
echo "exit $?, $(some), the longest of $(tr '\r' '\n' <sent | grep '%' | sed 's/\x1b\[K//' | awk '{ if (length > most) most = length } END { print (most <= 30 ? "at most 30" : most) }') columns"

echo "== a model to look at"
for i in $(seq 200); do printf 'def f(x):\n    return x + 1\n'; done >corpus.txt
on_terminal train --tokenizer "$model" --corpus corpus.txt --width 64 --heads 1 --layers 1 --steps 2 --batch 256 -o small.gguf
some
left | tail -1
on_terminal grow --like gpt2 small.gguf -o big.gguf --type q8_0
some
left
for size in small big; do "$UNDERSTUDY" run -q -m $size.gguf -n 40 def >$size.txt; done
cmp small.txt big.txt && wc -c <big.txt

echo "== tints"
tints() { grep -oP '\x1b\[3[0-9]m' sent | sort -u | wc -l; }
on_terminal run -m big.gguf -n 40 def
[ "$(tints)" -gt 0 ] && echo tinted
[ "$(grep -oP '\x1b\[[0-9]*m' sent | tail -1)" = $'\x1b[0m' ] && echo "and the colour put back"
NO_COLOR=1 on_terminal run -m big.gguf -n 40 def
tints
TERM=dumb on_terminal run -m big.gguf -n 40 def
tints
on_terminal run -m big.gguf -n 40 --json x.json def
grep -c '"from"' x.json | sed 's/^[1-9].*/pieces/'

echo "== nobody is waited for"
on_terminal run -m "$model"
left
on_terminal tokenize -m "$model"
left
exit 0
