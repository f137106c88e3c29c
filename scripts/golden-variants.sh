#!/bin/sh
# The golden vectors with every family of kernel variants forced in turn:
#   scripts/golden-variants.sh [--filters | --uniform] [PREFIX..]
# With --filters only the ways to convolve, with --uniform only the tiles with uniform
# loads, for drivers that have them; PREFIX is, say, the run.sh of another
# driver (scripts/lavapipe.sh). Stops at the first family that disagrees.
set -eu
cd "$(dirname "$0")/.."
only=
case "${1:-}" in
--filters | --uniform)
    only=$1
    shift
    ;;
esac
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

if [ "$only" = --uniform ]; then
    for tile in uniform4x16 uniform4x8 uniform2x16 uniform2x8; do
        forced "$(each direct),conv2d=$tile,conv2d_dx=$tile" "$@"
        forced "$(each winograd4),gemm=$tile,gemm_dx=$tile" "$@"
    done
    forced "$(each winograd4),gemm=uniform4x32,gemm_dx=uniform4x32" "$@"
    for tile in uniform4x16 uniform4x8; do
        forced "$(each direct),conv2d_dw=$tile" "$@"
        forced "$(each winograd4),gemm_dw=$tile" "$@"
    done
    exit 0
fi
for filter in direct winograd2 winograd4; do
    forced "$(each $filter)" "$@"
done
forced "$(each winograd4),norm_conv=apart" "$@"
forced "$(each winograd4),conv_moments=apart" "$@"
[ -z "$only" ] || exit 0
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
