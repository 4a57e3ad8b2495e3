"""Which part of a batch job this process is: from the words of the user or the variables of a scheduler."""

from __future__ import annotations

from collections.abc import Mapping

from jaxmed._support import SpecError

INDICES = ("JOB_COMPLETION_INDEX", "PBS_ARRAY_INDEX", "PBS_ARRAYID", "LSB_JOBINDEX")  # Kubernetes, PBS, Torque, LSF


def find_shard(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """``"i/k"``, ``"auto"`` or ``"auto/k"`` -> part i of k parts, counted from 0.

    ``"auto"`` reads the array of Slurm (whatever its first index and step), with the tasks of ``srun`` inside it, or
    of Grid Engine. Kubernetes indexed jobs, PBS, Torque and LSF tell an index but not how many there are: ``"auto/k"``
    says it. Their indices may run from 0 or from 1, since index k counts as part 0.

    Raises
    ------
    SpecError
        The text is something else, or no scheduler has set its variables.
    """
    index, _, count = text.partition("/")
    if index == "auto":
        found = _slurm(environment) or _grid_engine(environment)
        if found is not None and count and found[1] != _number(text, count):
            raise SpecError(f"--shard {text}: the scheduler runs {found[1]} parts, not {count}; write --shard auto")
        if found is not None:
            return found
        named = next((name for name in INDICES if environment.get(name, "").isdigit()), None)
        if named is None:
            raise SpecError(
                f"--shard {text}: no scheduler's variables were found (Slurm, Grid Engine, or with auto/K Kubernetes, "
                "PBS, Torque, LSF); give the part and their number yourself, such as --shard 0/4"
            )
        if not count:
            raise SpecError(
                f"--shard auto: {named} tells which part this is but not of how many; write --shard auto/K with K the "
                "number of parts"
            )
        parts = _number(text, count)
        return int(environment[named]) % parts, parts
    part, parts = _number(text, index), _number(text, count)
    if part >= parts:
        raise SpecError(f"--shard {text}: parts are counted from 0, so the last of {parts} is {parts - 1}/{parts}")
    return part, parts


def _number(text: str, digits: str) -> int:
    if not digits.isdecimal() or (int(digits) == 0 and text.endswith(f"/{digits}")):
        raise SpecError(f"--shard {text!r} is not understood; write I/K (part I of K, from 0), auto or auto/K")
    return int(digits)


def _slurm(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """The place in an array and among the tasks of a step."""

    def number(name: str, otherwise: int) -> int:
        text = environment.get(name, "")
        return int(text) if text.isdigit() else otherwise

    if "SLURM_JOB_ID" not in environment:
        return None
    tasks = number("SLURM_STEP_NUM_TASKS", 1)
    task = number("SLURM_PROCID", 0) if tasks > 1 else 0
    parts = number("SLURM_ARRAY_TASK_COUNT", 1)
    step = max(number("SLURM_ARRAY_TASK_STEP", 1), 1)
    first, last = number("SLURM_ARRAY_TASK_MIN", 0), number("SLURM_ARRAY_TASK_MAX", -1)
    if last >= 0 and (last - first) // step + 1 != parts:
        raise SpecError(
            f"--shard auto: this array has holes ({parts} tasks from {first} to {last}), so that its parts cannot be "
            "told; submit the whole array again, what is done is not computed again"
        )
    part = (number("SLURM_ARRAY_TASK_ID", 0) - first) // step
    return part * tasks + task, parts * tasks


def _grid_engine(environment: Mapping[str, str]) -> tuple[int, int] | None:
    names = ("SGE_TASK_ID", "SGE_TASK_FIRST", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE")
    if not all(environment.get(name, "").isdigit() for name in names):  # "undefined" outside an array
        return None
    task, first, last, step = (int(environment[name]) for name in names)
    return (task - first) // max(step, 1), (last - first) // max(step, 1) + 1
