"""Devices, named random streams, and stopping when asked."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn

from hwm.config import RuntimeConfig
from hwm.engine.runtime import EXIT_STOPPED, StopFlag, rng_for, seeded_weights, start, torch_rng_for
from hwm.errors import ConfigError


def test_a_stream_is_a_function_of_its_name() -> None:
    names = [(0,), (0, 0), (0, 1), (1, 0), (0, "a"), (0, "a", 0), (0, "a0"), (0, "1"), (10,), (2**40,), (2**40, 1)]
    draws = {name: tuple(rng_for(*name).integers(2**62, size=2)) for name in names}
    assert len(set(draws.values())) == len(names), "numpy's own SeedSequence would take (0,) for (0, 0)"
    assert all(tuple(rng_for(*name).integers(2**62, size=2)) == drawn for name, drawn in draws.items())
    torch_draws = {tuple(torch.rand(2, generator=torch_rng_for(*name)).tolist()) for name in names}
    assert len(torch_draws) == len(names)


def test_streams_are_the_same_on_every_machine_and_in_every_version() -> None:
    assert rng_for(7, "augment", 3, 11).integers(2**31, size=3).tolist() == [1223936034, 929657036, 871137090]


def test_naming_a_stream_touches_no_global_state() -> None:
    before = torch.get_rng_state(), np.random.get_state(legacy=True)[1].tobytes()
    rng_for(1, "x").random()
    torch.rand(2, generator=torch_rng_for(1, "x"))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state(legacy=True)[1].tobytes()


def test_seeded_weights_depend_on_the_seed_alone_and_leave_the_global_generator() -> None:
    def weights(seed: int) -> torch.Tensor:
        with seeded_weights(seed, "predictor"):
            return nn.Linear(4, 4).weight.detach()

    before = torch.get_rng_state()
    first = weights(3)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    assert torch.equal(first, weights(3))
    assert not torch.equal(first, weights(4))


def test_starting_on_the_cpu_leaves_the_threads_alone() -> None:
    threads = torch.get_num_threads()
    fabric = start(RuntimeConfig(device="cpu"))
    assert (fabric.device.type, fabric.world_size, fabric.is_global_zero) == ("cpu", 1, True)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("config", [RuntimeConfig(device="cuda", devices=99), RuntimeConfig(device="mps", devices=2)])
def test_devices_that_are_not_there_are_refused(config: RuntimeConfig) -> None:
    with pytest.raises(ConfigError, match=r"cannot run here(?s:.*)runtime\.device=auto"):
        start(config, divides=True)


def test_several_devices_are_refused_where_all_would_do_the_same() -> None:
    with pytest.raises(ConfigError, match=r"runtime\.devices=2 was asked(?s:.*)only hwm pretrain"):
        start(RuntimeConfig(device="cpu", devices=2))


def test_sigterm_raises_the_flag_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    fabric = start(RuntimeConfig(device="cpu"))
    with StopFlag() as stop:
        assert not stop.agreed(fabric)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert stop.agreed(fabric)
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_the_flag_stays_down() -> None:
    seen = []

    def work() -> None:
        with StopFlag() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_forked_worker_dies_of_the_signal_and_the_parent_stops_with_143() -> None:
    code = """
import os, signal, time
from hwm.engine.runtime import StopFlag, EXIT_STOPPED
with StopFlag() as stop:
    ready, tell = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.write(tell, b"!")  # Python forgets signals that arrive while it forks
        time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    os.kill(worker, signal.SIGTERM)
    _, status = os.waitpid(worker, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM
    assert not stop.requested
    os.kill(os.getpid(), signal.SIGTERM)
    if stop.requested:
        raise SystemExit(EXIT_STOPPED)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == EXIT_STOPPED == 143, done.stderr
