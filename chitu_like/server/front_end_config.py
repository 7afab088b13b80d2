"""What the leader tells the front end when it starts it: one JSON line on stdin."""

from __future__ import annotations

import msgspec

from chitu_like.core.errors import ConfigError
from chitu_like.router.policy import DEFAULT_POLICY


class FrontEndConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the front end needs to know; the bounds were checked where the keys were read.

    Attributes:
        num_instances: how many there are; the leader says later where, see `leader.Connect`.
        secret: the word that opens them.
        model_name: what /v1/models says.
        host, port: where to listen; port 0 takes a free one.
        api_keys: bearer keys; none: everybody may.
        admin_api_key: bearer key of the admin routes; None: they are off.
        tokenizer_path: folder; None: token ids in and out, text is ''.
        chat_template: Jinja text that replaces the tokenizer's own.
        eos_token_ids: end-of-text tokens; empty: the tokenizer's.
        policy: which instance gets a request, see router/policy.py.
        seed: of what the policy draws.
        sampling_defaults: fields of SamplingParams from the model's generation_config.
        ignore_eos: no request ends at end-of-text (infer.stop_with_eos=false).
        drain_timeout_s: time that open requests have after the order to drain.
        request_timeout_s: deadline of a request; None: none.
        stall_timeout_s: open requests and no step for this long: give up.
        keep_alive_s: silence after which a stream gets a comment.
        max_queued_requests, max_queued_tokens: admission bounds of each instance.
        leader_pid: rank 0, or its supervisor. None: nobody to watch or to end.
        is_supervised: the leader ends the ranks of instances that it hears have failed; else the
            leader itself is the one instance, and is ended when it stalls.
        run_dir: removed at the end: a leader that was killed cannot. None: nothing.
        log_dir, started: where the log file goes, see configure_logging; None: stderr alone.
    """

    num_instances: int
    secret: str
    model_name: str
    host: str = "127.0.0.1"
    port: int = 0
    api_keys: list[str] = []
    admin_api_key: str | None = None
    tokenizer_path: str | None = None
    chat_template: str | None = None
    eos_token_ids: list[int] = []
    policy: str = DEFAULT_POLICY
    seed: int = 0
    sampling_defaults: dict[str, int | float] = {}
    ignore_eos: bool = False
    drain_timeout_s: float = 25.0
    request_timeout_s: float | None = None
    stall_timeout_s: float = 120.0
    keep_alive_s: float = 10.0
    max_queued_requests: int = 4096
    max_queued_tokens: int = 1 << 22
    leader_pid: int | None = None
    is_supervised: bool = False
    run_dir: str | None = None
    log_dir: str | None = None
    started: str | None = None

    @classmethod
    def from_json(cls, line: bytes) -> FrontEndConfig:
        """Read the line. Raises: ConfigError naming the fault."""
        try:
            config = msgspec.json.decode(line, type=cls)
        except msgspec.DecodeError as error:
            raise ConfigError(f"the front end's configuration is broken: {error}") from None
        return config

    def to_json(self) -> bytes:
        """The line to write, its end included."""
        return msgspec.json.encode(self) + b"\n"
