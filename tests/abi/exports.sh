#!/usr/bin/env bash
# libunderstudy.so exports the functions of include/understudy.h and nothing else, under the SONAME it promises.
#
# usage: tests/abi/exports.sh LIBRARY
set -euo pipefail
export LC_ALL=C
library=$1
header=$(dirname "$0")/../../include/understudy.h

exported=$(nm -D --defined-only "$library" | awk '{ print $NF }' | sort)
declared=$(grep -v '^ *[/#*]' "$header" | grep -o '\bunderstudy_[a-z_0-9]*(' | tr -d '(' | sort -u)
if ! diff <(echo "$declared") <(echo "$exported"); then
  echo "exports: '<' is declared in understudy.h and not exported, '>' is exported and not declared there" >&2
  exit 1
fi
soname=$(readelf -d "$library" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p')
if [ "$soname" != libunderstudy.so.0 ]; then
  echo "exports: found SONAME '$soname', expected libunderstudy.so.0" >&2
  exit 1
fi
echo "exports: $(echo "$exported" | wc -l) functions, SONAME $soname"
