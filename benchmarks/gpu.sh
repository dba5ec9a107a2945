#!/usr/bin/env bash
# All measurements that need a GPU, in one go of six to eight minutes on an H100 or H200; nothing is fetched. The most
# important part comes first; each has a time limit and leaves a JSON in the output folder; one that fails does not
# stop the next. To resume what was cut off, name the parts.
#
#   benchmarks/gpu.sh [--dry_run] [--output_dir DIR] [--seconds 480] [--checks 'entropy resumed'] \
#       [step smoke training entropy paper evaluation]
#
# --dry_run: tiny models, on whatever device there is, to try the script; --checks: of gpu_smoke.py. Needs torch, torchvision, transformers,
# accelerate, datasets, evaluate and, for one row, open_clip_torch.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
dry_run='' output=${OUT:-runs/gpu} in_all=480 parts=() checks=()
while [ $# -gt 0 ]; do
    case $1 in
        --dry_run) dry_run=--dry_run ;;
        --output_dir) output=$2; shift ;;
        --seconds) in_all=$2; shift ;;
        --checks) read -ra checks <<<"$2"; shift ;;
        step | smoke | training | entropy | paper | evaluation) parts+=("$1") ;;
        *) echo "error: unknown argument $1; see the head of $0" >&2; exit 2 ;;
    esac
    shift
done
[ ${#parts[@]} -gt 0 ] || parts=(step smoke training entropy paper evaluation)
mkdir -p "$output"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
cores=$(nproc)

# One process draws the pictures of the training part, while the GPU has other work.
draw() {
    local number=1280 pixels=256
    [ -z "$dry_run" ] || number=200 pixels=64
    $PYTHON -m modeling_tier.data synthetic "$work/tree" --layout mimic_cxr --num_images $number --image_size $pixels &&
        $PYTHON -m modeling_tier.data prepare mimic_cxr --data_dir "$work/tree" --output_dir "$work/prepared" \
            --size $pixels --section impression_or_findings --num_proc "$cores"
}

step() {
    if [ -n "$dry_run" ]; then
        set -- --patch_sizes 32 --batch_sizes 2 4 --rounds 2 --in_one_process --dry_run
    else
        set -- --patch_sizes 16 --batch_sizes 256 1024 --rounds 4 --compile
    fi
    limited 180 $PYTHON benchmarks/step_cost.py "$@" --output "$output/step_cost.json"
}

smoke() {
    if [ ${#checks[@]} -eq 0 ] && [ -n "$dry_run" ]; then
        checks=(float32 bfloat16 gradient_caching waits evaluation zero_shot_pipeline entropy)
    fi
    [ ${#checks[@]} -eq 0 ] || set -- --checks "${checks[@]}"
    limited 110 $PYTHON benchmarks/gpu_smoke.py $dry_run "$@" --output "$output/smoke.json"
}

training() {
    wait "$drawing" || { echo "the training set could not be drawn"; cat "$work/draw.log"; return 1; }
    local workers=$((cores > 2 ? cores - 2 : 0))
    set -- --config configs/mimic_cxr_vit.yaml --data.options.data_dir="$work/prepared" --model.pretrained=null \
        --model.image_size=224 --model.projection_dim=512 --data.one_image_per_study=false
    if [ -n "$dry_run" ]; then
        set -- "$@" --model.image_size=32 --training.batch_size=4 --training.log_every=4 --turns 1 \
            --model.vision_config='{model_type: clip_vision_model, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32, patch_size: 16, image_size: 32}' \
            --model.text_config='{model_type: clip_text_model, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}'
    else
        set -- "$@" --copies 100 --data.num_workers="$workers" --training.compile=true --training.log_every=30 --turns 3 \
            --model.vision_config='{model_type: clip_vision_model, patch_size: 16}' \
            --model.text_config='{model_type: clip_text_model}'
    fi
    limited 150 $PYTHON benchmarks/training_speed.py "$@" --output "$output/training_speed.json"
}

entropy() {
    set -- --batch_sizes 256 1024 --tokens 77 --patches 196 --rounds 10
    [ -z "$dry_run" ] || set -- --batch_sizes 2 4 --tokens 7 --patches 9 --rounds 2
    limited 50 $PYTHON benchmarks/entropy_cost.py "$@" --output "$output/entropy_cost.json"
}

paper() {
    set -- --batch_sizes 32 256 --precisions bfloat16 --repeats 10
    [ -z "$dry_run" ] || set -- --batch_sizes 2 --tokens 16 --repeats 1 --dry_run
    limited 50 $PYTHON benchmarks/paper_step.py "$@" --output "$output/paper_step.json"
    limited 50 $PYTHON benchmarks/paper_step.py "$@" --channels_last --output "$output/paper_step.json"
}

evaluation() {
    set -- --num_images 128 --copies 16 --batch_size 256 --repeats 1 --num_workers $((cores > 2 ? cores - 2 : 0)) --compile
    [ -z "$dry_run" ] || set -- --num_images 4 --repeats 1 --dry_run
    limited 110 $PYTHON benchmarks/evaluation_speed.py "$@" --output "$output/evaluation_speed.json"
}

# limited SECONDS COMMAND...: no longer than that, nor than what is left of the whole time.
limited() {
    local left=$((in_all - SECONDS)) limit=$1
    shift
    [ -z "$dry_run" ] || limit=$((8 * limit))  # on a busy processor
    [ "$left" -gt 15 ] || { echo "no time is left"; return 124; }
    timeout --kill-after=5 $((limit < left ? limit : left)) "$@"
}

run_parts() {
    local failed=0
    for part in "${parts[@]}"; do
        local started=$SECONDS
        echo "== $part"
        $part
        local status=$?
        [ $status = 0 ] || failed=1
        echo "== $part: exit code $status after $((SECONDS - started)) s"
    done
    return $failed
}

case " ${parts[*]} " in
    *" training "*)
        draw >"$work/draw.log" 2>&1 &
        drawing=$!
        ;;
esac
run_parts > >(tee "$output/log.txt") 2>&1
status=$?
wait "${drawing:-}" 2>/dev/null
echo "$SECONDS s in all; results in $output"
exit $status
