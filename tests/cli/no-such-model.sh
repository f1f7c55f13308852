# A file that is not there, and files that are no models: one line that names the file, exit code 1, nothing on stdout.
printf 'not a model\n' >page.gguf
: >empty.gguf
check() {
  "$UNDERSTUDY" "$@" >stdout 2>stderr
  echo "[$*] exit $?, stdout $(wc -c <stdout) bytes, stderr $(wc -l <stderr) line"
  grep -qF "$model" stderr || echo "does not name $model: $(cat stderr)"
}
for model in absent.gguf page.gguf empty.gguf; do
  check run -m "$model" -n 1 hello
  check inspect "$model"
done
