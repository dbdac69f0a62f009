# What this site's nodes need before Python starts. slurm/train.sbatch reads it on the first node of the job; what it
# exports reaches every rank. Another file: SITE=path/to/site.sh sbatch slurm/train.sbatch ...
# Everything is commented out: the defaults are an active virtual environment at submission and a network that NCCL finds by itself.

# Python
# module load cuda/12.8 python/3.12
# source "$HOME/venvs/launcher/bin/activate"

# A container instead (the launcher's own bookkeeping runs outside, with any Python from 3.11 on)
# python=(apptainer exec --nv --bind "$PWD" "$HOME/launcher.sif" python)
# srun_options+=(--container-image="$HOME/launcher.sqsh" --container-mounts="$PWD:$PWD" --container-workdir="$PWD")   # pyxis

# Network: the interface that connects the nodes, where the default is a wrong one (`ip -br addr` on a node)
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# export NCCL_DEBUG=INFO

# Processors: by default SLURM gives each rank its share of the node's
# srun_options+=(--cpu-bind=cores --distribution=block:block)

# Compute nodes without a way out: W&B writes beside the run, `wandb sync` sends it from the login node
# export WANDB_MODE=offline
