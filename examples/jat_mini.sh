#!/bin/sh
# The recipe of jat-mini, the agent that comes with the package, from nothing but the package: its data, its training,
# its release and its evaluation.
#
#     sh examples/jat_mini.sh            # all of it, in the folder runs/jat-mini
#     sh examples/jat_mini.sh data       # a part of it
#     STEPS=10000 sh examples/jat_mini.sh training --learning-rate 5e-4
#     OPTIONS="--batch-size 128 --gradient-accumulation 2 --dataloader_num_workers 12" sh examples/jat_mini.sh  # a GPU
#
# Interrupted, it goes on where it was. By what their parts took, on 2 cores with PROCESSES=2, the data take an hour and a
# half, the trainings before the lessons 80 minutes, and the lessons half an hour.
#
# The weights of the package came about in pieces, before normed_embeddings and view-captions, which are in what follows
# below (see the end of the log):
#
# - 10,600 steps of earlier recipes, see the log, 1,750 of grounding and 2,500 of all tasks; from there 2,250 more, of
#   which the last 700 had lessons, and then with lessons and tuned scripts 5,300 steps of two processes on two cores,
#   the last 2,200 down to 0. Some 7 core-hours.
# - 1,900 steps of two batches of 128 windows at a constant learning rate in four minutes on an H200, without lessons
#   but for a few. The data were built beside it on 16 cores: 800 episodes of each BabyAI task, 40 of each of
#   Meta-World, 40,000 timesteps of each MuJoCo task.
# - 1,800 steps of two processes on two cores with lessons from there; the mean of the weights before and after them;
#   1,800 more from 1.2e-3 down to 0. Some 100 core-minutes.
# - 3,400 steps on two cores with more data of BabyAI and plans in Meta-World, from 1.2e-3 down to 0. Again some 100.
# - 2,500 steps of windows of 128 instead of 64 timesteps with more plans and lessons, from 1.2e-3 down to 0, some 85
#   core-minutes; the mean of the weights before and after them.
# - A smaller encoder of frames (image_encoder_width=16) instead of the first one, trained alone on 10,000 timesteps of
#   each game: 1,900 steps of two batches of 32 windows of 32 timesteps at 2e-3, the last 1,200 down to 0, some 80
#   core-minutes.
#
# The data were fewer than below: on the two cores 1,000 episodes of each BabyAI task, in the end 2,000 to 2,200 of 18
# of them and 4,000 of move-two-across, 30,000 timesteps of each MuJoCo task and 5,000 of each game, 4,000 texts, 24 to
# 72 episodes of plans. The lessons came in five rounds: in all 72,000 to 82,000 timesteps of the bodies that have 50,000
# below, 42,000 of ant and doublependulum, 10,000 of hopper and pendulum, 2,500 to 5,500 of each of Meta-World's tasks
# below, and up to 240 episodes of 18 BabyAI tasks and 150 to 350 more of ten of them. In one go, as below, it was not
# run yet.
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
#   disassemble 0.17). Return, 0 for random and 1 for the expert: BabyAI 0.60, IQM of the tasks 0.60 (39 tasks, 8 episodes;
#   move-two-across 0.0, put-next-local 0.11), MuJoCo 0.29, IQM 0.19 (11, 8 episodes), which is why it is drawn more
#   often below. Atari and texts were not measured. All losses were still falling; its weights are not kept.
# - What holds BabyAI back is to find what the mission names: after 4,000 steps the losses are lowest where there is one
#   thing to go to (0.12) and highest in a room with many (go-to-local 0.61, pickup-loc 0.64). Filters that are made of
#   the mission (mission_filters) find it. 150 s on one core on go-to-local, pickup-loc and go-to-door, 4 layers of 256,
#   32 windows of 64, Muon, one seed each; cross-entropy in training at the end, and in 18 windows of test episodes:
#
#       plain, 598 steps                                            0.41   0.37
#       8 heads of scaled products of mission and cells, 521        0.31   0.35
#       8 filters, 562 steps                                        0.14   0.19
#       16 filters, and ReLU behind them, 569 steps                 0.09   0.12
#
#   A gated layer of 256 beside the plain one is no better than that after 90 s on all of BabyAI.
# - One domain drowns the others: at a trained network the gradient of the trunk is 2.2 for a batch of Meta-World, 0.18
#   for one of BabyAI, 0.16 of MuJoCo, 0.28 of Atari. With all of them clipped to 0.1 instead of 1 they count alike; the
#   training losses at a constant 2e-3, from the 500 steps before to the 500 after: Meta-World 1.92 to 1.60, MuJoCo 0.24
#   to 0.21, BabyAI 0.40 to 0.38, Atari 1.49 to 1.42.
# - The first weights of the package: 6,000 steps without mission_filters and with gradients clipped to 1, 1,500 with new
#   filters, 500 with gradients clipped to 0.1, and, with a new encoder of discrete observations and babyai=3, 2,600 with
#   the last 1,400 down to 0. Meta-World success 0.97, BabyAI 0.63 (IQM of the tasks 0.64), MuJoCo 0.44 (0.32), 20
#   episodes of each task; 15 of 20 games above random, three at the human score. In BabyAI the rooms with many things
#   are as bad as before the filters, on test episodes too: a cross-entropy of 0.44 in go-to-local.
# - So the rooms with many things come first (grounding, below). From those weights, 1,750 steps in 16 minutes; training
#   losses of the first and the last 250: go-to-local 0.53 and 0.23, pickup-loc 0.55 and 0.28, put-next-local 0.60 and
#   0.33. Then, among all tasks, they go on to 0.12, 0.17 and 0.19. Filters that read the mission by a convolution and
#   gates, the same ones at all of its places, are no better than one matrix for the whole of it: 0.42 and 0.40 after 400
#   steps from new filters on four of these tasks, one seed each. Nor are batches of 128 for these short episodes: 0.37
#   after 85 s, 0.40 after 95 s of batches of 32.
# - Most of what small errors spoil comes with the learning rate's way down to 0; training losses before it, and at its
#   end 1,850 steps later: MuJoCo 0.19 and 0.05, Meta-World 2.0 and 0.9, BabyAI 0.22 and 0.17.
# - The second weights of the package: Meta-World success 0.94, BabyAI 0.79 (IQM of the tasks 0.83, of the episodes
#   0.96), MuJoCo 0.59 (0.55 and 0.48), 20 episodes of each task; 16 of 20 games above random, five at the human score;
#   0.46 of 400 captions exact, 0.56 of the next tokens of missions. Meta-World's returns over 100 timesteps are the
#   script's or better on 8 tasks: an imitation of the script is hardly ever faster than it, hence the expert tuned.
# - What holds MuJoCo back is not the loss but where the agent gets itself. With the second weights the doublependulum's
#   action is wrong by 0.06 in test episodes (root mean square, of a range of 2) and by 0.1 to 1.0 within the first steps
#   of its own; the cheetah lies on its back after 100, the walker's error goes from 0.04 to 0.4 until it falls. Hence
#   the lessons; the doublependulum's training loss on them begins at 1.6 and ends at 0.02.
# - The third weights of the package, by lessons, tuned scripts and 12,850 more batches: Meta-World success 0.96,
#   returns the script's or better on 33 tasks, within two standard errors on 45; BabyAI 0.85 (0.93 and 0.98), MuJoCo
#   0.80 (0.84 and 0.79), 20 episodes of each task; 16 of 20 games above random, eight at the human score; 0.50 of 400
#   captions exact. Doublependulum 0.03 before and 1.00 then, ant 0.56 and 1.01, walker 0.31 and 0.67, halfcheetah 0.08
#   and 0.52; key-corridor 0.60 and 0.90, open-two-doors 0.56 and 0.95. Weakest are humanoid 0.08, move-two-across 0.15,
#   standup 0.28, boss levels 0.4, and success in hammer, 0.40.
# - Larger batches: on an H200 a step of two batches of 128 windows takes 0.1 s, on two cores one of two batches of 32
#   takes 0.5 to 0.8 s. Training losses after 1,900 of them at a constant 2e-3: BabyAI 0.114 (0.137 at the end of the
#   third weights' training, with its learning rate at 0), move-two-across 0.32 (0.44), Meta-World 1.2 (1.35). With
#   batches of 32 at 2e-3 they rise again, to 0.15 and 1.9, lessons included.
# - The mean of the weights before and after 1,800 such steps is better than either; losses in 60 batches, lessons
#   included, before, after, and of the mean: BabyAI 0.167, 0.182, 0.161; MuJoCo 0.124, 0.112, 0.089; Atari 1.17, 1.18,
#   1.14; Meta-World 1.50, 1.85, 1.42. Hence a lower learning rate from there on.
# - The fourth weights of the package: Meta-World success 0.98, returns the script's or better on 34 tasks, within two
#   standard errors on 49; BabyAI 0.86 (IQM of the tasks 0.94, of the episodes 0.99), MuJoCo 0.96 (0.90 and 0.94), or
#   0.80 if none counts for more than 1 (0.75 before), 20 episodes of each task; 16 of 20 games above random, eight at
#   the human score; 0.50 of 400 captions exact, 0.58 of the next tokens of missions. Before and now, after larger
#   batches and more lessons, which were not tried one without the other: success in hammer 0.40 and 1.00, in
#   peg-unplug-side 0.65 and 0.80; standup 0.28 and 0.51, walker 0.67 and 0.81, halfcheetah 0.52 and 0.64; boss levels
#   0.36 and 0.41, now 0.48 and 0.56; pendulum 0.85 and 2.12, as it stands for all of the 1,000 timesteps now. The
#   humanoid still falls, 0.05.
# - More data of BabyAI: with the fourth weights the losses in training and in test episodes are 0.29 and 0.46 in
#   move-two-across, 0.09 and 0.13 in put-next-local, 0.11 and 0.16 in synth. With two to four times the episodes (and
#   3,400 steps): 0.31 and 0.38, 0.09 and 0.12, 0.11 and 0.15.
# - Where the scripts are slow by design, plans (mpc) can be imitated, though they are partly chance. From the fourth
#   weights, 300 steps on 24 episodes of 120 timesteps of three tasks: returns of 636, 390 and 731 in handle-press,
#   window-open and plate-slide-back instead of 284, 138 and 364, 20 episodes each. Success is less sure: see below.
# - An agent that is told its task has 96 positions, and windows of 64 and a prompt never reach the last ones. Acting
#   looks back over 64 since (context_window). It makes no difference: BabyAI 0.874 and 0.875, MuJoCo 1.01 and 1.00.
# - The likeliest actions of BabyAI's 13 weakest tasks instead of sampled ones: 0.61 and 0.64, 20 episodes each.
# - The fifth weights of the package: Meta-World success 0.965 (pick-out-of-hole, 0.65, and button-press, 0.70, suffer
#   from the plans: both were 1), returns the script's or better on 37 tasks, within two standard errors on 49; BabyAI
#   0.874 (IQM of the tasks 0.955, of the episodes 0.99), MuJoCo 1.01 (0.98 and 0.98), or 0.81 if none counts for more
#   than 1, 20 episodes of each task; 18 of 20 games above random, eight at the human score; 0.515 of 400 captions exact,
#   0.58 of the next tokens of missions. Weakest are the humanoid, 0.04, and move-two-across, 0.17.
# - BabyAI's long missions, which take the expert up to some 200 timesteps, are not held back by the window. 2,500 steps
#   on windows of 128 timesteps, with new lessons, and then the 13 weakest missions, looking back over 128, 64, 32 and
#   16: 0.60, 0.61, 0.64, 0.62 (20 episodes each, standard error about 0.03), and 0.67 before. The mean of the weights
#   before and after is as good in BabyAI as those before, 0.66 looking back over 32, and elsewhere as those after. All
#   of this, and what follows, on the same starts.
# - The sixth weights of the package: Meta-World success 0.96 (pick-out-of-hole 0.35, button-press 0.75), returns the script's
#   or better on 42 tasks, within two standard errors on 48; BabyAI 0.87 (IQM of the tasks 0.95, of the episodes 0.99),
#   MuJoCo 1.05 (1.04 and 1.01), or 0.85 if none counts for more than 1, 20 episodes of each task; 18 of 20 games above
#   random, nine at the human score; 0.52 of 400 captions exact, 0.59 of the next tokens of missions. Before and now:
#   halfcheetah 0.62 and 0.84, standup 0.50 and 0.58, move-two-across 0.17 and 0.27, synth 0.78 and 0.67, success in
#   disassemble 0.75 and 0.80, in assembly 1.00 and 0.85. More plans did not help pick-out-of-hole: 0.65 and 0.35; of
#   the plans themselves a quarter succeed within 120 timesteps, and 0.80 of the tuned script's episodes. It is shown the
#   script's again.
# - In these weights the embeddings of observations are 450 to 1,200 long, those of images' patches 380, and positions
#   3.5: when something was seen, and where in an image, can hardly be told. Hence normed_embeddings. From random weights,
#   900 steps of 32 windows of seven BabyAI tasks (move-two-across, unlock, key-corridor, go-to-seq, go-to-local,
#   pickup-loc, go-to-door), five minutes on one core, the last 300 down to 0, one seed each; the last 50 losses, and
#   the mean of the returns, 20 episodes each:
#
#       not normed, 2e-3                                            0.311  0.59
#       normed, 2e-3                                                0.229  0.67
#       normed, 4e-3                                                0.303  not measured
#       normed, 2e-3, the norm's gain 0.02 at the start             0.234  not measured
#
#   Norming the embeddings of those weights, and dividing what the blocks add by as much, is no way there: the losses of
#   eight of BabyAI's harder tasks after 500 steps from 1.2e-3 down to 0 are 0.36 instead of 0.29.
# - image_encoder_width=16 makes acting in Atari's games faster: 3,475 actions/s in 32 environments instead of 2,234 on 2
#   cores, 373 instead of 330 in one (random weights, the processor included, medians of one run).
# - With both, from random weights on two cores: 1,750 steps of all tasks, 800 of grounding, 12,000 of all tasks, the last
#   4,000 down to 0, each of two batches of 32; two and a half hours. Meta-World success 0.97, returns the script's or
#   better on 39 tasks, within two standard errors on 46; BabyAI 0.87 (IQM of the episodes 0.99), MuJoCo 0.79 (0.75), 20
#   episodes of each task. Of 400 captions of games 0.785 are exact, of 500 of views 0.35: where things stand can be told
#   now. Games were not played. MuJoCo is behind the weights of the package (halfcheetah 0.28, hopper 0.36, standup
#   0.15), whose lessons were their own; these are not in the package.
# - BabyAI's 13 weakest missions with these weights, looking back over 8, 16, 24 and 32 timesteps, starts of another
#   seed: 0.71, 0.69, 0.70, 0.69. Memory is not what they lack, though order can be told.
# - The weights of the package are the sixth with another encoder of frames, trained alone. Its training loss goes from
#   1.24 after 700 steps at 2e-3 to 1.06 at the end. 20 episodes of each game on the same starts: 19 of 20 above random,
#   before 18; eight at the human score, before nine (James Bond 283, before 395; human 303). Pong 0.8 and before -9.8,
#   Breakout 4.5 and 2.5. The 37 games that it has not seen were played for the first time: four are above the published
#   random scores, but of these only Pitfall is above the random agent measured here; 17 are below the published ones by
#   three standard errors. The other tasks do not use this encoder: returns in BabyAI are the same; where actions are
#   continuous rounding tells them apart, halfcheetah 0.65 and before 0.84, MuJoCo 1.03 and 1.05.
# - What stands where in views is learnt fast from nothing: 350 batches of 64 captions at 2e-3, six minutes on one core,
#   end at a loss of 0.19 a token in training. The weights of the package have 0.75 on test rows, and hardly get away
#   from it: after 200 such batches 0.71, with a ViT of two layers before their trunk, or 0.83 where only the ViT changes;
#   that one wrote 0.19 of 500 views exactly after 1,500 steps, as many as show nothing. Hence the reading, which comes
#   first below.
set -eu
: "${PYTHON:=python}" "${FOLDER:=runs/jat-mini}" "${WORKERS:=$(getconf _NPROCESSORS_ONLN)}"
: "${READING:=600}" "${GROUNDING:=2000}" "${FIRST:=4000}" "${STEPS:=12000}" "${DECAY:=3000}" "${PROCESSES:=1}"
: "${OPTIONS:=}"  # other ones of examples/train.py, for all parts of the training

