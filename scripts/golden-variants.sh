#!/bin/sh
# The golden vectors with every family of kernel variants forced in turn:
#   scripts/golden-variants.sh [--filters] [PREFIX..]
# With --filters only the ways to convolve; PREFIX is, say, the run.sh of another
# driver (scripts/lavapipe.sh). Stops at the first family that disagrees.
set -eu
cd "$(dirname "$0")/.."
filters_only=
if [ "${1:-}" = --filters ]; then
    filters_only=1
    shift
fi
program=$(cargo test --release --test golden --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*golden-[^"]*\)".*/\1/p' | tail -n 1)
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# forced VARIANTS [PREFIX..]
forced() {
    variants=$1
    shift
    echo "golden vectors with $variants"
    DEMIST_VARIANT="$variants" "$@" "$program" -q >"$log" 2>&1 || { cat "$log"; exit 1; }
}
each() { echo "conv3x3=$1,conv3x3_dx=$1,conv3x3_dw=$1"; }

for filter in direct winograd2 winograd4; do
    forced "$(each $filter)" "$@"
done
forced "$(each winograd4),norm_conv=apart" "$@"
[ -z "$filters_only" ] || exit 0
for tile in tile16x8 tile8x8 tile4x8 tile4x4 staged128x64 staged64x64; do
    forced "$(each direct),conv2d=$tile,conv2d_dx=$tile" "$@"
    forced "$(each winograd4),gemm=$tile,gemm_dx=$tile" "$@"
done
for tile in tile16x4 tile8x4 tile4x4; do
    forced "$(each direct),conv2d_dw=$tile" "$@"
    forced "$(each winograd4),gemm_dw=$tile" "$@"
done
forced "$(each winograd4),gemm_dw=staged64x64" "$@"
# More rows an invocation suit small heads only; tests/bench.rs compares those.
for rows in rows1x1; do
    forced "attention=$rows,attention_dq=$rows,attention_dkv=$rows" "$@"
done
