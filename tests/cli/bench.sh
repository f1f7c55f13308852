# bench: prompt sets in every form, the same texts in every mode, a report only when it is whole.
model=$FIXTURES/gpt2-tiny
bench() { "$UNDERSTUDY" bench -m "$model" -n 20 --prompts "$@"; }
printf '{"prompt": "hello", "task_id": "a/0"}\n\n{"prompt": "abc abc abc"}\n{"prompt": ""}\n' >set.jsonl
gzip -k set.jsonl
printf 'one prompt, as it is\n' >prompt.txt

for prompts in set.jsonl set.jsonl.gz prompt.txt; do
  bench $prompts -d "$model" --json $prompts.json >table || echo "exit $?"
  sed -n '2p; $p' table
  awk 'NR > 4 && NF { print $1 }' table | tr '\n' ' '
  echo "$(grep -c '"mode"' $prompts.json) modes, $(grep '^   "text_sha256' $prompts.json | sort -u | wc -l) text," \
    "$(grep -o '"outputs_identical": .*' $prompts.json)"
done
cmp <(grep sha256 set.jsonl.json) <(grep sha256 set.jsonl.gz.json)
bench - -d "$model" --json piped.json <set.jsonl.gz >table && cmp <(grep sha256 set.jsonl.json) <(grep sha256 piped.json)
bench set.jsonl -d "$model" --variants chain,tree,no-context,independent,context,likeliest --json variants.json \
  --temperature 1 >table || echo "exit $?"
tail -1 table
grep '"mode"' variants.json
echo "$(grep '^   "text_sha256' variants.json | sort -u | wc -l) text of a mode," \
  "$(grep '^     "text_sha256' variants.json | sort -u | wc -l) texts of 3 prompts"
bench set.jsonl --limit 1 --temperature 1 --top-k 50 --seed 3 >table && sed -n 2p table

echo "== bad prompt sets"
printf '{"prompt": "hello"}\n{"prompt": 3}\n' >number.jsonl
printf '{"prompt": "hello"}\n{"prom\n' >broken.jsonl
printf '{"text": "hello"}\n' >other.jsonl
head -c 40 set.jsonl.gz >cut.gz
printf '\037\213' >magic.gz
head -c 70 /dev/zero | tr '\0' '~' >long.txt
for prompts in number.jsonl broken.jsonl other.jsonl cut.gz magic.gz long.txt absent .; do
  bench $prompts --json never.json >stdout 2>stderr
  echo "exit $?, stdout $(wc -c <stdout): $(cat stderr)"
done
bench set.jsonl --json absent/x.json 2>&1
for variants in cha chains chain, ,tree tree,x,chain; do bench set.jsonl --variants "$variants" 2>&1; done

echo "== stopped"
yes '{"prompt": "hello"}' | head -5000 >many.jsonl
"$UNDERSTUDY" bench -m "$model" --prompts many.jsonl --json never.json >stdout 2>stderr &
computed $! 1000
kill -INT $!
wait $!
echo "exit $?: $(cat stderr)"
sed -En '/^[1-9][0-9]* prompts, /s/^[0-9]+/some/p; /^(mode|plain|staged|texts)/s/ .*//p' stdout # of those it had finished
find . -name 'never*'
exit 0