build() {
    "$PYTHON" -m dataset_builder build --register examples/captions.py --output "$FOLDER/data" \
        --num-workers "$WORKERS" "$@"
}

list() { "$PYTHON" -m dataset_builder list --tasks "$1"; }

networks() { list atari | awk '$3 == "network" {print $1}'; }

# Their data are plans instead of what a script does.
PLANNED="metaworld-button-press metaworld-button-press-topdown metaworld-door-close metaworld-handle-press
metaworld-handle-pull-side metaworld-plate-slide-back metaworld-push metaworld-sweep-into metaworld-window-open"

# The tasks of a domain but some.
# shellcheck disable=SC2086
others() { list "$1" | awk '{print $1}' | grep -vxF "$(printf '%s\n' $2)"; }

data() {
    # About every second episode of continuous actions is executed with noise, which the stored actions correct.
    # shellcheck disable=SC2046
    build --tasks $(others metaworld "$PLANNED") --expert tuned --episodes 60 --max-episode-steps 200 --action-noise 0.3
    # shellcheck disable=SC2086
    build --tasks $PLANNED --expert mpc --episodes 60 --max-episode-steps 120 --action-noise 0.3
    build --tasks mujoco --steps 40000 --action-noise 0.1
    # shellcheck disable=SC2046
    build --tasks $(others babyai babyai-move-two-across-s8n9) --episodes 2000
    build --tasks babyai-move-two-across-s8n9 --episodes 4000
    # shellcheck disable=SC2046
    build --tasks $(networks) --steps 10000 --max-episode-steps 4000
    build --tasks game-captions missions --episodes 4000
    build --tasks view-captions --episodes 40000
}

