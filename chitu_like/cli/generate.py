"""`chitu-like generate`: the prompts of a file, answered into a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from chitu_like.cli.command_line import Parser
from chitu_like.cli.prompt_file import PromptLine, read_prompts
from chitu_like.cli.result_file import ResultWriter, Row, line_of, open_results, read_results
from chitu_like.cli.sampling_options import add_sampling_options, with_given_sampling
from chitu_like.core.ending import DONE, INTERRUPTED
from chitu_like.core.errors import ChituError, ConfigError
from chitu_like.core.interrupt import noted_interrupt
from chitu_like.core.output import RequestOutput
from chitu_like.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from chitu_like.answer import Prompt
    from chitu_like.llm import LLM  # brings torch: only once the input is known to be there


def run(prog: str, arguments: Sequence[str]) -> int:
    """Answer every line; Ctrl-C keeps what there is."""
    options = _parser(prog).parse_intermixed_args(arguments)
    lines = read_prompts(options.input, options.format, as_chat=options.chat)
    kept = _earlier_results(options)
    done = {line_of(row) for row in kept}
    todo = [line for line in lines if line.line not in done]
    # Opened before the model is loaded: a path that cannot be written is known at once.
    with open_results(options.output, [line.line for line in lines], kept) as results:
        from chitu_like.llm import LLM

        with LLM(*options.overrides, progress=sys.stderr.isatty()) as llm:
            job = _Job(llm, with_given_sampling(llm.default_params(), options))
            with noted_interrupt() as was_pressed:
                job.run(todo, results, was_pressed)
    _report(job, len(kept), options.output)
    return INTERRUPTED if job.num_done < len(todo) else DONE


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Answer the prompts of a file. The input has one prompt a line, or JSON lines: "
        '{"prompt": TEXT or TOKEN IDS} or {"messages": [...]}, with any sampling field '
        '(max_tokens, temperature, stop ...) and an "id" beside it. The output has one JSON '
        "object for each line that is not empty, in the order of the input; a line that cannot be "
        "answered gets its error. Answers are on the disk as soon as they end: an interrupted run "
        "goes on with --resume.",
        [
            f"{prog} --input questions.txt --chat --output answers.jsonl --max-tokens 100",
            f"{prog} --input chats.jsonl --output - models=auto models.ckpt_dir=/models/Qwen3-0.6B",
        ],
    )
    parser.add_argument("--input", required=True, metavar="FILE", help="prompts; -: standard input")
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="answers; -: standard output"
    )
    parser.add_argument(
        "--format",
        choices=("auto", "text", "jsonl"),
        default="auto",
        help="of the input (default: jsonl if its first line begins with a brace)",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="a prompt that is a text is what a user says: it goes through the chat template",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="keep the answers in the output, do the rest"
    )
    existing.add_argument("--overwrite", action="store_true", help="begin anew")
    add_sampling_options(parser)
    parser.add_overrides()
    return parser


def _earlier_results(options: argparse.Namespace) -> list[Row]:
    """What is kept of an output that is there already."""
    path = Path(options.output)
    if options.output == "-" or not path.exists():
        return []
    if options.input != "-" and path.samefile(options.input):
        raise ConfigError(f"--output {path} is the input: name another file")
    if options.resume:
        return read_results(path)
    if not options.overwrite and (not path.is_file() or path.stat().st_size):
        raise ConfigError(
            f"--output {path} is there already: add --resume to keep its answers and do the rest, "
            "or --overwrite to begin anew"
        )
    return []


class _Job:
    """Lines in, rows out.

    Args:
        llm: answers.
        defaults: for what a line leaves out.

    Attributes:
        num_done: lines that have their answer or error.
        num_errors: of them, those with an error.
    """

    def __init__(self, llm: LLM, defaults: SamplingParams) -> None:
        self.num_done = 0
        self.num_errors = 0
        self._llm = llm
        self._defaults = defaults

    def run(
        self, lines: list[PromptLine], results: ResultWriter, stop_when: Callable[[], bool]
    ) -> None:
        """Answer all lines, or those that end before stop_when() is true."""
        sound: list[PromptLine] = []
        prompts: list[Prompt] = []
        params: list[SamplingParams] = []
        for line in lines:
            request = self._request(line)
            if isinstance(request, str):
                self._put(results, _refusal(line, request))
            else:
                sound.append(line)
                prompts.append(request[0])
                params.append(request[1])
        with _progress_bar() as bar:
            task = bar.add_task("generating", total=len(sound))
            for index, output in self._llm.generate_each(prompts, params, stop_when=stop_when):
                self._put(results, _row(sound[index], output))
                bar.advance(task)

    def _request(self, line: PromptLine) -> tuple[Prompt, SamplingParams] | str:
        """What to ask of the engine, or the sentence that says why the line cannot be answered."""
        if line.error is not None:
            return line.error
        try:
            params = replace(self._defaults, **(line.sampling or {}))  # type: ignore[arg-type]
            if line.messages is not None:
                return self._llm.render_chat(line.messages), params
        except ChituError as error:
            return str(error)
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            names = ", ".join(line.sampling or {})
            return f"one of the sampling fields {names} has the wrong type: {error}"
        assert line.prompt is not None, f"line {line.line} has neither prompt, messages nor error"
        return line.prompt, params

    def _put(self, results: ResultWriter, row: dict[str, object]) -> None:
        results.write(row)
        self.num_errors += "error" in row
        self.num_done += row.get("finish_reason") != "abort"


def _row(line: PromptLine, output: RequestOutput) -> dict[str, object]:
    if output.error is not None:
        return _refusal(line, output.error)
    choice = output.outputs[0]
    return {
        **_names(line),
        "text": choice.text,
        "token_ids": choice.token_ids,
        # Only an answer that an interrupt cut short has none.
        "finish_reason": choice.finish_reason.value if choice.finish_reason else "abort",
        "num_prompt_tokens": len(output.prompt_token_ids),
        "num_output_tokens": len(choice.token_ids),
    }


def _refusal(line: PromptLine, error: str) -> dict[str, object]:
    return {**_names(line), "error": error}


def _names(line: PromptLine) -> dict[str, object]:
    """What tells which line a row answers."""
    names: dict[str, object] = {"line": line.line}
    if line.id is not None:
        names["id"] = line.id
    return names


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )


def _report(job: _Job, num_kept: int, output: str) -> None:
    words = [f"{job.num_done - job.num_errors} answered"]
    if job.num_errors:
        words.append(f"{job.num_errors} with an error")
    if num_kept:
        words.append(f"{num_kept} kept from before")
    place = "" if output == "-" else f" in {output}"
    print(f"{', '.join(words)}{place}", file=sys.stderr)
