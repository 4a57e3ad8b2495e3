#!/bin/bash
# Claim: a bootstrap as a Slurm job array (array.sh) survives a killed task, goes on when it is submitted again, and
# gives the replicates of a single process, bit by bit.
#
#   benchmarks/slurm/run.sh [N]    # N replicates in all, 60,000 unless given; with jaxmed on the PATH
#
# Starts a Slurm of one node with munged, slurmctld and slurmd, all in a temporary folder and on the loopback address,
# as root or any user, and removes it whatever happens. Debian, Ubuntu: apt install slurm-wlm munge. Exit code 0: all
# as claimed, or no Slurm on this machine (a line "SKIPPED: ..."); 1: something is not.
set -euo pipefail

n=${1:-60000}
here=$(cd "$(dirname "$0")" && pwd)
data=$here/../../jaxmed/datasets/example.csv
PATH=$PATH:/usr/sbin:/usr/local/sbin

say() { echo "[$(printf %3d "$SECONDS") s] $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }

for program in sbatch squeue scancel scontrol sinfo slurmctld slurmd munged munge; do
    if ! command -v "$program" >/dev/null; then
        echo "SKIPPED: $program is not installed (Debian, Ubuntu: apt install slurm-wlm munge)"
        exit 0
    fi
done
if ! jaxmed --version >/dev/null || ! python -c 'import jaxmed'; then fail "jaxmed or its python is not on the PATH"; fi
for name in "${!SLURM_@}" "${!SBATCH_@}" "${!SQUEUE_@}" "${!SCANCEL_@}"; do unset "$name"; done # of another Slurm

folder=$(mktemp -d /tmp/jaxmed-slurm.XXXXXX) # short, since the name of a socket may have 107 characters
daemons=()
clean() {
    local code=$? pid
    trap '' INT TERM
    set +e
    if ((code)); then find "$folder" -name '*.log' -exec tail -v -n 15 {} + >&2; fi
    if ((${#daemons[@]} > 2)); then
        scancel --quiet --user="$(id -un)" 2>/dev/null
        for _ in {1..20}; do
            [[ -z $(squeue --noheader 2>/dev/null) ]] && break
            sleep 1
        done
    fi
    for pid in "${daemons[@]}"; do kill "$pid"; done 2>/dev/null
    for _ in {1..40}; do
        [[ -z $(jobs -pr) ]] && break
        sleep 0.5
    done
    for pid in "${daemons[@]}"; do kill -9 "$pid"; done 2>/dev/null
    wait 2>/dev/null
    rm -rf "$folder"
    say "stopped the daemons, removed $folder"
    exit "$code"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

until_true() { # SECONDS WHAT COMMAND...: wait for a command to succeed
    local last=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < last)) || fail "waited in vain for $what"
        sleep 0.2
    done
}

await_job() { # NUMBER: wait for a job to end, sooner than sbatch --wait sees it
    gone() { [[ -z $(squeue --noheader --jobs="$1" 2>/dev/null) ]]; }
    until_true 3600 "job $1" gone "$1"
}

# --- a Slurm of one node ---------------------------------------------------------------------------------------------
mkdir -p "$folder"/{state,spool,work}
chmod 755 "$folder" "$folder"/{state,spool,work}
(umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
read -r port_control port_node < <(python -c '
import socket
both = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(each.getsockname()[1] for each in both))')
export SLURM_CONF=$folder/slurm.conf
cat >"$SLURM_CONF" <<CONF
ClusterName=jaxmed
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$port_control
SlurmdPort=$port_node
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2
MailProg=/bin/true
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=86400
NodeName=localhost NodeAddr=127.0.0.1 CPUs=$(getconf _NPROCESSORS_ONLN) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF

say "$(slurmctld -V), $(getconf _NPROCESSORS_ONLN) cores, $(jaxmed --version), in $folder"
# setsid: Ctrl-C is for this script, which needs them to cancel jobs
setsid munged --foreground --num-threads=2 --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --seed-file="$folder/munged.seed" >"$folder/munged.log" 2>&1 &
daemons+=($!)
until_true 30 munged munge --no-input --socket="$folder/munge.socket"
setsid slurmctld -D >"$folder/slurmctld.log" 2>&1 &
daemons+=($!)
until_true 30 slurmctld scontrol ping
for plugin in disabled cgroup/v1 autodetect; do # containers have no cgroups to give; Slurm before 23 cannot do without
    echo "CgroupPlugin=$plugin" >"$folder/cgroup.conf"
    setsid slurmd -D >"$folder/slurmd.log" 2>&1 &
    daemons[2]=$!
    settled() { [[ $(sinfo --noheader --format=%T) == idle ]] || ! kill -0 "${daemons[2]}"; }
    until_true 60 "the node" settled
    kill -0 "${daemons[2]}" 2>/dev/null && break
done
kill -0 "${daemons[2]}" 2>/dev/null || fail "slurmd does not start"
say "munged, slurmctld and slurmd are up: $(sinfo --noheader --format='partition %P, node %N, %c CPUs, %T')"

# --- what a task of an array is told, and what --shard auto makes of it -----------------------------------------------
cd "$folder/work"
cat >told.sh <<'JOB'
#!/bin/bash
#SBATCH --array=3-9:2
#SBATCH --output=told-%a.log
variables=$(env | grep -E '^SLURM_(ARRAY_TASK|JOB_ID|PROCID|NTASKS|STEP_NUM_TASKS)' | sort | paste -sd' ')
python -c 'import os; from jaxmed._cli.schedulers import find_shard; print(*find_shard("auto", os.environ), end="")'
echo " <- $variables"
JOB
say "variables in an array 3-9:2, as part and parts <- variables:"
await_job "$(sbatch --parsable told.sh)"
sed 's/^/        /' told-3.log told-5.log told-7.log told-9.log
[[ $(cut -c1-3 told-3.log told-5.log told-7.log told-9.log | paste -sd,) == "0 4,1 4,2 4,3 4" ]] ||
    fail "--shard auto did not find parts 0 to 3 of 4"

# --- the array, a killed task, the array again ------------------------------------------------------------------------
say "jaxmed fit"
jaxmed fit "$data" --x x --m m --y y --cluster id --save fit.jm --quiet
job=$(sbatch --parsable "$here/array.sh" "$n")
say "submitted array.sh as job $job: $n replicates in 4 tasks"
written() { compgen -G "replicates/replicates-0000000000-*.parquet"; }
written_or_gone() { written || [[ -z $(squeue --noheader --jobs="${job}_0") ]]; }
until_true 600 "the first file of task 0" written_or_gone
[[ $(squeue --noheader --format=%T --jobs="${job}_0") == RUNNING ]] ||
    fail "task 0 ended before it could be killed; give more replicates: $0 $((4 * n))"
shown() { scontrol --oneliner show job "$1" | grep -oE "(^| )($2)=[^ ]*" | paste -sd' ' | tr -s ' ' | sed 's/^ //'; }
number=$(shown "${job}_0" JobId)
mapfile -t pids < <(scontrol listpids "${number#JobId=}" localhost | awk 'NR > 1 && $1 > 1 { print $1 }')
kill -9 "${pids[@]}" # the script and its jaxmed, as the kernel does when memory runs out
say "killed task 0 (signal 9) after its first file: $(written)"
await_job "$job"
for task in 0 1 2 3; do
    say "task $task: $(shown "${job}_$task" 'JobState|ExitCode')," \
        "log: $(tail -n 1 "bootstrap-$job-$task.log" | grep . || echo none)"
done
[[ $(shown "${job}_0" 'JobState|ExitCode') == "JobState=FAILED ExitCode=0:9" ]] || fail "task 0 did not end by signal 9"

code=0
jaxmed merge replicates --quiet 2>merge.log || code=$?
say "jaxmed merge, exit code $code: $(cat merge.log)"
[[ $code == 1 && $(<merge.log) == *"are missing"* ]] || fail "the gap was not reported with exit code 1"

sha256sum replicates/*.parquet >kept.sha256
began=$SECONDS
again=$(sbatch --parsable "$here/array.sh" "$n")
await_job "$again"
say "submitted array.sh again as job $again, done in $((SECONDS - began)) s"
sha256sum --check --quiet kept.sha256 || fail "files of the first run were changed"
say "$(wc -l <kept.sha256) files were kept as they were; new ones:"
comm -13 <(cut -c67- kept.sha256 | sort) <(compgen -G "replicates/*.parquet" | sort) | sed 's/^/        /'

# --- against a single process -----------------------------------------------------------------------------------------
jaxmed merge replicates --out merged.parquet --json merged.json >merged.txt
say "jaxmed merge, exit code 0:"
sed 's/^/        /' merged.txt
began=$SECONDS
jaxmed bootstrap --fit fit.jm --n "$n" --seed 1 --out single --json single.json >single.txt
jaxmed merge single --out single.parquet --quiet
say "the same in a single process: $((SECONDS - began)) s"
python - "$n" <<'CHECK' || fail "the array and the single process differ"
import sys

import numpy as np
import pandas as pd

from jaxmed import load_replicates

merged, single = pd.read_parquet("merged.parquet"), pd.read_parquet("single.parquet")
assert len(merged) == int(sys.argv[1]) and list(merged["replicate"]) == list(range(len(merged)))
assert list(merged) == list(single) and list(merged.dtypes) == list(single.dtypes)
for name in merged:
    assert merged[name].to_numpy().tobytes() == single[name].to_numpy().tobytes(), name
assert not load_replicates("replicates").duplicates
floats = sum(np.issubdtype(kind, np.floating) for kind in merged.dtypes)
print(f"        {len(merged)} replicates, {len(list(merged))} columns ({floats} floats): all bits equal, none twice")
CHECK
for kind in txt json; do cmp merged.$kind single.$kind || fail "the intervals differ"; done
say "PASSED: replicates and intervals of the array are those of the single process"
