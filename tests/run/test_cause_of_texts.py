"""The first error of what failed first, in texts that real failures printed, made short."""

import pytest
from cause_helpers import BY_KERNEL, CODE, HEADER, traceback

from coderepairrl.processes import cause

PEER = (
    "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer "
    "[127.0.0.1]:23454. This is typically caused by a remote worker crashing."
)
RESET = (
    "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:52422: "
    "Connection reset by peer."
)
NO_CORE = (
    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"
)


def torchrun(*ends: tuple[int, int]) -> str:
    """Its last words: (rank, exit code), the first observed failure last."""
    unseen = "To enable traceback see: https://pytorch.org/docs/"
    blocks = [
        f"[{i}]:\n  time      : 2026-11-29_20:16:18\n  host      : node1\n"
        f"  rank      : {rank} (local_rank: {rank})\n  exitcode  : {code} (pid: 9{rank})\n"
        f"  error_file: <N/A>\n  traceback : {f'Signal {-code} received by PID 9{rank}' if code < 0 else unseen}\n"
        for i, (rank, code) in enumerate(ends)
    ]
    return (
        "W1129 20:16:09.471000 9148 torch/distributed/elastic/multiprocessing/api.py:1028] Sending process 9156 "
        "closing signal SIGTERM\n"
        "E1129 20:16:09.504000 9148 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 1) "
        "local_rank: 1 (pid: 9157) of binary: /venv/bin/python\n"
        + HEADER
        + CODE
        + f"torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n{'=' * 60}\ntrain_grpo.py FAILED\n"
        f"{'-' * 60}\nFailures:\n"
        + "".join(blocks[:-1])
        + f"{'-' * 60}\nRoot Cause (first observed failure):\n{blocks[-1]}{'=' * 60}\n"
    )


def engine(name: str, raised: str, place: str) -> str:
    before = f"({name} pid=96) ERROR 11-29 20:18:22 [{place}] "
    return before + f"{name} failed to start.\n" + traceback(raised, before=before)


