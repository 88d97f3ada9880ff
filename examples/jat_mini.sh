#!/bin/sh
# The recipe of jat-mini, the agent that comes with the package, from nothing but the package: its data, its training,
# its release and its evaluation.
#
#     sh examples/jat_mini.sh            # all of it, in the folder runs/jat-mini
#     sh examples/jat_mini.sh data       # a part of it
#     SECOND=10000 sh examples/jat_mini.sh second
#     OPTIONS="--batch-size 128 --gradient-accumulation 2 --dataloader_num_workers 12" sh examples/jat_mini.sh  # a GPU
#
# Interrupted, it goes on where it was. What was tried on the way here, how long its parts take, and in what the weights
# of the package differ: jat_mini.md.
#
# shellcheck disable=SC2046,SC2086  # lists of tasks and options become words
set -eu
: "${PYTHON:=python}" "${FOLDER:=runs/jat-mini}" "${WORKERS:=$(getconf _NPROCESSORS_ONLN)}" "${PROCESSES:=1}"
: "${READING:=600}" "${GROUNDING:=2000}" "${FIRST:=8000}" "${LIVES:=1600}"
: "${SECOND:=6500}" "${THIRD:=3000}" "${FOURTH:=3500}" "${FIFTH:=3000}"
: "${DECAY:=3000}"  # steps on which the learning rate falls to 0 at the end of the first and the second
: "${OPTIONS:=}"  # other ones of examples/train.py, for all parts of the training

build() {
    "$PYTHON" -m dataset_builder build --register examples/captions.py --output "$FOLDER/data" \
        --num-workers "$WORKERS" "$@"
}

list() { "$PYTHON" -m dataset_builder list --tasks "$1"; }

networks() { list atari | awk '$3 == "network" {print $1}'; }

# Their data are plans instead of what a script does.
QUICKLY_PLANNED="metaworld-button-press metaworld-button-press-topdown metaworld-door-close metaworld-handle-press
metaworld-handle-pull-side metaworld-window-open"
SLOWLY_PLANNED="metaworld-plate-slide-back metaworld-push"
PLANNED="$QUICKLY_PLANNED $SLOWLY_PLANNED"

# The tasks of a domain but some.
others() { list "$1" | awk '{print $1}' | grep -vxF "$(printf '%s\n' $2)"; }

data() {
    # About every second episode of continuous actions is executed with noise, which the stored actions correct.
    build --tasks $(others metaworld "$PLANNED") --expert tuned --episodes 60 --max-episode-steps 200 --action-noise 0.3
    build --tasks $QUICKLY_PLANNED --expert mpc --episodes 60 --max-episode-steps 120 --action-noise 0.3
    build --tasks $SLOWLY_PLANNED --expert mpc --episodes 30 --max-episode-steps 120 --action-noise 0.3
    build --tasks mujoco --steps 40000 --action-noise 0.1
    build --tasks $(others babyai babyai-move-two-across-s8n9) --episodes 2000
    build --tasks babyai-move-two-across-s8n9 --episodes 4000
    build --tasks $(networks) --steps 10000 --max-episode-steps 4000
    build --tasks missions --episodes 4000
    build --tasks game-captions --episodes 16000
    build --tasks view-captions --episodes 40000
}

# First captions, nearly alone, in 9 minutes on two cores. What stands where in a view is hardly learnt later.
reading() {
    train --output "$FOLDER/reading" --steps "$READING" --lr_scheduler_type constant_with_warmup \
        --hidden-size 256 --num-layers 4 --num-heads 4 --vocab-size 1024 \
        --config action_feedback=none observation_loss_coef=0 mu_law_features=true num_frequencies=5 \
        discrete_embedding_size=16 mission_filters=16 image_size=112 image_encoder_width=12 \
        --task-weights metaworld=0.01 atari=0.01 mujoco=0.01 babyai=0.01 view-captions=10 game-captions=3 missions=1
}

