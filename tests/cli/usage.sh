# Wrong usage: one line on stderr that names what was found, nothing on stdout, exit code 2.
for arguments in "" "--no-such-option" "no-such-command" "run --no-such-option" "run"; do
  # shellcheck disable=SC2086
  "$UNDERSTUDY" $arguments >stdout 2>stderr
  echo "[$arguments] exit $?, stdout $(wc -c <stdout) bytes, stderr $(wc -l <stderr) line"
  for word in $arguments; do
    case $word in *no-such*) grep -qF -- "${word#--}" stderr || echo "does not name $word: $(cat stderr)" ;; esac
  done
done