# What the agent's experts would do where it gets itself: in MuJoCo's bodies that fall, which those of the experts never
# do, where the arm misses what it reaches for, and in the missions that take long.
lessons() {
    lesson --tasks mujoco-ant mujoco-doublependulum mujoco-hopper mujoco-pendulum --steps 10000 --max-episode-steps 600
    lesson --tasks mujoco-halfcheetah mujoco-humanoid mujoco-standup mujoco-walker --steps 50000 --max-episode-steps 600
    # shellcheck disable=SC2046
    lesson --tasks $(printf 'metaworld-%s ' hammer basketball stick-pull box-close peg-unplug-side peg-insert-side \
        disassemble sweep plate-slide-back-side bin-picking push-back push-wall soccer lever-pull) --expert tuned \
        --steps 5000 --max-episode-steps 250
    # shellcheck disable=SC2046
    lesson --tasks $(printf 'babyai-%s ' move-two-across-s8n9 boss-level boss-level-no-unlock mini-boss-level unlock \
        unlock-to-unlock go-to-imp-unlock open-two-doors open-doors-order-n4 synth synth-loc synth-seq key-corridor \
        go-to go-to-seq put-next put-next-local pickup-loc) --episodes 300 --max-episode-steps 400
}

lesson() {
    "$PYTHON" examples/dagger.py --model "$FOLDER/first" --dtype float16 --output "$FOLDER/lessons" \
        --num-workers "$WORKERS" "$@"
}

