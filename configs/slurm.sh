#!/usr/bin/env bash
# Machines of 8 GPUs under SLURM:
#   sbatch configs/slurm.sh --config configs/mimic_cxr.yaml --data_dir /data/mimic-cxr-320 --output_dir runs/mimic
# Three minutes before its time is up, or when the job is preempted, the run is asked to stop: it finishes its step,
# writes a checkpoint, and the job goes back into the queue, to go on where it was.
#SBATCH --job-name=tier
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
MAIN_IP=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MAIN_IP
# Torch's launcher would kill the processes 30 seconds after it was asked to stop.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=170
output=$(mktemp)
step=
trap 'kill -TERM $step 2>/dev/null' TERM

# The machine's number is known on the machine alone, so the command is put together there.
srun bash -c 'exec accelerate launch \
    --config_file configs/accelerate/several_nodes.yaml --num_machines "$SLURM_NNODES" \
    --num_processes "$((SLURM_NNODES * SLURM_GPUS_ON_NODE))" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MAIN_IP" train.py --training.resume_from_checkpoint auto "$@"' bash "$@" \
    > >(tee "$output") 2>&1 &
step=$!
wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do  # a signal ended the wait, not the step
    wait "$step"
    code=$?
done
# The launcher keeps the run's exit code to itself, so its words decide.
if grep -q "^Asked to stop" "$output"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
