# ngram: from the draft's own text and from a corpus; the same command writes the same file; it drafts, and another
# tokenizer's file is refused.
model=$FIXTURES/gpt2-tiny
"$UNDERSTUDY" ngram -q -m "$model" --tokens 2000 --seed 3 -o a.ngram || echo "exit $?"
"$UNDERSTUDY" ngram -q -m "$model" --tokens 2000 --seed 3 --threads 1 -o b.ngram && cmp a.ngram b.ngram
printf 'hello world\nhello there\0hello hello hello' >corpus.txt
"$UNDERSTUDY" ngram -q -m "$model" --corpus corpus.txt -o c.ngram && cmp -s a.ngram c.ngram && echo "the corpus made no difference"
"$UNDERSTUDY" ngram -q -m "$model" --corpus - -o d.ngram <corpus.txt && cmp c.ngram d.ngram
"$UNDERSTUDY" run -m "$model" -n 40 --quiet hello >plain
for file in a.ngram c.ngram; do "$UNDERSTUDY" run -m "$model" -n 40 --quiet --ngram $file hello | cmp - plain; done
printf '{"prompt": "hello"}\n' >set.jsonl
"$UNDERSTUDY" bench -m "$model" -d "$model" --ngram a.ngram --prompts set.jsonl -n 20 --json bench.json >table || echo "exit $?"
awk 'NR > 4 && NF { print $1 }' table
grep -E '"mode"|identical' bench.json

echo "== errors"
printf abc >junk.ngram
head -c 100 a.ngram >cut.ngram
for file in junk.ngram cut.ngram absent.ngram; do
  "$UNDERSTUDY" run -m "$model" --ngram $file hi >stdout 2>stderr
  echo "exit $?, stdout $(wc -c <stdout), stderr $(wc -l <stderr) line, names it: $(grep -c $file stderr)"
done
"$UNDERSTUDY" ngram -m "$model" --corpus absent.txt -o e.ngram 2>&1
ls e.ngram .*.tmp 2>/dev/null
exit 0
