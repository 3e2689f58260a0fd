"""Tokens a second of the engine's step, beside llama.cpp and transformers: in turns, medians, ratios.

    python benchmarks/engine.py [--threads 2] [--rounds 9] [--tasks decode-1,decode-16,prefill] [--llama PYTHON]

The shape is SmolLM2-135M's with random weights: 30 layers, hidden size 576, 49,152 tokens. A task is done by each
engine in a process of its own: one token for a sequence, or for 16 of them, of which each has read 64, or a prompt of
512. The token with the highest score is chosen, in each. `--llama` is a Python that has `llama_cpp`, built for this
processor; its models are quantized by llama.cpp itself, whose Q4_0 has a tied table of 8 bits, as our INT4. What a
program waits for at its turn counts; a time is by the clock unless it says CPU.
"""

import argparse
import ctypes
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from turns import Gate, Program, parser_of, run_worker

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
QUICK = (
    SHAPE
    | {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    | {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
)
# Sequences, tokens that each reads in a step, and steps in a turn.
TASKS = {"decode-1": (1, 1, 16), "decode-16": (16, 1, 4), "prefill": (1, 512, 1)}
READ_BEFORE = 64
LLAMA_TYPES = {"Q8_0": 7, "Q4_0": 2}
OURS, LLAMA = ("int8", "int4", "float32"), ("llama.cpp Q8_0", "llama.cpp Q4_0")
ENGINES = (*OURS, *LLAMA, "transformers")
COMPARED = (
    ("int8", "llama.cpp Q8_0"),
    ("int4", "llama.cpp Q4_0"),
    ("float32", "transformers"),
    ("int8", "transformers"),
    ("int4", "transformers"),
)

Step = Callable[[list[list[int]]], list[int]]


def shape_of(given: argparse.Namespace) -> dict[str, Any]:
    """The model's fields."""
    return QUICK if given.quick else SHAPE


def prompts_of(sequences: int, length: int, vocab_size: int) -> list[list[int]]:
    """Tokens that are as good as any."""
    return [[(7919 * (s + 1) + 31 * i) % vocab_size for i in range(length)] for s in range(sequences)]


def work(gate: Gate, given: argparse.Namespace) -> None:
    """Do a task until there are no more turns."""
    sequences, count, _ = TASKS[given.tasks]
    vocab_size = shape_of(given)["vocab_size"]
    start, step = ENGINES_BY_NAME[given.worker.split()[0]](given)
    if count > 1:
        prompt = prompts_of(1, count, vocab_size)
        while True:
            start()
            step(prompt)
            gate.tick()
    start()
    tokens = step(prompts_of(sequences, READ_BEFORE, vocab_size))
    read = READ_BEFORE
    while True:
        tokens = step([[token] for token in tokens])
        read += 1
        if read == 2 * READ_BEFORE:
            start()
            tokens, read = step(prompts_of(sequences, READ_BEFORE, vocab_size)), READ_BEFORE
        gate.tick()


def ours(given: argparse.Namespace) -> tuple[Callable[[], None], Step]:
    """Our runner, as the engine calls it."""
    import torch

    from yunque.generate.block_pool import BlockPool
    from yunque.generate.native_runner import native_runner
    from yunque.generate.runner import Text, Work
    from yunque.model import Llama, LlamaConfig, quantize_model

    torch.set_num_threads(given.threads)
    torch.set_grad_enabled(False)
    model = (
        Llama(LlamaConfig(**shape_of(given)), torch.Generator().manual_seed(0)).eval().requires_grad_(False)
    )
    if given.worker != "float32":
        model = quantize_model(model, given.worker)
    _, heads, head_dim = model.config.heads
    pool = BlockPool(model.config.num_hidden_layers, (heads, head_dim), 256)
    runner = native_runner(model, pool, given.threads)
    assert runner is not None, "there is no C++ compiler here"
    texts: list[Text] = []

    def start() -> None:
        for text in texts:
            text.close()
        texts.clear()

    def step(ids: list[list[int]]) -> list[int]:
        if not texts:
            texts.extend(pool.open(one, READ_BEFORE, root=None) for one in ids)
        scores = runner.run([Work(text, one) for text, one in zip(texts, ids, strict=True)])
        # As the engine's sampler does it.
        return [int(one.numpy().argmax()) for one in scores]

    return start, step


def theirs(given: argparse.Namespace) -> tuple[Callable[[], None], Step]:
    """transformers, in float32."""
    import torch
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(given.threads)
    torch.set_grad_enabled(False)
    model = LlamaForCausalLM(LlamaConfig(**shape_of(given))).eval()
    caches: list[DynamicCache] = []

    def start() -> None:
        caches[:] = [DynamicCache(config=model.config)]

    def step(ids: list[list[int]]) -> list[int]:
        found = model(torch.tensor(ids), past_key_values=caches[0], use_cache=True, logits_to_keep=1)
        return found.logits[:, -1].argmax(-1).tolist()

    return start, step


def llama(given: argparse.Namespace) -> tuple[Callable[[], None], Step]:
    """llama.cpp by its C interface, a batch of all sequences at a time."""
    import llama_cpp as cpp
    import numpy as np

    quiet = cpp.llama_log_callback(lambda *_: None)
    cpp.llama_log_set(quiet, ctypes.c_void_p())
    source = Path(given.gguf)
    quantized = source.with_name(f"{given.worker.split()[1]}.gguf")
    if not quantized.exists():
        how = cpp.llama_model_quantize_default_params()
        how.ftype, how.nthread = LLAMA_TYPES[given.worker.split()[1]], given.threads
        assert not cpp.llama_model_quantize(str(source).encode(), str(quantized).encode(), ctypes.byref(how))
    model = cpp.llama_model_load_from_file(str(quantized).encode(), cpp.llama_model_default_params())
    settings = cpp.llama_context_default_params()
    sequences = TASKS[given.tasks][0]
    settings.n_ctx, settings.n_seq_max = 1024 * sequences, sequences
    settings.n_batch = settings.n_ubatch = 512
    settings.n_threads = settings.n_threads_batch = given.threads
    context = cpp.llama_init_from_model(model, settings)
    vocab_size = shape_of(given)["vocab_size"]
    lengths: list[int] = []

    def start() -> None:
        lengths.clear()
        cpp.llama_memory_clear(cpp.llama_get_memory(context), False)

    def read(ids: list[list[int]]) -> list[int]:
        batch = cpp.llama_batch_init(sum(map(len, ids)), 0, 1)
        wanted = []
        for sequence, tokens in enumerate(ids):
            for token in tokens:
                at = batch.n_tokens
                batch.token[at], batch.pos[at] = token, lengths[sequence]
                batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, sequence, 0
                batch.n_tokens += 1
                lengths[sequence] += 1
            batch.logits[batch.n_tokens - 1] = 1
            wanted.append(batch.n_tokens - 1)
        assert not cpp.llama_decode(context, batch)
        scores = [cpp.llama_get_logits_ith(context, at) for at in wanted]
        cpp.llama_batch_free(batch)
        return [int(np.ctypeslib.as_array(one, shape=(vocab_size,)).argmax()) for one in scores]

    def step(ids: list[list[int]]) -> list[int]:
        lengths.extend([0] * (len(ids) - len(lengths)))
        if sum(map(len, ids)) <= 512:
            return read(ids)
        # Prompts of many sequences, in pieces that fit in a batch.
        for begin in range(0, len(ids[0]), 32):
            found = read([one[begin : begin + 32] for one in ids])
        return found

    return start, step


ENGINES_BY_NAME = {**dict.fromkeys(OURS, ours), "llama.cpp": llama, "transformers": theirs}


def write_gguf(path: Path, shape: dict[str, Any]) -> None:
    """A model of this shape with random float32 weights, and no tokenizer, as llama.cpp opens it."""
    import gguf
    import numpy as np

    heads, shared = shape["num_attention_heads"], shape["num_key_value_heads"]
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(shared)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(shape["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    generator = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(f"{name}.weight", generator.standard_normal((rows, columns), np.float32) * 0.02)

    matrix("token_embd", shape["vocab_size"], hidden)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for layer in range(shape["num_hidden_layers"]):
        size = hidden // heads
        for name, rows, columns in (
            ("attn_q", heads * size, hidden),
            ("attn_k", shared * size, hidden),
            ("attn_v", shared * size, hidden),
            ("attn_output", hidden, heads * size),
            ("ffn_gate", inner, hidden),
            ("ffn_up", inner, hidden),
            ("ffn_down", hidden, inner),
        ):
            matrix(f"blk.{layer}.{name}", rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compare(task: str, engines: Sequence[str], given: argparse.Namespace, gguf: Path) -> None:
    """Print what the engines do in a second, and their ratios."""
    sequences, count, steps = TASKS[task]
    programs = {
        name: Program(
            name,
            __file__,
            ["--tasks", task, "--threads", str(given.threads), "--gguf", str(gguf)]
            + ["--quick"] * given.quick,
            given.threads,
            given.llama if name in LLAMA else sys.executable,
        )
        for name in engines
    }
    for number in range(given.rounds + 1):
        for program in programs.values():
            print(
                f"{task} {number}/{given.rounds} {program.name}: {program.turn().wall:.2f} s", file=sys.stderr
            )
    for program in programs.values():
        peak = program.end()
        wall, cpu = program.median("wall") / steps, program.median("cpu") / steps
        print(
            f"{task:10} {program.name:15} {sequences * count / wall:9.1f} tokens/s {1000 * wall:9.2f} ms "
            f"{1000 * cpu:9.2f} ms CPU {peak / 1e6:7.0f} MB"
        )
    for one, other in COMPARED:
        if one in programs and other in programs:
            pairs = list(zip(programs[one].slices[1:], programs[other].slices[1:], strict=True))
            wall = statistics.median(slow.wall / fast.wall for fast, slow in pairs)
            cpu = statistics.median(slow.cpu / fast.cpu for fast, slow in pairs)
            best = min(slow.wall for _, slow in pairs) / min(fast.wall for fast, _ in pairs)
            print(f"{task:10} {one} / {other}: {wall:.2f}x, by the best turns {best:.2f}x, by CPU {cpu:.2f}x")


def main() -> None:
    """Compare, or be one of those that are compared."""
    parser = parser_of(__doc__)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument(
        "--llama", default="", help="a Python that has llama_cpp; without it llama.cpp is left out"
    )
    parser.add_argument("--gguf", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        # Each has its threads wait as it does by itself.
        os.environ.pop("OMP_WAIT_POLICY", None)
        run_worker(lambda gate: work(gate, given), TASKS[given.tasks][2])
        return
    engines = [name for name in given.engines.split(",") if given.llama or name not in LLAMA]
    with tempfile.TemporaryDirectory() as folder:
        gguf = Path(folder) / "float32.gguf"
        if given.llama:
            write_gguf(gguf, shape_of(given))
        for task in given.tasks.split(","):
            compare(task, engines, given, gguf)


if __name__ == "__main__":
    main()