# What BabyAI's missions name is found if rooms with many things are drawn often, and was not among everything else.
grounding() {
    train --output "$FOLDER/grounding" --init-from "$FOLDER/reading" --steps "$GROUNDING" \
        --lr_scheduler_type constant_with_warmup \
        --task-weights metaworld=0.3 atari=0.1 text=1 view-captions=45 mujoco=2 babyai=1 babyai-go-to-local=8 \
        babyai-pickup-loc=8 babyai-action-obj-door=8 babyai-put-next-local=10 babyai-pickup-dist=6 \
        babyai-go-to-red-ball=4 babyai-synth-loc=4 babyai-synth=4 babyai-key-corridor=4 babyai-unlock=4 \
        babyai-go-to-door=3 babyai-pickup-above=3
}

# All tasks; then captions; then all tasks again with lessons of the agents so far, three times; then both once more.
first() {
    train --output "$FOLDER/first" --init-from "$FOLDER/grounding" --steps "$FIRST" $DOWN --task-weights $WEIGHTS
}

# Games' for the most part: how many lives are left is not learnt among everything else either.
lives() { captions first lives; }

lives_again() { captions fourth lives-again; }

captions() {
    soften "$1"
    train --output "$FOLDER/$2" --init-from "$FOLDER/$1-softened" --tasks text --steps "$LIVES" \
        --lr_scheduler_type linear --task-weights game-captions=10 view-captions=2 missions=1
}

# Queries and keys x 0.3: through a trained agent's attention, which is all but certain, a gradient hardly passes.
soften() {
    "$PYTHON" - "$FOLDER/$1" "$FOLDER/$1-softened" <<'END'
import shutil, sys
from modeling_jat import JatModelForCausalLM
from processing_jat import JatProcessor

agent, softened = sys.argv[1:]
model = JatModelForCausalLM.from_pretrained(agent)
for name, weight in model.state_dict().items():
    if "q_proj" in name or "k_proj" in name:
        weight.mul_(0.3)
model.save_pretrained(softened)
JatProcessor.from_pretrained(agent).save_pretrained(softened)
shutil.copy(f"{agent}/training.json", softened)
END
}

# From here on with more of games and of their captions, so that lives stay learnt.
second() {
    train --output "$FOLDER/second" --init-from "$FOLDER/lives" --steps "$SECOND" $DOWN \
        --data "$FOLDER/data" "$FOLDER/lessons-of-first" --task-weights $WEIGHTS atari=1.5 game-captions=60
}

third() {
    refine second third "$THIRD" game-captions=60 $(printf 'metaworld-%s=3 ' $FAILING)
}

fourth() { refine third fourth "$FOURTH" $LATE_WEIGHTS; }

fifth() { refine lives-again fifth "$FIFTH" $LATE_WEIGHTS; }

# An agent into the next one, with the lessons so far.
refine() {
    agent=$1 next=$2 steps=$3
    shift 3
    train --output "$FOLDER/$next" --init-from "$FOLDER/$agent" --steps "$steps" \
        --learning-rate 1.2e-3 --lr_scheduler_type linear --data "$FOLDER/data" "$FOLDER"/lessons-of-* \
        --task-weights $WEIGHTS atari=1.5 "$@"
}

# Where the arm fails, or is slower than the script; and where the third agent is besides.
FAILING="basketball bin-picking box-close disassemble peg-insert-side peg-unplug-side pick-place plate-slide-back-side
push-back soccer stick-pull sweep"
SLIPPING="hammer pick-out-of-hole sweep-into"
LATE_WEIGHTS="game-captions=120 $(printf 'metaworld-%s=3 ' $FAILING $SLIPPING)"

