#!/bin/sh
# The golden vectors with every family of kernel variants forced in turn:
#   scripts/golden-variants.sh [PREFIX..]     e.g. the run.sh of another driver
# Stops at the first that disagrees.
set -eu
cd "$(dirname "$0")/.."
test_program=$(cargo test --release --test golden --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*golden-[^"]*\)".*/\1/p' | tail -n 1)

forced() {
    echo "== $1"
    shift_away=$1
    shift
    DEMIST_VARIANT="$shift_away" "$@" "$test_program" -q >"$log" 2>&1 || { cat "$log"; exit 1; }
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

each() { echo "conv3x3=$1,conv3x3_dx=$1,conv3x3_dw=$1"; }
direct=$(each direct)
for filter in direct winograd2 winograd4; do
    forced "$(each $filter)" "$@"
done
for tile in tile16x8 tile8x8 tile4x8 tile4x4; do
    forced "$direct,conv2d=$tile,conv2d_dx=$tile" "$@"
    forced "$(each winograd4),gemm=$tile,gemm_dx=$tile" "$@"
done
for tile in tile8x4 tile4x4; do
    forced "$direct,conv2d_dw=$tile" "$@"
    forced "$(each winograd4),gemm_dw=$tile" "$@"
done
for rows in rows4x1 rows4x2 rows2x1 rows2x2 rows1x1; do
    forced "attention=$rows,attention_dq=$rows,attention_dkv=$rows" "$@"
done
