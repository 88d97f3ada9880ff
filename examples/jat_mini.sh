#!/bin/sh
# A draft of the recipe of jat-mini, from nothing but the package: its data, and its training, which was not yet run to
# its end.
#
#     sh examples/jat_mini.sh            # all of it, in the folder runs/jat-mini
#     sh examples/jat_mini.sh data       # a part of it
#     STEPS=10000 sh examples/jat_mini.sh training --learning-rate 5e-4
#
# Interrupted, it goes on where it was. The data take an hour on 2 cores.
#
# What was tried; errors are mean squares of Meta-World's actions:
#
# - Few steps on many windows: 960 steps of 1,024 windows of 128 timesteps, 6 minutes on an H200, end at an error of 0.026
#   in training, and with no success in all but one of the first 13 tasks. From there 1,300 steps of 32 windows of 64:
#   success 0.08 on average over 8 tasks (10 episodes each).
# - The cause: it repeats its last action, which it sees; in the data that has an error of 0.0001. An episode's first
#   action, before which there is none, was the same in all of them. With 2 layers of 192, 1,500 steps of 32 windows of
#   16, 6 minutes on half a core, and action_feedback=none: success 0.50 over the same 8 tasks (5 episodes each), though
#   the error is 0.096 in test episodes.
# - From here on actions are not seen and take no token. 4 minutes on one core, 2 layers of 192, 32 windows of 16: error
#   in test episodes, and success on average over 18 of the harder tasks (6 episodes each, standard error about 0.04):
#
#       plain                                                       0.055  0.41
#       learning rate of 2e-3 instead of 1e-3                       0.053  not measured
#       128 windows of 4 instead of 32 of 16                        0.051  0.45
#       sines and cosines at 4 frequencies (num_frequencies)        0.042  0.57
#       at 6                                                        0.040  0.51
#       at 6, without mu-law, 2e-3                                  0.038  0.57
#       at 6, 128 windows of 4                                      0.035  0.50
#       at 6, Muon for the blocks                                   0.036  0.57
#       at 6, without mu-law, Muon at 4e-3, the others at 2e-3      0.035  0.63
#
#   Muon makes a step of these small batches take 1.4 times as long.
# - All of it at once, 4 layers of 256 as below but mujoco=1.5, an hour on a core that was shared with other work: 3,500
#   steps at 2e-3, then 1,000 down to 0. Meta-World: success 0.86 (50 tasks, 6 episodes each; plate-slide-back 0.0,
#   disassemble 0.17). Return, 0 for random and 1 for the expert: BabyAI 0.60, IQM 0.60 (39 tasks, 8 episodes;
#   move-two-across 0.0, put-next-local 0.11), MuJoCo 0.29, IQM 0.19 (11 tasks, 8 episodes), which is why it is drawn more
#   often below. Atari and texts were not measured. All losses were still falling; its weights are not kept.
set -eu
: "${PYTHON:=python}" "${FOLDER:=runs/jat-mini}" "${WORKERS:=$(getconf _NPROCESSORS_ONLN)}" "${STEPS:=25000}"

build() {
    "$PYTHON" -m dataset_builder build --register examples/captions.py --output "$FOLDER/data" \
        --num-workers "$WORKERS" "$@"
}

networks() { "$PYTHON" -m dataset_builder list --tasks atari | awk '$3 == "network" {print $1}'; }

data() {
    # About every second episode of continuous actions is executed with noise, which the stored actions correct.
    build --tasks metaworld --episodes 60 --max-episode-steps 200 --action-noise 0.3
    build --tasks mujoco --steps 40000 --action-noise 0.1
    build --tasks babyai --episodes 2000
    # shellcheck disable=SC2046
    build --tasks $(networks) --steps 10000 --max-episode-steps 4000
    build --tasks frame-captions missions --episodes 6000
}

training() {
    "$PYTHON" examples/train.py --register examples/captions.py --data "$FOLDER/data" --output "$FOLDER/model" \
        --hidden-size 256 --num-layers 4 --num-heads 4 --vocab-size 1024 \
        --config action_feedback=none observation_loss_coef=0 mu_law_features=true num_frequencies=5 \
        discrete_embedding_size=16 image_size=112 \
        --window 64 --image-window 32 --prompt-fraction 0.9 \
        --task-weights babyai=2 atari=0.4 mujoco=4 frame-captions=4 missions=0.4 \
        --batch-size 32 --steps "$STEPS" --save-every 500 --muon --learning-rate 2e-3 "$@"
}

if [ $# = 0 ]; then
    data
    training
else
    "$@"
fi
