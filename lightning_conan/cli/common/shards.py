"""The shard of a process: as given, or from torchrun's or SLURM's variables."""

import os
import re
from collections.abc import Mapping


def read_shard(text: str, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Number of this process, from 0, and number of processes.

    ``auto`` multiplies SLURM's job array by the processes of a job: torchrun's ranks, or else the tasks of the ``srun`` step.

    Args:
        text: Such as ``2/8``, or ``auto``.
        environment: Variables of the process.

    Raises:
        ValueError: It is neither, or nothing tells a process its number.
    """
    if text == "auto":
        outer, inner = array_task(environment), rank(environment)
        if outer is None and inner is None:
            raise ValueError(
                "--shard auto needs torchrun (RANK, WORLD_SIZE), a SLURM job array (SLURM_ARRAY_TASK_ID, SLURM_ARRAY_TASK_COUNT) "
                "or srun (SLURM_PROCID, SLURM_STEP_NUM_TASKS), got none of these variables. Write --shard 0/4."
            )
        (task, tasks), (number, count) = outer or (0, 1), inner or (0, 1)
        return task * count + number, tasks * count
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not int(found[1]) < int(found[2]):
        raise ValueError(f"--shard must be auto or NUMBER/COUNT with a number from 0 below the count, such as 0/4, got {text!r}.")
    return int(found[1]), int(found[2])


def array_task(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Number and count of the tasks of a SLURM job array; None outside one.

    Raises:
        ValueError: The array has gaps, so that its tasks' numbers are no count.
    """
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return None
    defaults = {"ID": 0, "MIN": 0, "COUNT": 1, "STEP": 1}
    task, first, count, step = (int(environment.get(f"SLURM_ARRAY_TASK_{name}", value)) for name, value in defaults.items())
    number, rest = divmod(task - first, step)
    if rest or not 0 <= number < count:
        raise ValueError(
            f"The tasks of a job array must be numbered without gaps for --shard auto, got task {task} of {count} from "
            f"{first} on. Submit the whole array again (finished parts are skipped), or write --shard NUMBER/COUNT."
        )
    return number, count


def rank(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Number and count of a job's processes; None if it has one."""
    for number, count in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if number in environment and count in environment:
            return int(environment[number]), int(environment[count])
    return None


def device_number(environment: Mapping[str, str] = os.environ) -> int:
    """Number of this process on its machine, from 0: that of its GPU, where a process sees several."""
    return int(environment.get("LOCAL_RANK") or environment.get("SLURM_LOCALID") or 0)
