# --version names the version and the kernel level in use, on stdout.
"$UNDERSTUDY" --version 2>/dev/null |
  sed -E 's/[0-9]+\.[0-9]+\.[0-9]+/X.Y.Z/; s/\((scalar|avx2|avx512|amx) kernels\)/(LEVEL kernels)/'
