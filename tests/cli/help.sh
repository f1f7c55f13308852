# --help of every command goes to stdout, is at most 80 columns wide, ends with an example and exits 0.
for command in '' run bench roofline eval tokenize inspect train distill ngram grow quantize; do
  # shellcheck disable=SC2086
  "$UNDERSTUDY" $command --help >stdout 2>stderr || echo "$command: exit $?"
  [ -s stderr ] && echo "$command: something on stderr: $(cat stderr)"
  wide=$(awk 'length > 80' stdout)
  [ -n "$wide" ] && echo "$command: wide lines: $wide"
  tail -3 stdout | grep -qx 'example:' || echo "$command: no example at the end"
  echo "$command: $(head -1 stdout | cut -d' ' -f1-3)"
done
