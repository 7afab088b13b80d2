"""What each `auto` becomes that files and the device decide, before weights are read.

How many KV blocks fit is known only after the profile run; `settle` decides what hangs on it.
"""

from chitu_like.config.attention_choice import choose_attention, why_not_captured
from chitu_like.config.deterministic import KERNELS, check_deterministic
from chitu_like.config.device_facts import GIB, DeviceFacts
from chitu_like.config.parallel import check_layout
from chitu_like.config.preprocessed import find_preprocessed, require_dtype
from chitu_like.config.resolved import Decision, ResolvedConfig
from chitu_like.config.schema import DeviceType, Dtype, ServeConfig
from chitu_like.config.section import show
from chitu_like.core.errors import CapacityError, ConfigError, UnsupportedError
from chitu_like.core.model_spec import ModelSpec

# A step on cpu takes milliseconds per prompt token of a billion weights, so the chunk is what a
# decode beside it waits for; on cuda 8192 tokens keep every multiprocessor busy and pass in tens of
# milliseconds. All four are starting points, to be measured per machine.
CPU_BATCHED_TOKENS, CUDA_BATCHED_TOKENS = 2048, 8192
CPU_CHUNK, CUDA_CHUNK = 512, 8192
# Rows of a block are contiguous: attention on cpu reads longer runs per table look-up; 16 is what
# every paged kernel on cuda takes.
CPU_BLOCK_SIZE, CUDA_BLOCK_SIZE = 32, 16
SKEW_MAX_SEQ_LEN = 4096  # a slot is paid for whole, so the model's limit would leave few of them
CUDA_SWAP_GIB = 4.0
MAX_QUEUED_REQUESTS = 4096
MAX_QUEUED_TOKENS = 4 << 20  # about 32 MiB of ids on the host


def resolve(config: ServeConfig, facts: DeviceFacts, spec: ModelSpec) -> ResolvedConfig:
    """Decide every `auto` that files and the device decide.

    Args:
        config: as loaded.
        facts: of the device that `config.infer.device` asks for, or of the best one if auto.
        spec: the model's shape.

    Raises:
        ConfigError: a given value contradicts the model or the device.
        UnsupportedError: the device cannot compute the dtype asked for.
        CapacityError: more host memory is asked for than there is.
    """
    return _Resolver(config, facts, spec).resolve()


