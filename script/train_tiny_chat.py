"""Train tiny-chat, the chat model inside the package, from text to a Hugging Face folder.

    python script/train_tiny_chat.py --corpus DIR --out DIR [--steps N] [--seed N] [--device cuda]

The corpus folder holds tinystories_2MiB.txt, chatterbot_english.jsonl and gsm8k_train.jsonl; all
other text is in script/tiny_chat_data. Rows of several lengths are packed beforehand: a row is
one long chat made of many short units, or stories one after the other. On one H200 the default
takes a few minutes; `--steps 20 --rows 200 --units 2000 --device cpu` tries
everything out.
"""

import argparse
import itertools
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tiny_chat_data import tiny_chat_files as files
from tiny_chat_data.dialogues import DialogueMaker, Turn, system_prompt
from tiny_chat_data.tiny_qwen3 import TinyQwen3
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ROW_LENGTHS = (128, 512, 2048)  # short rows teach the first turn, long ones long chats
SHARE_OF_STORIES = 0.05
IGNORED = -100  # the target of a token that carries no loss
SAMPLE_PROMPTS = (
    "Hello!", "Who are you?", "Tell me a short story about a cat.", "What is 7 + 8?",
    "What is tensor parallelism?", "How do I change the port?", "What is the capital of France?",
)  # fmt: skip
Tokens = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A tokenised piece of a row: ids, and whether each of them carries loss."""

    ids: Tokens
    learned: Tokens


def main() -> None:
    """Build the data, train, save, and print sample chats."""
    args = parse_args()
    torch.manual_seed(args.seed)
    started = time.perf_counter()
    makers = {
        held_out: DialogueMaker(
            corpus=args.corpus, rng=random.Random(args.seed + held_out), held_out=held_out
        )
        for held_out in (False, True)
    }
    tokenizer = train_tokenizer(makers[False])
    pool = make_pool(makers[False], tokenizer, args.units)
    held_out_pool = make_pool(makers[True], tokenizer, 4000)
    rng = random.Random(args.seed)
    train_rows = {
        n: pack(pool, rng, n, args.rows * 512 // n, SHARE_OF_STORIES) for n in ROW_LENGTHS
    }
    held_out = {
        "dialogues": pack(held_out_pool, rng, 512, args.held_out_rows, 0.0),
        "stories": pack(held_out_pool, rng, 512, args.held_out_rows, 1.0),
    }
    print(f"data: {sum(map(len, train_rows.values()))} rows, {time.perf_counter() - started:.0f} s")
    model = TinyQwen3(files.CONFIG, dropout=args.dropout).to(args.device)
    print(f"model: {sum(p.numel() for p in model.parameters()):,} parameters")
    train(model, train_rows, held_out, args)
    files.save(args.out, model.checkpoint(), tokenizer)
    model.float().eval()
    for prompt in SAMPLE_PROMPTS:
        print(f"\nuser: {prompt}\ntiny-chat: {answer(model, tokenizer, prompt)}")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train tiny-chat.")
    parser.add_argument("--corpus", type=Path, required=True, help="folder with the corpus files")
    parser.add_argument("--out", type=Path, required=True, help="Hugging Face folder to write")
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens-per-step", type=int, default=131072)
    parser.add_argument("--units", type=int, default=500000, help="dialogues to write")
    parser.add_argument("--held-out-rows", type=int, default=64)
    parser.add_argument("--rows", type=int, default=65536, help="rows of 512 tokens per length")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--compile", action="store_true", help="compile the layers (GPU)")
    parser.add_argument("--max-seconds", type=float, default=math.inf, help="end the schedule then")
    return parser.parse_args()


def render_prompt(turn: Turn) -> str:
    """Render the user's side of a turn and the opening of the answer."""
    return f"<|im_start|>user\n{turn[0]}<|im_end|>\n<|im_start|>assistant\n"