# Lessons are what the agent's experts would do where it gets itself: in MuJoCo's bodies that fall, which those of the
# experts never do, where the arm misses what it reaches for, and in the missions that take long.
lessons_of_first() {
    lesson first --tasks mujoco-ant mujoco-doublependulum mujoco-hopper mujoco-pendulum --steps 20000 \
        --max-episode-steps 600
    lesson first --tasks mujoco-halfcheetah mujoco-humanoid mujoco-standup mujoco-walker --steps 50000 \
        --max-episode-steps 600
    lesson first --tasks $(printf 'metaworld-%s ' $FAILING hammer lever-pull push push-wall sweep-into \
        pick-out-of-hole) --expert tuned --steps 5000 --max-episode-steps 250
    lesson first --tasks $(printf 'babyai-%s ' move-two-across-s8n9 boss-level boss-level-no-unlock mini-boss-level \
        unlock unlock-to-unlock go-to-imp-unlock open-two-doors open-doors-order-n4 synth synth-loc synth-seq \
        key-corridor go-to go-to-seq put-next put-next-local pickup-loc) --episodes 300 --max-episode-steps 400
}

# Of other starts than the first ones, where it is weakest.
lessons_of_second() {
    lesson second --seed 2 --tasks mujoco-doublependulum mujoco-hopper mujoco-halfcheetah mujoco-standup \
        --steps 30000 --max-episode-steps 600
    lesson second --seed 2 --tasks $(printf 'metaworld-%s ' $FAILING) --expert tuned --steps 5000 \
        --max-episode-steps 250
    lesson second --seed 2 --tasks $(printf 'babyai-%s ' move-two-across-s8n9 boss-level boss-level-no-unlock \
        mini-boss-level unlock go-to-imp-unlock synth-loc synth-seq) --episodes 300 --max-episode-steps 400
}

lessons_of_third() {
    lesson third --seed 3 --tasks $(printf 'metaworld-%s ' $FAILING $SLIPPING) --expert tuned --steps 5000 \
        --max-episode-steps 250
}

lesson() {
    agent=$1
    shift
    "$PYTHON" examples/dagger.py --model "$FOLDER/$agent" --dtype float16 --output "$FOLDER/lessons-of-$agent" \
        --num-workers "$WORKERS" "$@"
}

WEIGHTS="babyai=1.5 babyai-[bmpsu]*=4 babyai-go-to=4 babyai-go-to-seq=5 babyai-go-to-local=3 babyai-pickup-loc=4
babyai-put-next-local=4 babyai-open-doors-order-n4=3 babyai-open-two-doors=3 babyai-key-corridor=5
babyai-go-to-imp-unlock=6 babyai-move-two-across-s8n9=10 mujoco=5 mujoco-hopper=7 mujoco-ant=8
mujoco-doublependulum=10 mujoco-halfcheetah=14 mujoco-standup=12 mujoco-walker=14 mujoco-humanoid=8 metaworld=1.2
$(printf '%s=3 ' $PLANNED) atari=0.4 view-captions=22 game-captions=3 missions=1.5"

DOWN="--lr_scheduler_type warmup_stable_decay --lr_scheduler_kwargs {\"num_decay_steps\":$DECAY}"

train() {
    "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$PROCESSES" examples/train.py \
        --register examples/captions.py --data "$FOLDER/data" --window 64 --image-window 32 --prompt-fraction 0.9 \
        --batch-size 32 --save-every 250 --max_grad_norm 0.1 --muon --learning-rate 2e-3 --warmup_steps 50 $OPTIONS "$@"
}

training() {
    reading
    grounding
    first
    lessons_of_first
    lives
    second
    lessons_of_second
    third
    lessons_of_third
    fourth
    lives_again
    fifth
}

# The weights in half precision, which `from_pretrained` reads as float32; their code comes with the package. Acting
# looks back over 32 timesteps.
release() {
    mkdir -p "$FOLDER/jat-mini"
    cp "$FOLDER"/fifth/*.json "$FOLDER/jat-mini"
    "$PYTHON" - "$FOLDER/fifth" "$FOLDER/jat-mini" <<'END'
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
