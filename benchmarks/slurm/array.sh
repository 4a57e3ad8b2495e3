#!/bin/bash
# A bootstrap as a Slurm job array. In the folder of the fit (jaxmed fit DATA.csv ... --save fit.jm):
#   sbatch array.sh            # again after an interruption: what is in the folder is not computed again
#   jaxmed merge replicates    # intervals, and what is missing
#SBATCH --job-name=bootstrap
#SBATCH --array=0-3
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --time=00:30:00
#SBATCH --output=bootstrap-%A-%a.log

jaxmed bootstrap --fit fit.jm --n "${1:-10000}" --seed 1 --shard auto --out replicates