# Four parts. First captions, nearly alone. What BabyAI's missions name is found in 1,750 steps if rooms with many things
# are drawn often, and was not in 2,600 among everything else. Then all tasks, until there is an agent to give lessons
# to; then all tasks and the lessons.
training() {
    train --output "$FOLDER/reading" --steps "$READING" --lr_scheduler_type constant_with_warmup \
        --hidden-size 256 --num-layers 4 --num-heads 4 --vocab-size 1024 \
        --config action_feedback=none observation_loss_coef=0 mu_law_features=true num_frequencies=5 \
        discrete_embedding_size=16 mission_filters=16 image_size=112 image_encoder_width=16 \
        --task-weights metaworld=0.01 atari=0.01 mujoco=0.01 babyai=0.01 view-captions=10 game-captions=3 missions=1
    train --output "$FOLDER/grounding" --init-from "$FOLDER/reading" --steps "$GROUNDING" \
        --lr_scheduler_type constant_with_warmup \
        --task-weights metaworld=0.3 atari=0.1 text=1 view-captions=45 mujoco=2 babyai=1 babyai-go-to-local=8 \
        babyai-pickup-loc=8 babyai-action-obj-door=8 babyai-put-next-local=10 babyai-pickup-dist=6 \
        babyai-go-to-red-ball=4 babyai-synth-loc=4 babyai-synth=4 babyai-key-corridor=4 babyai-unlock=4 \
        babyai-go-to-door=3 babyai-pickup-above=3
    # shellcheck disable=SC2086
    train --output "$FOLDER/first" --init-from "$FOLDER/grounding" --steps "$FIRST" \
        --lr_scheduler_type constant_with_warmup --task-weights $WEIGHTS
    lessons
    # shellcheck disable=SC2086
    train --output "$FOLDER/model" --init-from "$FOLDER/first" --data "$FOLDER/data" "$FOLDER/lessons" \
        --steps "$STEPS" --lr_scheduler_type warmup_stable_decay \
        --lr_scheduler_kwargs "{\"num_decay_steps\": $DECAY}" --task-weights $WEIGHTS "$@"
}

