# Models, tokenizers and n-gram files that are damaged, foreign, or no files at all: one line that names the file and
# what is wrong with it, exit 1, nothing on stdout, nothing written. (Every field of the formats: tests/weights.)
model=$FIXTURES/gpt2-tiny
"$UNDERSTUDY" quantize "$model" -o good.gguf --type q8_0
"$UNDERSTUDY" ngram -q -m "$model" --tokens 300 -o good.ngram
ls >before

check() { # NAME ARGUMENTS…
  local name=$1
  shift
  timeout 20 "$UNDERSTUDY" "$@" >stdout 2>stderr </dev/null
  echo "$name: exit $?, stdout $(wc -c <stdout), $(wc -l <stderr) line: $(sed "s#$FIXTURES/##g" stderr)"
}
directory() { # a fresh copy of the model in d
  rm -rf d && mkdir d && cp "$model"/*.json "$model"/merges.txt "$model"/model.safetensors d && chmod u+w d/*
}
run() { check "$1" run -m "${2:-d}" -n 2 hi; }
poke() { printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none; } # FILE OFFSET BYTES

echo "== directories"
for part in config.json model.safetensors "tokenizer.json vocab.json" "tokenizer.json merges.txt"; do
  directory
  (cd d && rm $part)
  run "without $part"
done
directory
sed -i 's/\[64,192\]/[192,64]/; s/\[64, 192\]/[192, 64]/' d/model.safetensors
run "a transposed matrix"
directory
sed -i 's/"n_positions": 64/"n_positions": 63/' d/config.json
run "another context"
directory
truncate -s -1 d/model.safetensors
run "cut short"
for at in 1000 420000; do # in the first matrix and the embedding
  directory
  poke d/model.safetensors $(($(wc -c <d/model.safetensors) - 493568 + at)) '\0\0\300\177'
  run "a value that is no number"
done
check "and when it is rewritten" quantize d -o x.gguf --type q8_0
directory
rm d/tokenizer.json && : >d/merges.txt
run "no merges"
for file in config.json model.safetensors tokenizer.json; do
  directory
  rm d/$file && mkfifo d/$file
  run "a pipe $file"
  rm d/$file && ln -s /dev/zero d/$file
  run "a device $file"
done
rm -rf d

echo "== GGUF files"
gguf_key() { # KEY BYTES: another value of a scalar key
  cp good.gguf x.gguf
  poke x.gguf $(($(grep -aboF "$1" good.gguf | head -1 | cut -d: -f1) + ${#1} + 4)) "$2"
  run "$1" x.gguf
}
gguf_key gpt2.block_count '\001'
gguf_key gpt2.block_count '\003'
gguf_key gpt2.block_count '\001\002'
gguf_key gpt2.attention.head_count '\000'
gguf_key gpt2.context_length '\000\000\000\200'
gguf_key tokenizer.ggml.eos_token_id '\377\377'
sed 's/blk.1.attn_norm.weight/blk.1.attn_narm.weight/' good.gguf >x.gguf
run "a tensor of another name" x.gguf
sed 's/gpt-2/gpt-X/' good.gguf >x.gguf
run "another pre-tokenizer" x.gguf
cp good.gguf x.gguf
poke x.gguf 8 '\377\377\377\377\377\377\377\377'
run "2^64-1 tensors" x.gguf
head -c 9000 good.gguf >x.gguf
for command in "inspect x.gguf" "tokenize -m x.gguf hi" "eval -m x.gguf hi" "quantize x.gguf --type f16 -o y" \
  "grow x.gguf --like gpt2 -o y" "ngram -m x.gguf -n 10 -o y" "roofline -m x.gguf --json y" "run -m $model -d x.gguf hi"; do
  # shellcheck disable=SC2086
  check "cut, ${command%% *}" $command
done
rm x.gguf && mkfifo x.gguf
run "a pipe" x.gguf
rm x.gguf

echo "== n-gram files, drafts"
refused=0
tried=0
size=$(wc -c <good.ngram)
for cut in 0 1 7 8 12 16 24 32 40 64 $((size / 2)) $((size - 1)); do
  head -c "$cut" good.ngram >x.ngram
  check "" run -m "$model" --ngram x.ngram -n 1 hi | grep -q ': exit 1, stdout 0, 1 line: understudy: x.ngram: ' && refused=$((refused + 1))
  tried=$((tried + 1))
done
for at in 0 8 12 16 24 32 40 48 56 64 $((size / 3)) $((size / 2)) $((size - 1)); do
  cp good.ngram x.ngram
  byte=$(od -An -tu1 -j "$at" -N 1 good.ngram)
  poke x.ngram "$at" "\\$(printf %o $((byte ^ 16)))"
  check "" run -m "$model" --ngram x.ngram -n 1 hi | grep -q ': exit 1, stdout 0, 1 line: understudy: x.ngram: ' && refused=$((refused + 1))
  tried=$((tried + 1))
done
echo "$refused of $tried refused"
cp good.ngram x.ngram
poke x.ngram 9 '\002'
check "a newer version" run -m "$model" --ngram x.ngram hi
rm x.ngram
mkdir d && cp "$model"/config.json "$model"/model.safetensors "$model"/vocab.json d
sed '$d' "$model"/merges.txt >d/merges.txt
check "an n-gram of another tokenizer" run -m d --ngram good.ngram hi | sed 's/fingerprint [0-9a-f]*, expected [0-9a-f]*/fingerprint F, expected G/'
check "a draft of another vocabulary" run -m "$model" -d d hi
rm -rf d stdout stderr
ls | diff before - | grep -v before
exit 0
