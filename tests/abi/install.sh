#!/usr/bin/env bash
# What `cmake --install` leaves is enough for others: the example compiles against it with pkg-config and with
# find_package(), runs with the installed library, and says what the installed command says. The folder may be moved.
# Exit 77 (skipped) without pkg-config.
#
# usage: tests/abi/install.sh BUILD CC [FLAGS...]      FLAGS: the sanitizers of the build, if any
set -euo pipefail
export LC_ALL=C
build=$1 cc=$2
shift 2
top=$(cd "$(dirname "$0")/../.." && pwd)
if ! command -v pkg-config >/dev/null; then
  echo "install: skipped, pkg-config is not installed"
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/first" >/dev/null
mv "$work/first" "$work/place"
libdir=$(dirname "$(find "$work/place" -name libunderstudy.so)")
export PKG_CONFIG_PATH=$libdir/pkgconfig LD_LIBRARY_PATH=$libdir
for file in include/understudy.h bin/understudy; do
  [ -f "$work/place/$file" ] || { echo "install: found no $file" >&2; exit 1; }
done
version=$(pkg-config --modversion understudy)
"$work/place/bin/understudy" --version | grep -qF "$version" || { echo "install: versions differ" >&2; exit 1; }

eval "flags=($(pkg-config --cflags --libs understudy))" # its blanks are escaped
"$cc" -std=c17 -Wall -Wextra -Werror "$@" "$top/examples/generate.c" -o "$work/with-pkg-config" "${flags[@]}"

mkdir "$work/project"
cat >"$work/project/CMakeLists.txt" <<END
cmake_minimum_required(VERSION 3.21)
project(example LANGUAGES C)
find_package(understudy ${version%.*} REQUIRED)
add_executable(with-cmake "$top/examples/generate.c")
target_link_libraries(with-cmake PRIVATE understudy::understudy)
END
cmake -S "$work/project" -B "$work/project/build" -DCMAKE_PREFIX_PATH="$work/place" -DCMAKE_C_COMPILER="$cc" \
  -DCMAKE_C_FLAGS="$*" >/dev/null
cmake --build "$work/project/build" >/dev/null

model=$top/tests/fixtures/gpt2-tiny
"$work/place/bin/understudy" run --quiet -m "$model" -n 64 --temperature 0.8 --top-k 50 --seed 1 hello >"$work/expected"
[ -s "$work/expected" ] || { echo "install: the command wrote nothing" >&2; exit 1; }
for example in "$work/with-pkg-config" "$work/project/build/with-cmake"; do
  "$example" "$model" hello >"$work/found"
  cmp "$work/expected" "$work/found"
done
echo "install: understudy $version compiles and runs from where it was installed"
