"""Runs a scenario on several processes that talk by gloo, as ranks of one job."""

import os
import pickle
import socket
import traceback
from multiprocessing import get_context

PATIENCE = 600


def warm_context():
    """Forks processes from a server that has imported what scenarios need, once for all tests of a session."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["scenarios"])  # found by PYTHONPATH, see conftest.py: where it is not, none is told
    return context


def both(scenario, *args, world=2):
    """Returns ``scenario(*args)`` of each rank, in order; a rank that died or raised fails the test with its reason.

    Scenarios live in importable modules (``scenarios.py``): the processes come from a server that has imported them once.
    """
    context = warm_context()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes, processes = [], []
    for rank in range(world):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=enter, args=(rank, world, port, theirs, scenario, args)))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    found = []
    try:
        for rank, (pipe, process) in enumerate(zip(pipes, processes, strict=True)):
            if not pipe.poll(PATIENCE):
                raise AssertionError(f"rank {rank} did not end within {PATIENCE} s")
            try:
                kind, value = pipe.recv()
            except EOFError:
                process.join()
                kind, value = "died", process.exitcode
            found.append((kind, value))
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    return found


def values(scenario, *args, world=2):
    """The ranks' results, when all of them returned."""
    found = both(scenario, *args, world=world)
    if odd := [f"rank {rank} {kind}: {value}" for rank, (kind, value) in enumerate(found) if kind != "returned"]:
        raise AssertionError("\n".join(odd))
    return [pickle.loads(value) for _, value in found]


def enter(rank, world, port, pipe, scenario, args):
    """One rank, as torchrun would start it."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": 1}
    os.environ.update({name: str(value) for name, value in names.items()})
    import torch

    torch.set_num_threads(1)
    try:
        pipe.send(("returned", pickle.dumps(scenario(*args))))  # not as shared memory, which ends with the process
    except SystemExit as stop:
        pipe.send(("exited", stop.code))
    except BaseException:
        pipe.send(("raised", traceback.format_exc()))
    finally:
        pipe.close()


def near(found, wanted):
    """Within 5e-4, but for one entry in a hundred: where a gradient is rounding noise, AdamW steps by its sign."""
    off = (found - wanted).abs()
    return bool((off >= 5e-4).float().mean() <= 0.01 and off.max() < 5e-3)