class _Resolver:
    """Walks the keys in the order in which they depend on each other, noting each decision."""

    def __init__(self, config: ServeConfig, facts: DeviceFacts, spec: ModelSpec) -> None:
        self.config, self.facts, self.spec = config, facts, spec
        self.manifest = find_preprocessed(config)
        self.decisions: list[Decision] = []

    def resolve(self) -> ResolvedConfig:
        infer, scheduler = self.config.infer, self.config.scheduler
        device = self._device()
        check_deterministic(self.config, self.facts, self.spec)
        on_cpu = device == "cpu"
        dtype = self._dtype(device)
        self._skip_preprocess(dtype)
        check_layout(self.config, self.spec)
        max_seq_len = self._max_seq_len()
        block_size = self._block_size(on_cpu, max_seq_len)
        batched_tokens, chunk = self._step_tokens(on_cpu)
        self._note_foregone(dtype)
        attn_type = self._attn_type(dtype)
        return ResolvedConfig(
            config=self.config,
            device=device,
            dtype=dtype,
            block_size=block_size,
            prefill_chunk_size=chunk,
            max_num_batched_tokens=batched_tokens,
            max_queued_requests=self._number(
                "scheduler.max_queued_requests",
                scheduler.max_queued_requests,
                MAX_QUEUED_REQUESTS,
                "minutes of work; more is answered 503",
            ),
            max_queued_tokens=self._number(
                "scheduler.max_queued_tokens",
                scheduler.max_queued_tokens,
                max(MAX_QUEUED_TOKENS, 2 * max_seq_len),
                "bounds the host memory of waiting prompts",
            ),
            attn_type=attn_type,
            op_impl=self._op_impl(on_cpu),
            use_cuda_graph=self._use_cuda_graph(on_cpu, attn_type),
            swap_space_bytes=self._swap_space_bytes(on_cpu),
            enable_prefix_caching=self._prefix_caching(),
            num_blocks=None if infer.num_blocks == "auto" else infer.num_blocks,
            max_reqs=None if infer.max_reqs == "auto" else infer.max_reqs,
            max_seq_len=max_seq_len,
            decisions=tuple(self.decisions),
        )

    def _note(self, key: str, value: object, reason: str) -> None:
        self.decisions.append(Decision(key, show(value), reason))

    def _number(self, key: str, given: int | str, auto: int, reason: str) -> int:
        if isinstance(given, int):
            return given
        self._note(key, auto, reason)
        return auto

    def _name(self, key: str, given: str, auto: str, reason: str) -> str:
        if given != "auto":
            return given
        self._note(key, auto, reason)
        return auto

    def _device(self) -> DeviceType:
        asked, facts = self.config.infer.device, self.facts
        if asked == "cuda" and facts.device != "cuda":
            raise ConfigError("infer.device=cuda: no CUDA device is visible; use auto or cpu")
        assert asked in ("auto", facts.device), f"facts of {facts.device}, asked for {asked}"
        if asked == "auto":
            there = facts.name if facts.device == "cuda" else "no CUDA device is visible"
            self._note("infer.device", facts.device, there)
        return facts.device

    def _dtype(self, device: DeviceType) -> Dtype:
        asked, facts = self.config.dtype, self.facts
        if asked == "bfloat16" and not facts.supports_bf16:
            raise UnsupportedError(
                f"dtype=bfloat16: {facts.name} does not compute it; use float16 or float32"
            )
        if asked != "auto":
            return asked
        held = self.manifest.dtype if self.manifest else self.spec.dtype
        fallback: Dtype = "float16" if device == "cuda" else "float32"
        if held == "bfloat16" and not facts.supports_bf16:
            self._note("dtype", fallback, f"{facts.name} does not compute bfloat16")
            return fallback
        dtype: Dtype = "bfloat16" if held == "bfloat16" else "float16"
        dtype = "float32" if held == "float32" else dtype
        self._note("dtype", dtype, "the checkpoint's")
        return dtype

    def _skip_preprocess(self, dtype: Dtype) -> None:
        if self.manifest is not None:
            require_dtype(self.manifest, self.config, dtype)
        if self.config.skip_preprocess == "auto":
            reason = "its manifest says so" if self.manifest else "a Hugging Face folder"
            self._note("skip_preprocess", self.manifest is not None, reason)

    def _max_seq_len(self) -> int:
        asked, limit = self.config.infer.max_seq_len, self.spec.max_seq_len
        if asked == "auto" and self.config.infer.cache_type == "skew":
            return min(limit, SKEW_MAX_SEQ_LEN)
        if asked == "auto":
            return limit
        if asked > limit:
            raise ConfigError(
                f"infer.max_seq_len={asked} exceeds what {self.config.models.name} is made for: "
                f"use at most {limit}"
            )
        return asked

    def _block_size(self, on_cpu: bool, max_seq_len: int) -> int:
        """With the skew cache a slot is one block as long as the longest request."""
        asked = self.config.infer.block_size
        if self.config.infer.cache_type == "skew":
            if asked != "auto":
                raise ConfigError(
                    f"infer.block_size={asked} has no meaning with infer.cache_type=skew, whose "
                    "slots are infer.max_seq_len long: leave it out, or use cache_type=paged"
                )
            self._note("infer.block_size", max_seq_len, "a skew slot holds a whole request")
            return max_seq_len
        auto = CPU_BLOCK_SIZE if on_cpu else CUDA_BLOCK_SIZE
        reason = "long runs read well on cpu" if on_cpu else "what every paged kernel takes"
        return self._number("infer.block_size", asked, auto, reason)

    def _step_tokens(self, on_cpu: bool) -> tuple[int, int]:
        """(max_num_batched_tokens, prefill_chunk_size)."""
        infer, scheduler = self.config.infer, self.config.scheduler
        least = [value for value in (infer.prefill_chunk_size, infer.max_reqs) if value != "auto"]
        budget = self._number(
            "scheduler.max_num_batched_tokens",
            scheduler.max_num_batched_tokens,
            max([CPU_BATCHED_TOKENS if on_cpu else CUDA_BATCHED_TOKENS, *least]),
            "keeps the device busy without long steps",
        )
        chunk = self._number(
            "infer.prefill_chunk_size",
            infer.prefill_chunk_size,
            min(CPU_CHUNK if on_cpu else CUDA_CHUNK, budget),
            "a longer chunk would hold up the decodes beside it",
        )
        return budget, chunk

    def _attn_type(self, dtype: Dtype) -> str:
        best, reason = choose_attention(self.facts, self.spec.head_dim, dtype)
        if self.config.infer.deterministic:
            best, reason = KERNELS, "infer.deterministic: it adds up in one order"
        return self._name("infer.attn_type", self.config.infer.attn_type, best, reason)

    def _op_impl(self, on_cpu: bool) -> str:
        asked = self.config.infer.op_impl
        if asked == "triton" and on_cpu:
            raise ConfigError("infer.op_impl=triton: needs a CUDA device; use auto or torch")
        auto, reason = "triton", "torch's own sampling would wait for the device in every step"
        if on_cpu:
            auto, reason = "torch", "the only one on cpu"
        if self.config.infer.deterministic:
            auto, reason = KERNELS, "infer.deterministic: a row is computed in one order"
        return self._name("infer.op_impl", asked, auto, reason)

    def _use_cuda_graph(self, on_cpu: bool, attn_type: str) -> bool:
        asked = self.config.infer.use_cuda_graph
        if asked is True and on_cpu:
            raise ConfigError("infer.use_cuda_graph=true: needs a CUDA device; use auto or false")
        why_not = "there are none on cpu" if on_cpu else why_not_captured(attn_type)
        if asked is True and why_not:
            raise ConfigError(
                f"infer.use_cuda_graph=true: {why_not}; use triton, flashinfer, xqa or flash_attn "
                "for them, or false"
            )
        if asked != "auto":
            return asked
        self._note(
            "infer.use_cuda_graph", why_not is None, why_not or "a decode step is one launch"
        )
        return why_not is None

    def _swap_space_bytes(self, on_cpu: bool) -> int:
        asked, free = self.config.infer.swap_space_gib, self.facts.host_free_bytes
        if asked == "auto":
            fits = min(CUDA_SWAP_GIB, free / 4 / GIB)
            auto, reason = (0.0, "blocks lie in host memory already")
            if not on_cpu:
                auto, reason = round(fits, 2), "4, but at most a quarter of the free host memory"
            self._note("infer.swap_space_gib", f"{auto:g}", reason)
            return int(auto * GIB)
        if asked * GIB > free:
            raise CapacityError(
                f"infer.swap_space_gib={asked:g} exceeds the {free / GIB:.1f} GiB of free host "
                "memory: use less, or 0 to preempt by recomputing"
            )
        return int(asked * GIB)

    def _note_foregone(self, dtype: Dtype) -> None:
        """Note the autos that have one outcome in this version; see support.py."""
        infer = self.config.infer
        for key, given, value, reason in (
            ("infer.kv_cache_dtype", infer.kv_cache_dtype, dtype, "the model's dtype"),
            ("infer.mla_absorb", infer.mla_absorb, "none", "the model has no latent attention"),
            ("infer.soft_fp8", infer.soft_fp8, False, "the weights are not FP8"),
        ):
            if given == "auto":
                self._note(key, value, reason)

    def _prefix_caching(self) -> bool:
        asked = self.config.infer.enable_prefix_caching
        if asked and self.config.infer.cache_type == "skew":
            reason = "infer.cache_type=skew gives each request a slot of its own"
            self._note("infer.enable_prefix_caching", False, reason)
            return False
        return asked
