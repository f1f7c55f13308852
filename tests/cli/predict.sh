# bench --predict: a recorded run on another machine, checked against its own; after a run; clear errors.
cat >bench.json <<'JSON'
{"isa": "amx", "threads": 2, "machine": {"read_gb_per_s": 10, "peak_tflop_per_s": 1},
 "target": {"architecture": "gpt2", "parameters": 1000000000, "weight_bytes": 1000000000},
 "modes": [
  {"mode": "plain", "tokens": 100, "seconds": 12.5, "target_passes": 100, "bytes_per_token": 1.1e9,
   "flop_per_s": 1.6e10, "rows": [{"rows": 1, "passes": 100, "seconds": 12.4}]},
  {"mode": "staged", "tokens": 100, "seconds": 4, "target_passes": 20, "bytes_per_token": 3.2e8, "flop_per_s": 6e10,
   "rows": [{"rows": 1, "passes": 10, "seconds": 1.2}, {"rows": 9, "passes": 10, "seconds": 1.8}], "stage_passes": {"draft": 200, "draft_rows": 800},
   "time": {"target_s": 3, "draft_s": 0.9, "ngram_s": 0.03, "planning_s": 0.01}}]}
JSON
sed 's/, "rows": .*//; s/"flop_per_s": 6e10,$/"flop_per_s": 6e10}]}/; /stage_passes/,$d' bench.json |
  sed '/flop_per_s": 1.6e10/s/$/},/' >old.json
for device in rtx4090 1100GB/s,1TFLOP/s,500us; do
  echo "== $device"
  "$UNDERSTUDY" bench --predict $device --from bench.json || echo "exit $?"
done
echo "== without passes by rows"
"$UNDERSTUDY" bench --from=old.json --predict rtx4090 || echo "exit $?"
echo "== of a busy machine"
sed 's/"seconds": 12.5/"seconds": 30/' bench.json >busy.json
"$UNDERSTUDY" bench --from busy.json --predict rtx4090 | grep -A1 'plain\|Up to'
echo "== after a run"
printf '{"prompt": "hello"}\n' >set.jsonl
"$UNDERSTUDY" bench -m "$FIXTURES/gpt2-tiny" -n 8 --prompts set.jsonl --json run.json --predict pi5 >stdout || echo "exit $?"
sed -E '1,/^texts/d; /^$/{N;/\nUp to/d}; /^The file/d; s/\(.*\)/(…)/; /^ *[2-9] |^ *[1-9][0-9] /d; s/ *[0-9.+-]{2,}.*/ …/' stdout
echo "== errors"
for from in set.jsonl absent .; do "$UNDERSTUDY" bench --predict pi5 --from $from 2>&1; done
echo '{"modes": [{"mode": "plain"}]}' >short.json
"$UNDERSTUDY" bench --predict pi5 --from short.json 2>&1
"$UNDERSTUDY" bench --predict abacus --from bench.json 2>&1
"$UNDERSTUDY" bench --from bench.json 2>&1
"$UNDERSTUDY" bench --predict pi5 --from bench.json -m x 2>&1
"$UNDERSTUDY" bench --predict pi5 -m absent --prompts set.jsonl 2>&1
"$UNDERSTUDY" bench --predict pi5 -m absent --prompts set.jsonl --json /dev/null 2>&1
"$UNDERSTUDY" bench --predict abacus -m absent --prompts set.jsonl --json x.json 2>&1
ls -- x.json 2>/dev/null
exit 0
