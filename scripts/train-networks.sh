#!/bin/sh
# Trains the networks of assets/ anew, and the judge that they are measured with:
#   scripts/train-networks.sh [DEMIST] [FOLDER]
# About an hour on a software driver with two cores; each run can be stopped with
# Ctrl-C and goes on where it was when the script is started again.
set -eu
demist=${1:-target/release/demist}
out=${2:-runs/networks}

run() { # run NAME COMMAND DATA OPTIONS...
    name=$1
    shift
    if [ -e "$out/$name/done" ]; then return; fi
    resume=
    if [ -e "$out/$name/state.safetensors" ]; then resume=--resume; fi
    "$demist" "$@" --out "$out/$name" $resume
    touch "$out/$name/done"
}

common="--noise-schedule cosine --validation assets/faces16_test.png --lr 1e-3 --lr-anneal"

# Draws faces of five classes, or of none; learned variance.
run faces train assets/faces16.png $common --predict-xstart --learn-sigma \
    --rescale-learned-sigmas --label-dropout 0.1 --channel-mult 1,1,2 --batch-size 16 \
    --lr-warmup 100 --ema-rate 0.999 --steps 2500

# Classifier of noisy faces, to guide it.
run guide train-classifier assets/faces16.png $common --flip --batch-size 32 \
    --lr-warmup 50 --weight-decay 0.05 --ema-rate 0.995 --steps 2000

# Enlarges faces of 8x8 pixels.
run sr train assets/faces16.png $common --small-size 8 --unconditional --predict-xstart \
    --channel-mult 1,1,2 --flip --batch-size 16 --lr-warmup 50 --ema-rate 0.995 --steps 1500

# A classifier of clean faces with another pool and seed, which guides nothing.
run judge train-classifier assets/faces16.png $common --clean --classifier-pool spatial_v2 \
    --flip --batch-size 32 --lr-warmup 50 --weight-decay 0.05 --ema-rate 0.99 --seed 7 --steps 1000