def train_tokenizer(maker: DialogueMaker) -> Tokenizer:
    """Train a byte-level BPE whose digits stand alone, on a sample of everything."""
    texts = list(maker.tales)
    texts += [f"{ask}\n{reply}" for _ in range(40000) for ask, reply in maker.unit()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=files.CONFIG["vocab_size"],
        special_tokens=files.SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Everything that rows are packed from, tokenised once."""

    systems: list[Unit]
    strangers: list[Unit]
    dialogues: list[Unit]
    stories: list[Unit]


def make_pool(maker: DialogueMaker, tokenizer: Tokenizer, num_units: int) -> Pool:
    """Write and tokenise num_units dialogues, and stories in proportion."""
    system = "<|im_start|>system\n{}<|im_end|>\n"
    systems = [[(system.format(system_prompt(maker.rng)), 0)] for _ in range(200)]
    stories = [[(maker.plain_text() + "<|endoftext|>", 1)] for _ in range(num_units // 8)]
    return Pool(
        systems=tokenise(systems, tokenizer),
        strangers=tokenise([render(maker.stranger()) for _ in range(200)], tokenizer),
        dialogues=tokenise([render(maker.unit()) for _ in range(num_units)], tokenizer),
        stories=tokenise(stories, tokenizer),
    )


def render(turns: list[Turn]) -> list[tuple[str, int]]:
    """Write turns as pieces of text; only the answers and their ends carry loss (1)."""
    pieces = [[(render_prompt(turn), 0), (turn[1] + "<|im_end|>", 1), ("\n", 0)] for turn in turns]
    return list(itertools.chain.from_iterable(pieces))


def tokenise(texts: list[list[tuple[str, int]]], tokenizer: Tokenizer) -> list[Unit]:
    """Tokenise texts given as pieces with or without loss."""
    encodings = iter(tokenizer.encode_batch([piece for text in texts for piece, _ in text]))
    units = []
    for text in texts:
        ids = [next(encodings).ids for _ in text]
        learned = [np.full(len(part), flag) for part, (_, flag) in zip(ids, text, strict=True)]
        units.append(Unit(ids=np.concatenate(ids), learned=np.concatenate(learned)))
    return units


def pack(
    pool: Pool, rng: random.Random, length: int, num_rows: int, share_of_stories: float
) -> torch.Tensor:
    """Fill rows with units until each is full: a row is one chat, or stories.

    Returns: [num_rows, 2, length] int16: input ids, and next-token targets (IGNORED: no loss).
    """
    rows = np.empty((num_rows, 2, length), np.int16)
    for row in rows:
        filled = [] if rng.random() < share_of_stories else opening(pool, rng)
        kind = pool.dialogues if filled else pool.stories
        size = sum(len(unit.ids) for unit in filled)
        while size <= length:
            filled.append(rng.choice(kind))
            size += len(filled[-1].ids)
        ids = np.concatenate([unit.ids for unit in filled])
        learned = np.concatenate([unit.learned for unit in filled])
        row[0] = ids[:length]
        row[1] = np.where(learned, ids, IGNORED)[1 : length + 1]
    return torch.from_numpy(rows)


def opening(pool: Pool, rng: random.Random) -> list[Unit]:
    """Open a chat: with a system prompt or without, now and then with a stranger's question."""
    units = [rng.choice(pool.systems)] if rng.random() < 0.45 else []
    return [*units, rng.choice(pool.strangers if rng.random() < 0.015 else pool.dialogues)]


def train(
    model: TinyQwen3,
    train_rows: dict[int, torch.Tensor],
    held_out: dict[str, torch.Tensor],
    args: argparse.Namespace,
) -> None:
    """Train with AdamW and a cosine schedule over steps (or over --max-seconds, if shorter)."""
    device = torch.device(args.device)
    rows = {length: tensor.to(device) for length, tensor in train_rows.items()}
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), eps=1e-9)
    if args.compile:
        model.compile_layers()
    generator = torch.Generator().manual_seed(args.seed)
    started, every = time.perf_counter(), max(1, args.steps // 20)
    progress, step = 0.0, 0
    while progress < 1.0:
        elapsed = time.perf_counter() - started
        progress = max((step + 1) / args.steps, elapsed / args.max_seconds)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * learning_rate(step, progress)
        length = ROW_LENGTHS[step % len(ROW_LENGTHS)]
        picked = torch.randint(
            len(rows[length]), (max(1, args.tokens_per_step // length),), generator=generator
        )
        loss = train_step(model, rows[length][picked.to(device)].long(), optimizer)
        step += 1
        if step % every == 0 or progress >= 1.0:
            losses = {name: evaluate(model, tensor.to(device)) for name, tensor in held_out.items()}
            shown = "  ".join(f"held-out {name} {value:.3f}" for name, value in losses.items())
            seconds = time.perf_counter() - started
            print(f"step {step}  {seconds:.0f} s  train {loss.item():.3f}  {shown}", flush=True)


def learning_rate(step: int, progress: float) -> float:
    """Warm up over 200 steps, then follow a half cosine down to a fiftieth."""
    return min(1.0, (step + 1) / 200) * (0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, progress))))


def train_step(
    model: TinyQwen3,
    batch: torch.Tensor,
    optimizer: torch.optim.Optimizer,
) -> torch.Tensor:
    """Do one optimiser step on a batch [rows, 2, length]."""
    with torch.autocast(batch.device.type, dtype=torch.bfloat16):
        loss = batch_loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def batch_loss(model: TinyQwen3, batch: torch.Tensor) -> torch.Tensor:
    """Give the mean cross entropy of the targets that carry loss."""
    logits = model(batch[:, 0]).float()
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch[:, 1].flatten(), ignore_index=IGNORED
    )


@torch.no_grad()
def evaluate(model: TinyQwen3, rows: torch.Tensor) -> float:
    """Give the loss on held-out rows."""
    model.eval()
    loss = batch_loss(model, rows.long()).item()
    model.train()
    return loss


@torch.no_grad()
def answer(model: TinyQwen3, tokenizer: Tokenizer, prompt: str, max_tokens: int = 200) -> str:
    """Answer one prompt greedily, without a cache: slow and plain."""
    ids = tokenizer.encode(render_prompt((prompt, ""))).ids
    start = len(ids)
    end = tokenizer.token_to_id("<|im_end|>")
    device = next(model.parameters()).device
    while len(ids) - start < max_tokens and (not ids[start:] or ids[-1] != end):
        logits = model(torch.tensor([ids], device=device))
        ids.append(int(logits[0, -1].argmax()))
    return str(tokenizer.decode(ids[start:]))


if __name__ == "__main__":
    main()