# shellcheck disable=SC2086
WEIGHTS="babyai=1.5 babyai-[bmpsu]*=4 babyai-go-to=4 babyai-go-to-seq=5 babyai-go-to-local=3 babyai-pickup-loc=4
babyai-put-next-local=4 babyai-open-doors-order-n4=3 babyai-open-two-doors=3 babyai-key-corridor=5
babyai-go-to-imp-unlock=6 babyai-move-two-across-s8n9=10 mujoco=5 mujoco-hopper=7 mujoco-ant=8
mujoco-doublependulum=10 mujoco-halfcheetah=14 mujoco-standup=12 mujoco-walker=14 mujoco-humanoid=8 metaworld=1.2
$(printf '%s=3 ' $PLANNED) atari=0.4 view-captions=22 game-captions=3 missions=1.5"

train() {
    # shellcheck disable=SC2086
    "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$PROCESSES" examples/train.py \
        --register examples/captions.py --data "$FOLDER/data" --window 64 --image-window 32 --prompt-fraction 0.9 \
        --batch-size 32 --save-every 250 --max_grad_norm 0.1 --muon --learning-rate 2e-3 --warmup_steps 50 $OPTIONS "$@"
}

# The weights in half precision, which `from_pretrained` reads as float32; their code comes with the package. Acting
# looks back over 32 timesteps.
release() {
    mkdir -p "$FOLDER/jat-mini"
    cp "$FOLDER"/model/*.json "$FOLDER/jat-mini"
    "$PYTHON" - "$FOLDER/model" "$FOLDER/jat-mini" <<'END'
import json, sys
from pathlib import Path
from safetensors.torch import load_file, save_file

model, release = map(Path, sys.argv[1:])
weights = load_file(model / "model.safetensors")
save_file({name: weight.half() for name, weight in weights.items()}, release / "model.safetensors", {"format": "pt"})
for path in (release / "config.json", release / "processor_config.json"):
    config = json.loads(path.read_text())
    if path.name == "config.json":
        config["context_window"] = 32
    for part in (config, config.get("image_processor", {})):
        part.pop("auto_map", None)
    path.write_text(json.dumps(config, indent=2) + "\n")
END
}

evaluation() {
    "$PYTHON" examples/evaluate.py --model "$FOLDER/jat-mini" --prompt --tasks all --episodes 20 --num-envs 20 \
        --num-workers "$WORKERS" "$@"
    "$PYTHON" examples/evaluate_text.py --register examples/captions.py --model "$FOLDER/jat-mini" \
        --data "$FOLDER/data" --tasks game-captions view-captions missions
    "$PYTHON" examples/report.py --register examples/captions.py "$FOLDER/jat-mini"
}

if [ $# = 0 ]; then
    data
    training
    release
    evaluation
else
    "$@"
fi