VLLM = (
    "Found ulimit of 20000 and failed to automatically increase with error current limit exceeds maximum limit. This "
    "can cause fd limit errors like "
    "`OSError: [Errno 24] Too many open files`.\n"
    "(APIServer pid=95) WARNING 11-29 20:17:59 [vllm.py:725] Model Runner V2 requires Triton.\n"
)
VLLM_END = (
    "Process EngineCore:\n"
    + traceback(
        "Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for "
        "root cause."
    )
    + traceback(NO_CORE)
)
TEXTS = {
    # several ranks
    "a bug of rank 1": (
        traceback("ValueError: empty", before="[rank1]: ")
        + "\nerror: ValueError: empty\n"
        + f"\nerror: {PEER}\n"
        + torchrun((0, -15), (1, 1)),
        "ValueError: empty",
    ),
    "the same without our own line": (
        traceback("ValueError: empty", before="[rank1]: ")
        + traceback(PEER, before="[rank0]: ")
        + torchrun((0, -15), (1, 1)),
        "ValueError: empty",
    ),
    "the echo is written first": (
        f"\nerror: {PEER}\n\nerror: the checkpoint is damaged\n" + torchrun((0, -15), (1, 1)),
        "the checkpoint is damaged",
    ),
    "an error of ours, then an echo": (
        "error: the tail is missing: make it first\n"
        + traceback(PEER, before="[rank0]: ")
        + torchrun((0, -15), (1, 1)),
        "the tail is missing: make it first",
    ),
    "two ranks that say different things": (
        "\nerror: the disk is full\n\nerror: KeyError: 'x'\n" + torchrun((1, 1), (0, 1)),
        "the disk is full",
    ),
    "lines of two ranks mixed": (
        "".join(
            a + b
            for a, b in zip(
                traceback("ValueError: empty", before="[rank1]: ").splitlines(keepends=True),
                traceback(RESET, before="[rank0]: ").splitlines(keepends=True),
                strict=True,
            )
        )
        + torchrun((0, 1), (1, 1)),
        "ValueError: empty",
    ),
    "SIGKILL of a rank": (f"\nerror: {RESET}\n" + torchrun((0, 1), (1, -9)), "rank 1: ended by SIGKILL" + BY_KERNEL),
    "SIGKILL of a rank, seen second": (
        f"\nerror: {RESET}\n" + torchrun((1, -9), (0, 1)),
        "rank 1: ended by SIGKILL" + BY_KERNEL,
    ),
    "a rank that hangs is killed by torchrun": (
        "\nerror: ValueError: empty\n" + torchrun((0, -9), (1, 1)),
        "ValueError: empty",
    ),
    "segmentation fault": (f"\nerror: {PEER}\n" + torchrun((0, -15), (1, -11)), "rank 1: ended by SIGSEGV"),
    "SIGTERM from outside": (
        traceback(RESET, before="[rank0]: ") + torchrun((0, -15), (1, -15)),
        "rank 1: ended by SIGTERM",
    ),
    "a rank that left without a word": (
        f"\nerror: {PEER}\n" + torchrun((0, -15), (1, 3)),
        "rank 1 ended with exit code 3 and said nothing",
    ),
    "all say the same": (
        f"\nerror: {PEER}\n\nerror: {PEER}\n" + torchrun((0, 1), (1, 1)),
        "rank 1 ended with exit code 1 and said nothing",
    ),
    "a thread died, then the rank": (
        "Exception in thread Thread-1 (f):\n"
        + traceback("OSError: disk gone")
        + traceback(PEER, before="[rank0]: ")
        + torchrun((0, -15), (1, 4)),
        "OSError: disk gone",
    ),
    "the last of several launches": (
        "error: the first\n" + torchrun((0, 1)) + "\nerror: the second\n" + torchrun((0, 1)),
        "the second",
    ),
    "a launch after torchrun's": (
        "\nerror: KeyError: 'a'\n"
        + torchrun((0, 1))
        + "the program ended with code 1\nerror: no space left on the device\n",
        "no space left on the device",
    ),
    "CUDA out of memory": (
        traceback("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", before="[rank1]: ")
        + torchrun((1, 1)),
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    ),
    # one process
    "chained": (
        traceback("KeyError: 'lora'", "RuntimeError: could not build the model"),
        "KeyError: 'lora'; then RuntimeError: could not build the model",
    ),
    "chained on a rank": (
        traceback("KeyError: 'lora'", "RuntimeError: no model", before="[rank1]: ") + torchrun((1, 1)),
        "KeyError: 'lora'; then RuntimeError: no model",
    ),
    "raised in a handler": (
        traceback(
            "json.decoder.JSONDecodeError: Expecting value: line 2",
            "OSError: 'config.json' is not a valid JSON file.",
            link="During handling of the above exception, another exception occurred:",
        ),
        "json.decoder.JSONDecodeError: Expecting value: line 2; then OSError: 'config.json' is not a valid JSON file.",
    ),
    "a text of several lines": (
        traceback(
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
            "  Value error, max_model_len is too large"
        ),
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig Value error, max_model_len "
        "is too large",
    ),
    "no text": (traceback("AssertionError"), "AssertionError"),
    "colours": (
        "\x1b[31mTraceback (most recent call last):\x1b[0m\n"
        + CODE
        + "\x1b[1;31mValueError\x1b[0m: \x1b[35mempty\x1b[0m\n",
        "ValueError: empty",
    ),
    "a harmless traceback before": (
        "ERROR:root:no cache, going on\n"
        + traceback("FileNotFoundError: cache")
        + "step 1\n"
        + traceback("ValueError: empty"),
        "ValueError: empty",
    ),
    "a harmless line before": (
        "[20:16:32] ERROR no cache, going on\nError: no cache\n" + traceback("ValueError: empty"),
        "ValueError: empty",
    ),
    "a logged warning with a traceback": (
        traceback("ValueError: empty")
        + "2026-11-29 20:16:32,367 WARNING cache: not written\n"
        + traceback("OSError: cache"),
        "ValueError: empty",
    ),
    "clean-up after the end": (
        traceback("ValueError: empty")
        + "Exception ignored in: <function Pool.__del__ at 0x7f>\n"
        + traceback("TypeError: 'NoneType'"),
        "ValueError: empty",
    ),
    "a warning that names an Error": (
        "/venv/x.py:12: UserWarning: RuntimeError: falls back\n  warnings.warn(x)\nserve.py: error: no such option\n",
        "serve.py: error: no such option",
    ),
    "two attempts of one program": (
        "error: the first\nthe program ended with code 1\nerror: the second\n"
        "srun: error: node1: task 0: Exited with exit code 1\n",
        "the second",
    ),
    # vLLM
    "vLLM: a worker": (
        VLLM
        + engine("Worker", "safetensors_rust.SafetensorError: invalid header length", "multiproc_executor.py:953")
        + engine(
            "EngineCore",
            "Exception: WorkerProc initialization failed due to an exception in a background process.",
            "core.py:1510",
        )
        + VLLM_END,
        "safetensors_rust.SafetensorError: invalid header length",
    ),
    "vLLM: the engine": (
        VLLM
        + engine("EngineCore", "ValueError: No available memory for the cache blocks.", "core.py:1510")
        + "(EngineCore pid=96) ERROR 11-29 20:22:52 [multiproc_executor.py:315] Worker proc VllmWorker-0 died "
        "unexpectedly (exit code: 0).\n" + traceback(NO_CORE),
        "ValueError: No available memory for the cache blocks.",
    ),
    "vLLM: the engine while it serves": (
        VLLM
        + traceback(
            "ValueError: a request that was refused", before="(APIServer pid=95) ERROR 11-29 20:18:00 [serving.py:1] "
        )
        + engine("EngineCore", "RuntimeError: CUDA error: an illegal memory access was encountered", "core.py:1100")
        + traceback(
            "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for "
            "the root cause.",
            before="(APIServer pid=95) ERROR 11-29 20:19:00 [async_llm.py:700] ",
        ),
        "RuntimeError: CUDA error: an illegal memory access was encountered",
    ),
    "vLLM: no engine of its own": (
        VLLM + traceback("RuntimeError: The size of tensor a (128) must match the size of tensor b (64)"),
        "RuntimeError: The size of tensor a (128) must match the size of tensor b (64)",
    ),
    "vLLM: two workers": (
        VLLM
        + engine("Worker_TP1", "torch.OutOfMemoryError: CUDA out of memory.", "multiproc_executor.py:953")
        + engine(
            "Worker_TP0",
            "torch.distributed.DistBackendError: NCCL error: ncclRemoteError: remote process exited",
            "multiproc_executor.py:953",
        )
        + VLLM_END,
        "torch.OutOfMemoryError: CUDA out of memory.",
    ),
    "vLLM: the engine was killed": (
        VLLM + "(APIServer pid=95) ERROR 11-29 20:19:00 [core_client.py:600] Engine core proc EngineCore died "
        "unexpectedly, shutting down client.\n" + traceback(NO_CORE),
        NO_CORE,
    ),
    "vLLM: the port": (
        traceback("OSError: [Errno 98] Address already in use"),
        "OSError: [Errno 98] Address already in use",
    ),
    "vLLM: an option": (
        "usage: serve.py [-h] {serve} ...\nserve.py: error: unrecognized arguments: --no-such-option\n",
        "serve.py: error: unrecognized arguments: --no-such-option",
    ),
    # runtimes and launchers
    "Apptainer": (
        "INFO:    Mounting image\nWARNING: no /etc/localtime\n"
        "FATAL:   could not open image /x.sif: no such file or directory\n",
        "FATAL: could not open image /x.sif: no such file or directory",
    ),
    "Slurm's memory": (
        "slurmstepd: error: Detected 1 oom_kill event in StepId=17.0.\n"
        "srun: error: node1: task 0: Exited with exit code 137\n",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=17.0.",
    ),
    "the interpreter": (
        "Fatal Python error: Segmentation fault\n\nCurrent thread 0x7f (most recent call first):\n",
        "Fatal Python error: Segmentation fault",
    ),
    "an exception's last line alone": (
        "loading\nFileNotFoundError: /x/v000000\nbye\n",
        "FileNotFoundError: /x/v000000",
    ),
    "C++": (
        "terminate called after throwing an instance of 'c10::Error'\n  what():  CUDA error: unknown error\n",
        "what(): CUDA error: unknown error",
    ),
    "inside another tool's output": (
        "  x Failed to build `foo`\n\n      [stderr]\n"
        + traceback("ModuleNotFoundError: No module named 'numpy'", before="      ")
        + "\nhint: x\n",
        "ModuleNotFoundError: No module named 'numpy'",
    ),
    "uv, whose words come first": (
        "error: The build backend returned an error\n  cause: Call to `x.y` failed (exit status: 1)\n\n"
        "         [stderr]\n"
        "         error: Multiple top-level modules discovered\n\n         To avoid accidents:\n",
        "Multiple top-level modules discovered",
    ),
    "uv on a traceback": (
        "error: build backend returned an error\n" + traceback("ValueError: no", before="  "),
        "ValueError: no",
    ),
}


@pytest.mark.parametrize("shape", TEXTS)
def test_the_first_error_of_what_failed_first(shape, tmp_path):
    text, expected = TEXTS[shape]
    (tmp_path / "log").write_text(text)
    assert cause.of_text(text) == cause.of_log(tmp_path / "log", code=1) == expected
