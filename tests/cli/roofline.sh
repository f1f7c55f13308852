# roofline: the figures as JSON, the chart with its CSV, clear errors.
model=$FIXTURES/gpt2-tiny
cat >bench.json <<'JSON'
{"target": {"architecture": "gpt2", "parameters": 774030080},
 "modes": [{"mode": "plain", "tokens_per_s": 14.4, "flop_per_s": 2.2e10, "flop_per_byte": 1.0},
           {"mode": "staged", "tokens_per_s": 45, "flop_per_s": 1.4e11, "flop_per_byte": 12.5}]}
JSON
"$UNDERSTUDY" roofline -m "$model" --json figures.json >stdout || echo "exit $?"
grep -oE '"(isa|threads|read_gb_per_s|peak_tflop_per_s|pass_ms)"' figures.json
echo "$(grep -c '"rows"' figures.json) passes"
ls -- *.svg 2>/dev/null

for chart in chart.svg chart.png; do
  "$UNDERSTUDY" roofline --quiet --bench bench.json --device rtx4090 -o $chart >/dev/null || echo "exit $?"
  [ -s $chart ] || echo "no $chart"
done
grep -q '</svg>' chart.svg || echo "chart.svg is cut off"
grep -c 'tokens/s' chart.svg
sed -E '/this machine/s/,[0-9].*/,…/' chart.csv

"$UNDERSTUDY" roofline --quiet --bench bench.json --json figures.json >/dev/null || echo "exit $?"
ls roofline.svg roofline.csv
ln -s chart.svg link.svg
"$UNDERSTUDY" roofline --quiet -o link.svg >/dev/null && [ -L link.svg ] && grep -c '</svg>' chart.svg
echo "== without gnuplot"
mkdir path
PATH=$PWD/path "$UNDERSTUDY" roofline -o bare.svg 2>&1 >/dev/null
echo "== products, until somebody has seen enough"
: >products # it may start later than the first look at what it printed
"$UNDERSTUDY" roofline --kernels --json products.json >products 2>stderr &
while kill -0 $! && ! grep -q '^ *64 .*%' products; do sleep 0.1; done
kill -TERM $! && wait $!
echo "exit $?: $(cat stderr)"
head -9 products | sed -E 's/[0-9.]+ (GB|TFLOP)/X \1/g; s/^( *[0-9]+) .*%/\1 … %/; s/^[a-z0-9]+ kernels, [0-9]+ threads?: .*/the machine/'
ls products.json 2>/dev/null
echo "== devices"
"$UNDERSTUDY" roofline --quiet --device 100GB/s,2TFLOP/s -o given.svg >/dev/null || echo "exit $?"
grep ridge given.csv | sed -E '/this machine/s/,[0-9].*/,…/'
"$UNDERSTUDY" roofline --device gtx --json x.json 2>&1
echo "== errors"
echo '{"modes": []}' >none.json
echo '{"modes": [{"mode": "plain"}]}' >short.json
echo '<html>' >page.json
for file in none.json short.json page.json absent.json; do "$UNDERSTUDY" roofline --bench $file --json x.json 2>&1; done
"$UNDERSTUDY" roofline --json absent/x.json 2>&1
"$UNDERSTUDY" roofline -o absent/x.svg 2>&1
ls -- x.json bare* .*.tmp *.tmp 2>/dev/null
exit 0
