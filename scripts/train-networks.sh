#!/bin/sh
# Trains the networks of assets/ anew, and the judge that they are measured with:
#   scripts/train-networks.sh [DEMIST] [FOLDER]
# About an hour on a software driver with two cores. Ctrl-C saves; started again the
# script goes on where it was.
set -eu
demist=${1:-target/release/demist}
out=${2:-runs/networks}
data=assets/faces16.png
test=assets/faces16_test.png

run() { # run NAME COMMAND OPTIONS...
    name=$1
    command=$2
    shift 2
    if [ -e "$out/$name/done" ]; then return; fi
    if [ -e "$out/$name/state.safetensors" ]; then
        # A resumed run takes its options from its folder.
        set -- --resume
    fi
    "$demist" "$command" $data --out "$out/$name" --validation $test "$@"
    touch "$out/$name/done"
}

# Draws faces of five classes ...
run faces-base train --noise-schedule cosine --predict-xstart --channel-mult 1,1,2 \
    --batch-size 16 --lr 1e-3 --lr-warmup 100 --lr-anneal --ema-rate 0.999 --steps 2500

# ... and goes on with images whose class it is not told.
run faces train --init "$out/faces-base/network.safetensors" --sigma-small \
    --label-dropout 0.1 --batch-size 16 --lr 4e-4 --lr-warmup 20 --lr-anneal \
    --ema-rate 0.995 --steps 700

# Classifier of noisy faces, to guide it.
run guide train-classifier --noise-schedule cosine --flip --batch-size 32 --lr 1e-3 \
    --lr-warmup 50 --lr-anneal --weight-decay 0.05 --ema-rate 0.995 --steps 3200

# Enlarges faces of 8x8 pixels.
run upsampler train --small-size 8 --unconditional --noise-schedule cosine --predict-xstart \
    --channel-mult 1,1,2 --flip --batch-size 16 --lr 1e-3 --lr-warmup 50 --lr-anneal \
    --ema-rate 0.995 --steps 1500

# A classifier of clean faces with another pool and seed, which guides nothing.
run judge train-classifier --clean --classifier-pool spatial_v2 --noise-schedule cosine --flip \
    --batch-size 32 --lr 1e-3 --lr-warmup 50 --lr-anneal --weight-decay 0.05 --ema-rate 0.99 \
    --seed 7 --steps 800
