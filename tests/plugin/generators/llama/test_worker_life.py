"""The worker process: it is replaced when it dies or hangs, and it never outlives its parent."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from querylift.plugin.errors import GeneratorError
from querylift.plugin.generators.llama.generator import LlamaGenerator
from querylift.plugin.generators.llama.model_file import find_packaged_model
from querylift.plugin.proxy.metrics import Metrics
from tests.helpers.llama import (
    QUERIES,
    get_worker_pid,
    is_running,
    run_drill,
    wait_until_gone,
    wait_until_it_writes,
    write_text,
)

pytestmark = pytest.mark.model


def test_a_killed_worker_fails_its_requests_at_once_and_is_replaced() -> None:
    async def drill(generator: LlamaGenerator) -> None:
        killed_pid = get_worker_pid(generator)
        metrics = Metrics()
        generator.meter = metrics.make_generation_meter("llama")
        tasks = [asyncio.ensure_future(write_text(generator, query)) for query in QUERIES]
        await asyncio.sleep(0.15)
        os.kill(killed_pid, signal.SIGKILL)
        killed_at_s = time.monotonic()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert time.monotonic() - killed_at_s < 5  # a request may take 120
        assert {type(error) for error in errors} == {GeneratorError}
        with pytest.raises(GeneratorError, match="restarted"):
            await write_text(generator, QUERIES[0])
        await wait_until_it_writes(generator)
        assert time.monotonic() - killed_at_s > 0.5
        assert (generator.restarts, generator.pid != killed_pid) == (1, True)
        assert b'querylift_generator_restarts_total{generator="llama"} 1.0' in metrics.render()
        assert b'querylift_generations_waiting{generator="llama"} 0.0' in metrics.render()

    run_drill(drill)


def test_a_worker_that_dies_unused_is_replaced_after_a_longer_delay_each_time() -> None:
    async def measure_restart_s(generator: LlamaGenerator) -> float:
        restarts, killed_at_s = generator.restarts, time.monotonic()
        os.kill(get_worker_pid(generator), signal.SIGSEGV)
        while generator.restarts == restarts:
            await asyncio.sleep(0.02)
        return time.monotonic() - killed_at_s

    async def drill(generator: LlamaGenerator) -> None:
        delays = [await measure_restart_s(generator), await measure_restart_s(generator)]
        assert delays[0] > 0.5
        assert delays[1] > 1.0

    run_drill(drill)


def test_what_a_dying_worker_prints_is_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise a line that is not JSON would stand among the JSON lines of the log."""
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")

    async def drill(generator: LlamaGenerator) -> None:
        os.kill(get_worker_pid(generator), signal.SIGSEGV)
        while not generator.restarts:
            await asyncio.sleep(0.02)

    run_drill(drill)
    assert "the model's worker printed: Fatal Python error: Segmentation fault" in caplog.messages


def test_a_stopped_worker_is_replaced_and_its_requests_fail() -> None:
    async def drill(generator: LlamaGenerator) -> None:
        stopped_pid, stopped_at_s = get_worker_pid(generator), time.monotonic()
        os.kill(stopped_pid, signal.SIGSTOP)
        with pytest.raises(GeneratorError, match="worker ended"):
            await write_text(generator, QUERIES[1])
        assert 1 <= time.monotonic() - stopped_at_s < 20
        await wait_until_gone(stopped_pid)
        await wait_until_it_writes(generator)

    run_drill(drill, hang_s=1)


def test_a_stopped_worker_is_replaced_even_when_its_caller_gives_up_earlier() -> None:
    async def drill(generator: LlamaGenerator) -> None:
        stopped_pid = get_worker_pid(generator)
        os.kill(stopped_pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await write_text(generator, QUERIES[1])
        assert generator.pending_count == 0
        await wait_until_gone(stopped_pid)

    run_drill(drill, hang_s=1)


def test_the_time_limit_of_a_request_begins_when_the_worker_begins_it() -> None:
    """Otherwise a busy worker with a long queue would give up every request just when it is being answered."""

    async def drill(generator: LlamaGenerator) -> None:
        os.kill(get_worker_pid(generator), signal.SIGSTOP)
        request = asyncio.ensure_future(write_text(generator, QUERIES[1]))
        await asyncio.sleep(0.3)
        assert not request.done()
        os.kill(get_worker_pid(generator), signal.SIGCONT)
        with pytest.raises(GeneratorError, match=r"within 0\.01 s"):
            await request

    run_drill(drill, max_seconds=0.01)


def test_a_working_worker_is_not_replaced_when_its_callers_give_up() -> None:
    async def drill(generator: LlamaGenerator) -> None:
        for query in QUERIES[:5]:
            with pytest.raises(GeneratorError, match=r"within 0\.05 s"):
                await write_text(generator, query)
            await asyncio.sleep(0.4)
        assert generator.restarts == 0

    run_drill(drill, hang_s=1, max_seconds=0.05)


def test_a_model_file_that_disappears_while_serving_is_waited_for(tmp_path: Path) -> None:
    link = tmp_path / "model.gguf"
    link.symlink_to(find_packaged_model())

    async def drill(generator: LlamaGenerator) -> None:
        link.unlink()
        os.kill(get_worker_pid(generator), signal.SIGKILL)
        await asyncio.sleep(0.8)
        with pytest.raises(GeneratorError):
            await write_text(generator, QUERIES[0])
        link.symlink_to(find_packaged_model())
        await wait_until_it_writes(generator)

    run_drill(drill, link)


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGABRT])
def test_the_worker_ends_with_its_parent(signal_number: signal.Signals) -> None:
    code = (
        "import asyncio\n"
        "from querylift.plugin.generators.llama.generator import LlamaGenerator\n"
        "from querylift.plugin.generators.llama.model_file import find_packaged_model\n"
        "async def main():\n"
        "    generator = LlamaGenerator(find_packaged_model()); await generator.start()\n"
        "    print(generator.pid, flush=True); await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker_pid = int(parent.stdout.readline())
        assert is_running(worker_pid)
        parent.send_signal(signal_number)
    deadline_s = time.monotonic() + 5
    while is_running(worker_pid) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not is_running(worker_pid)


def test_closing_twice_in_the_middle_of_a_request_leaves_no_child() -> None:
    async def drill(generator: LlamaGenerator) -> None:
        worker_pid = get_worker_pid(generator)
        task = asyncio.ensure_future(write_text(generator, QUERIES[0]))
        await asyncio.sleep(0.05)
        await generator.close()
        await generator.close()
        assert not is_running(worker_pid)
        with pytest.raises(GeneratorError):
            await task
        with pytest.raises(GeneratorError):
            await write_text(generator, QUERIES[0])

    run_drill(drill)


@pytest.mark.parametrize("moment_s", [0, 0.01, 0.52, 0.7])
def test_closing_at_any_moment_of_a_restart_leaves_no_child(moment_s: float) -> None:
    async def drill(generator: LlamaGenerator) -> None:
        os.kill(get_worker_pid(generator), signal.SIGKILL)
        await asyncio.sleep(moment_s)

    run_drill(drill)


def test_it_runs_on_uvloop_too() -> None:
    import uvloop

    async def main() -> None:
        generator = LlamaGenerator(find_packaged_model(), max_seconds=45)
        await generator.start()
        os.kill(get_worker_pid(generator), signal.SIGKILL)
        await asyncio.sleep(0.3)
        await wait_until_it_writes(generator)
        await generator.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
