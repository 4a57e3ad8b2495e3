"""Which part of an array job a process is."""

from __future__ import annotations

import pytest

import jaxmed as jm
from jaxmed._cli.schedulers import find_shard

SLURM = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4"}


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("0/1", {}, (0, 1)),
        ("3/40", {}, (3, 40)),
        ("auto", {"SLURM_JOB_ID": "7"}, (0, 1)),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_MIN": "0"}, (0, 4)),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_MIN": "1"}, (3, 4)),
        (  # --array=10-16:2
            "auto",
            SLURM | {"SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "2"},
            (2, 4),
        ),
        (  # two tasks of srun in each of four array tasks
            "auto",
            SLURM
            | {
                "SLURM_ARRAY_TASK_ID": "3",
                "SLURM_ARRAY_TASK_MIN": "0",
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_PROCID": "1",
            },
            (7, 8),
        ),
        (
            "auto",
            {"SGE_TASK_ID": "5", "SGE_TASK_FIRST": "1", "SGE_TASK_LAST": "9", "SGE_TASK_STEPSIZE": "2"},
            (2, 5),
        ),
        ("auto/4", {"JOB_COMPLETION_INDEX": "0"}, (0, 4)),
        ("auto/4", {"JOB_COMPLETION_INDEX": "3"}, (3, 4)),
        ("auto/4", {"PBS_ARRAY_INDEX": "4"}, (0, 4)),  # indices 1..4
        ("auto/4", {"LSB_JOBINDEX": "1"}, (1, 4)),
    ],
)
def test_parts(text, environment, expected):
    assert find_shard(text, environment) == expected


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("auto", {}, "no scheduler's variables were found"),
        ("auto", {"SGE_TASK_ID": "undefined"}, "no scheduler's variables"),
        ("auto", {"PBS_ARRAY_INDEX": "4"}, "write --shard auto/K"),
        ("auto/3", SLURM | {"SLURM_ARRAY_TASK_ID": "0"}, "runs 4 parts, not 3"),
        (  # --array=0,2,3,5
            "auto",
            SLURM | {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "5"},
            "this array has holes",
        ),
        ("4/4", {}, "the last of 4 is 3/4"),
        ("1", {}, "not understood"),
        ("-1/4", {}, "not understood"),
        ("a/b", {}, "not understood"),
        ("0/0", {}, "not understood"),
        ("auto/x", {"LSB_JOBINDEX": "1"}, "not understood"),
    ],
)
def test_refusals(text, environment, message):
    with pytest.raises(jm.SpecError, match=message):
        find_shard(text, environment)
