# --help of every command goes to stdout, is at most 100 columns wide, ends with an example and exits 0.
for command in '' run bench roofline eval tokenize inspect train distill ngram grow quantize; do
  # shellcheck disable=SC2086
  "$UNDERSTUDY" $command --help >stdout 2>stderr || echo "$command: exit $?"
  [ -s stderr ] && echo "$command: something on stderr: $(cat stderr)"
  wide=$(head -n -1 stdout | awk 'length > 100') # all but the example
  [ -n "$wide" ] && echo "$command: wide lines: $wide"
  tail -2 stdout | head -1 | grep -qx 'example:' || echo "$command: no example at the end"
  echo "$command: $(head -1 stdout | cut -d' ' -f1-3)"
done
