#!/usr/bin/env bash
# What docs/study.md has from a GPU, on one with 16 cores, each part in one call of eight minutes; nothing is fetched.
# What is done when the time is over is kept, and not run again if the folder is there at the next call.
#
#   studies/gpu.sh bench DIR [options of both studies]       ten rows of eight seeds; maps of five, and of the start
#   studies/gpu.sh growth DIR [options of growth.py]         six sizes of three seeds; with more time, five of five
#   studies/gpu.sh costs DIR [options of cost_of_losses.py]  of a step with each local loss; two minutes
#
# Needs torch, transformers, accelerate, datasets and evaluate. SECONDS_IN_ALL (480) and PROCESSES (16) may be set.
# Models stay in DIR/runs; the JSON files are in DIR/json as well, to be taken away alone.
set -uo pipefail
cd "$(dirname "$0")/.."
part=${1:-} output=${2:-}
processes=${PROCESSES:-16}
case $part in
    bench | growth | costs) ;;
    *) echo "error: unknown part '$part'; see the head of $0" >&2; exit 2 ;;
esac
[ -n "$output" ] || { echo "error: no output folder given; see the head of $0" >&2; exit 2; }
shift 2
PYTHON=${PYTHON:-python3}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
mkdir -p "$output/runs" "$output/json"
output=$(cd "$output" && pwd)
ends=$((SECONDS + ${SECONDS_IN_ALL:-480})) status=0

# In the time that is left; what fails does not stop the next.
limited() {
    local left=$((ends - SECONDS))
    [ "$left" -gt 5 ] || { echo "no time for: $*"; status=1; return; }
    timeout --kill-after=5 "$left" "$@" || { echo "not finished: $*"; status=1; }
}

# All but those of models.
keep() {
    cd "$output/runs" || return
    find . -name '*.json' | while read -r file; do
        [ -e "$(dirname "$file")/config.json" ] || cp --parents "$file" "$output/json"
    done
}
trap keep EXIT

case $part in
    bench)
        common=(--output_dir "$output/runs" --seeds 10 11 12 13 14 15 16 17 --processes "$processes")
        # The other rows are in results/trained_start.json.
        rows=(CLIP "TIER 0.2, 0 at temperature 0.5" "VL-CABS, 0.1"
            "sentences as positives, 0.1" "sentences as positives, 1" "VL-CABS over sentences, 0.1"
            "TIER 0.2, 0 at temperature 0.5, unlike maps 0.5" "entropy without the common map, 0.2 at temperature 0.5"
            "entropy of sentences, 0.2 at temperature 0.5" "TIER 0.2, 0 at temperature 0.5, patches over sentences 0.2")
        limited "$PYTHON" studies/trained_start.py "${common[@]}" --rows "${rows[@]}" "$@"
        rows=(start CLIP "TIER 0.2, 0 at temperature 0.5" "VL-CABS, 0.1" "sentences as positives, 0.1"
            "TIER 0.2, 0 at temperature 0.5, unlike maps 0.5")
        limited "$PYTHON" studies/maps_of_sentences.py "${common[@]}" --rows "${rows[@]}" "$@"
        ;;
    growth)
        # The others are in results/growth_cpu.json and results/sizes_cpu.json. Those that take longest come first.
        common=(--output_dir "$output/runs" --processes "$processes")
        large=("16,000 pairs")
        sizes=("4,000 pairs, 224 px, 196 patches" "8,000 pairs, ViT" "4,000 pairs, 224 px, 49 patches"
            "4,000 pairs, 128 px, 256 patches" "4,000 pairs, 128 px, 64 patches")
        limited "$PYTHON" studies/growth.py "${common[@]}" --sizes "${large[@]}" "${sizes[@]}" --seeds 10 11 12 "$@"
        limited "$PYTHON" studies/growth.py "${common[@]}" --sizes "${sizes[@]}" --seeds 10 11 12 13 14 "$@"
        ;;
    costs)
        costs=(--batch_sizes 64 256 --chunk_size 32 --rounds 20)
        limited "$PYTHON" studies/cost_of_losses.py "${costs[@]}" --output "$output/runs/cost_of_losses.json" "$@"
        ;;
esac
exit $status
