#!/bin/sh
# A draft of the recipe of jat-mini, from nothing but the package: its data, and its training, which was not yet run to
# its end.
#
#     sh examples/jat_mini.sh            # all of it, in the folder runs/jat-mini
#     sh examples/jat_mini.sh data       # a part of it
#     STEPS=20000 sh examples/jat_mini.sh training --learning-rate 5e-4
#
# Interrupted, it goes on where it was. The data take an hour on 2 cores.
set -eu
: "${PYTHON:=python}" "${FOLDER:=runs/jat-mini}" "${WORKERS:=$(getconf _NPROCESSORS_ONLN)}" "${STEPS:=2000}"

build() {
    "$PYTHON" -m dataset_builder build --register examples/captions.py --output "$FOLDER/data" \
        --num-workers "$WORKERS" "$@"
}

networks() { "$PYTHON" -m dataset_builder list --tasks atari | awk '$3 == "network" {print $1}'; }

data() {
    # About every second episode of continuous actions is executed with noise, which the stored actions correct.
    build --tasks metaworld --episodes 28 --max-episode-steps 200 --action-noise 0.3
    build --tasks mujoco --steps 40000 --action-noise 0.1
    build --tasks babyai --episodes 2000
    # shellcheck disable=SC2046
    build --tasks $(networks) --steps 10000 --max-episode-steps 4000
    build --tasks frame-captions missions --episodes 6000
}

training() {
    "$PYTHON" examples/train.py --register examples/captions.py --data "$FOLDER/data" --output "$FOLDER/model" \
        --hidden-size 384 --num-layers 4 --num-heads 6 --vocab-size 1024 \
        --config observation_loss_coef=0 mu_law_features=true discrete_embedding_size=16 image_size=112 \
        --window 128 --image-window 32 --prompt-fraction 0.9 \
        --task-weights babyai=2 atari=1.5 mujoco=1.5 frame-captions=3 missions=0.5 \
        --batch-size 64 --gradient-accumulation 4 --steps "$STEPS" --save-every 200 "$@"
}

if [ $# = 0 ]; then
    data
    training
else
    "$@"
fi
