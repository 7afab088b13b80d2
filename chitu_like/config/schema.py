"""Every key a user may set, one dataclass per component; the only place its meaning is written.

`config/serve.yaml` and `config/models/base.yaml` hold the same defaults for the eye (a test keeps
them equal). A component receives its own section and never sees the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from chitu_like.config.section import Auto, JsonValue, Section, setting
from chitu_like.core.errors import ConfigError

Dtype: TypeAlias = Literal["bfloat16", "float16", "float32"]
DeviceType: TypeAlias = Literal["cuda", "cpu"]
AttentionType: TypeAlias = Literal["ref", "sdpa", "triton", "flash_attn", "flashinfer", "flash_mla"]
AttentionPair: TypeAlias = Literal[
    "flashinfer+triton",
    "flashinfer+flash_attn",
    "flashinfer+xqa",
    "flash_attn+triton",
    "flash_attn+flashinfer",
    "flash_attn+xqa",
    "triton+flashinfer",
    "triton+flash_attn",
    "triton+xqa",
]
OpImpl: TypeAlias = Literal["torch", "triton", "cuda"]
CacheType: TypeAlias = Literal["paged", "skew"]
LoadFormat: TypeAlias = Literal["auto", "dummy", "none"]
MlaAbsorb: TypeAlias = Literal["none", "absorb-without-precomp", "absorb"]
QuantName: TypeAlias = Literal[
    "llmint8", "w8a16", "simple_w8a8", "awq", "gptq", "fp8", "fp8_block", "w4a16"
]

MAX_TOKENS = 1 << 24  # no model reads 16 Mi tokens; larger is a slip of the keyboard
MAX_REQS = 1 << 16
MAX_RANKS = 1 << 12
MAX_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class ModelsConfig(Section):
    """Which model, and where its files are."""

    prefix: ClassVar[str] = "models."

    name: str = setting("tiny-chat", "the entry of config/models/ that was chosen", derived=True)
    ckpt_dir: str | None = setting(
        None,
        "Hugging Face folder: config.json and safetensors shards or one file (.bin and .pth are "
        "read with weights_only); Llama-3's original/ too; package:NAME is a model inside this "
        "package. Its config.json, where there is one, is the source of the architecture",
    )
    tokenizer_path: str | None = setting(
        None, "folder of the tokenizer; null: the same as models.ckpt_dir"
    )
    load_format: LoadFormat = setting(
        "auto",
        "auto: read the weights; dummy: random weights of the right shape and dtype, for "
        "benchmarks; none: no weights at all. With the last two a config.json alone is enough: no "
        "tokenizer, token ids in and out",
    )
    hf_config: Mapping[str, JsonValue] = setting(
        {}, "the architecture in config.json's own terms, used where ckpt_dir has no config.json"
    )
    hf_overrides: Mapping[str, JsonValue] = setting(
        {}, "architecture keys that win over config.json, e.g. models.hf_overrides.rope_theta=1e6"
    )

    @property
    def tokenizer_dir(self) -> str | None:
        """Where the tokenizer is read from."""
        return self.tokenizer_path or self.ckpt_dir


@dataclass(frozen=True, kw_only=True)
class InferConfig(Section):
    """How one instance computes."""

    prefix: ClassVar[str] = "infer."

    device: DeviceType | Auto = setting("auto", "what computes; auto: cuda where there is one")
    tp_size: int = setting(
        1, "tensor parallel degree: ranks that share each layer", low=1, high=MAX_RANKS
    )
    pp_size: int = setting(
        1, "pipeline parallel degree: stages that share the layers", low=1, high=MAX_RANKS
    )
    ep_size: int = setting(1, "expert parallel degree of MoE layers", low=1, high=MAX_RANKS)
    pp_layer_partition: tuple[int, ...] | None = setting(
        None,
        "layers of each pipeline stage, e.g. [10,12,12,10]; null: balanced, the head counted as the "
        "layers that its weights would fill",
        low=1,
        high=MAX_RANKS,
    )
    max_seq_len: int | Auto = setting(
        "auto",
        "prompt + output tokens of one request; auto: the model's limit, cut to what the KV cache "
        "holds",
        low=1,
        high=MAX_TOKENS,
    )
    max_reqs: int | Auto = setting("auto", "requests running at once", low=1, high=MAX_REQS)
    cache_type: CacheType = setting(
        "paged", "paged: KV blocks on demand; skew: one dense slot per request"
    )
    block_size: int | Auto = setting("auto", "tokens of one KV block", low=1, high=1024)
    memory_utilization: float = setting(
        0.9, "share of the device's memory to plan for", low=0.01, high=1.0
    )
    num_blocks: int | Auto = setting(
        "auto",
        "KV blocks of the pool; auto: what the profile run finds room for",
        low=1,
        high=2**31,
    )
    swap_space_gib: float | Auto = setting(
        "auto",
        "host memory for preempted requests in GiB; 0: preempt by recomputing; auto: 0 on cpu, "
        "4 on cuda",
        low=0,
        high=65536,
    )
    kv_cache_dtype: Literal["fp8_e4m3"] | Auto = setting(
        "auto", "element type of the KV cache; auto: the model's dtype"
    )
    enable_prefix_caching: bool = setting(True, "share the KV blocks of equal prefixes")
    prefill_chunk_size: int | Auto = setting(
        "auto",
        "prompt tokens per step at most, so that a long prompt never holds up the decodes beside "
        "it",
        low=1,
        high=MAX_TOKENS,
    )
    attn_type: AttentionType | AttentionPair | Auto = setting(
        "auto",
        "attention backend; of two, the first computes prompts and the second, which may be "
        "FlashInfer's xqa, decodes; auto: flashinfer+triton on cuda, or the one that is installed; "
        "sdpa on cpu and without both",
    )
    op_impl: OpImpl | Auto = setting("auto", "which twin of each op computes")
    use_cuda_graph: bool | Auto = setting(
        "auto",
        "capture steps in CUDA graphs; auto: on cuda, but not with attention ref or sdpa",
    )
    schedule_overlap: bool = setting(True, "schedule step t+1 while step t computes")
    mla_absorb: MlaAbsorb | Auto = setting("auto", "how latent attention folds its up-projections")
    soft_fp8: bool | Auto = setting("auto", "FP8 weights on devices without FP8 arithmetic")
    seed: int = setting(
        0, "seed of requests that bring none, and of dummy weights", low=0, high=2**63 - 1
    )
    stop_with_eos: bool = setting(True, "end a request at the model's end-of-sequence token")
    do_load: bool = setting(True, "false is the same as models.load_format=none")
    deterministic: bool = setting(
        False,
        "a request's tokens do not depend on what shares its batch, to the last bit of what they "
        "are drawn from; needs a CUDA device, Triton and infer.tp_size=1",
    )

    def __post_init__(self) -> None:
        """Raise ConfigError for a value or a combination that cannot be meant."""
        super().__post_init__()
        partition = self.pp_layer_partition
        if partition is not None and len(partition) != self.pp_size:
            raise ConfigError(
                f"infer.pp_layer_partition names {len(partition)} stages but infer.pp_size="
                f"{self.pp_size}: give one number per stage"
            )

    @property
    def num_ranks(self) -> int:
        """Ranks of one instance."""
        return self.tp_size * self.pp_size


@dataclass(frozen=True, kw_only=True)
class DeployConfig(Section):
    """How many instances serve."""

    prefix: ClassVar[str] = "deploy."

    replicas: int = setting(
        1, "instances of tp_size*pp_size ranks each behind the router", low=1, high=MAX_RANKS
    )


@dataclass(frozen=True, kw_only=True)
class RouterConfig(Section):
    """Which instance gets a request, where there are several."""

    prefix: ClassVar[str] = "router."

    policy: str = setting(
        "least_loaded",
        "least_loaded, round_robin, power_of_two (the less loaded of two drawn by lot) or "
        "prefix_aware (where its longest prefix was sent before, unless that one is busier)",
    )


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig(Section):
    """Who runs next, and how much may wait."""

    prefix: ClassVar[str] = "scheduler."

    type: str = setting(
        "prefill_first",
        "comma list of sort keys, the first decides: fcfs (fifo), prefill_first, stride, deadline, "
        "prefix_align, balance, mlfq, request_preset",
    )
    max_num_batched_tokens: int | Auto = setting(
        "auto", "tokens of one step at most, prefill and decode together", low=1, high=MAX_TOKENS
    )
    max_queued_requests: int | Auto = setting(
        "auto", "waiting requests at most; one more is answered 503", low=1, high=1 << 20
    )
    max_queued_tokens: int | Auto = setting(
        "auto", "prompt tokens of waiting requests at most", low=1, high=1 << 32
    )

    starvation_s: float = setting(
        60.0,
        "seconds without service after which a request goes before all others",
        low=0.001,
        high=MAX_SECONDS,
    )
    mlfq_quantum_steps: int = setting(
        8,
        "mlfq: decode steps that its first queue gives a request; each next one gives twice as many",
        low=1,
        high=1 << 20,
    )
    mlfq_prompt_tokens_per_step: int = setting(
        64, "mlfq: prompt tokens that take as long as a decode step", low=1, high=1 << 20
    )


@dataclass(frozen=True, kw_only=True)
class RequestConfig(Section):
    """The fixed request of test/single_req_test.py; nothing else reads it."""

    prefix: ClassVar[str] = "request."

    prompt_tokens_len: int = setting(
        -1, "prompt length in tokens; -1: the test's own texts", low=-1, high=MAX_TOKENS
    )
    max_new_tokens: int = setting(128, "output tokens at most", low=1, high=MAX_TOKENS)

    def __post_init__(self) -> None:
        """Raise ConfigError for a prompt of no tokens."""
        super().__post_init__()
        if self.prompt_tokens_len == 0:
            raise ConfigError("request.prompt_tokens_len=0: use -1 or a whole number above 0")


@dataclass(frozen=True, kw_only=True)
class ServeSection(Section):
    """The HTTP service."""

    prefix: ClassVar[str] = "serve."

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 opens it to the network")
    port: int = setting(21002, "port to listen on; 0: any free one", low=0, high=65535)
    api_keys: tuple[str, ...] = setting(
        (),
        "bearer keys that may use the service; none: everybody may. Also from "
        "CHITU_LIKE_API_KEYS (comma list), or file:/path with one key a line",
        secret=True,
    )
    admin_api_key: str | None = setting(
        None,
        "bearer key of the admin routes; null: they are off. Also from CHITU_LIKE_ADMIN_API_KEY, "
        "or file:/path",
        secret=True,
    )
    model_name: str | None = setting(
        None, "the name /v1/models says; null: models' name (with models=auto: the folder's)"
    )
    drain_timeout_s: float = setting(
        25.0, "seconds that running requests may use after SIGTERM", low=0, high=3600
    )
    request_timeout_s: float | None = setting(
        None, "deadline of a request in seconds; null: none", low=0.001, high=MAX_SECONDS
    )
    stall_timeout_s: float = setting(
        120.0,
        "seconds without progress on any rank before the service gives up",
        low=0.1,
        high=MAX_SECONDS,
    )

    def __post_init__(self) -> None:
        """Raise ConfigError for a key that no Authorization header can carry."""
        super().__post_init__()
        admin = () if self.admin_api_key is None else (self.admin_api_key,)
        for name, keys in (("api_keys", self.api_keys), ("admin_api_key", admin)):
            if any(not key.isascii() or " " in key for key in keys):
                raise ConfigError(f"serve.{name}=***: use keys of printable ASCII without spaces")


@dataclass(frozen=True, kw_only=True)
class ServeConfig(Section):
    """The whole configuration; `auto` values still stand where they were not given."""

    models: ModelsConfig = ModelsConfig()
    dtype: Dtype | Auto = setting("auto", "type of weights and activations; auto: the checkpoint's")
    infer: InferConfig = InferConfig()
    deploy: DeployConfig = DeployConfig()
    router: RouterConfig = RouterConfig()
    quant: QuantName | None = setting(
        None, "quantisation scheme; null: what the checkpoint declares"
    )
    quant_on_load: bool = setting(False, "quantise full weights while loading")
    quant_ckpt_dir: str | None = setting(
        None, "old name for the models.ckpt_dir of a quantised checkpoint"
    )
    skip_preprocess: bool | Auto = setting(
        "auto", "the checkpoint was written by preprocess_and_save; auto: its manifest says so"
    )
    scheduler: SchedulerConfig = SchedulerConfig()
    request: RequestConfig = RequestConfig()
    serve: ServeSection = ServeSection()
    log_dir: str = setting("outputs/", "logs go to log_dir/<start time>/rankN.log")

    def __post_init__(self) -> None:
        """Carry old names over to their keys; raise ConfigError for illegal combinations."""
        super().__post_init__()
        if self.quant_ckpt_dir is not None:
            tokenizer_path = self.models.tokenizer_path or self.models.ckpt_dir
            self._set_models(ckpt_dir=self.quant_ckpt_dir, tokenizer_path=tokenizer_path)
        if not self.infer.do_load:
            if self.models.load_format == "dummy":
                raise ConfigError(
                    "infer.do_load=false contradicts models.load_format=dummy: leave one out"
                )
            self._set_models(load_format="none")
        budget, chunk = self.scheduler.max_num_batched_tokens, self.infer.prefill_chunk_size
        if budget != "auto" and chunk != "auto" and chunk > budget:
            raise ConfigError(
                f"infer.prefill_chunk_size={chunk} exceeds scheduler.max_num_batched_tokens="
                f"{budget}: use at most {budget}"
            )

    def _set_models(self, **changes: str | None) -> None:
        object.__setattr__(self, "models", replace(self.models, **changes))  # type: ignore[arg-type]

    @property
    def num_ranks(self) -> int:
        """Ranks of all instances together."""
        return self.infer.num_ranks * self.deploy.replicas

    @property
    def served_name(self) -> str:
        """The model's name as clients see it."""
        if self.serve.model_name is not None:
            return self.serve.model_name
        if self.models.name == "auto" and self.models.ckpt_dir is not None:
            return Path(self.models.ckpt_dir).resolve().name
        return self.models.name
