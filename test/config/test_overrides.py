import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chitu_like.config.load import load_config
from chitu_like.config.overrides import parse_overrides, read_any
from chitu_like.core.errors import ConfigError

AUTO = "models=auto"

texts = st.text(
    st.characters(
        codec="utf-8", exclude_categories=["Cc", "Cs", "Cf", "Zl", "Zp", "Zs", "Co", "Cn"]
    )
    | st.sampled_from(" =,()#~'\"\\[]{}$:@%!|&;*?<>+-/."),
    min_size=1,
)
awkward = st.text(st.sampled_from(" =,()#~'\"\\[]{}$:a1"), min_size=1, max_size=12)
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True).filter(
    lambda name: name.lower() not in ("null", "true", "false", "nan", "inf")
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
)
plain_texts = st.from_regex(r"[A-Za-z][A-Za-z0-9 _/.-]{0,10}[a-z]", fullmatch=True).filter(
    lambda text: text.lower() not in ("null", "true", "false")
)
trees = st.recursive(
    scalars | plain_texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


def is_quoted(text: str) -> bool:
    stripped = text.strip()
    return len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "'\""


@settings(max_examples=20, deadline=None)
@given((texts | awkward).filter(lambda text: text.strip() and not is_quoted(text)))
def test_text_arrives_as_typed(text: str) -> None:
    config = load_config([AUTO, "models.ckpt_dir=/x", f"log_dir={text}"], environ={})
    assert config.log_dir == text


@settings(max_examples=20, deadline=None)
@given(trees)
def test_a_typed_tree_arrives_whole(tree: object) -> None:
    typed = as_typed(tree)
    config = load_config([AUTO, "models.ckpt_dir=/x", f"models.hf_overrides.k={typed}"], environ={})
    assert config.models.hf_overrides == {"k": tree}


def as_typed(tree: object) -> str:
    if isinstance(tree, list):
        return "[" + ", ".join(map(as_typed, tree)) + "]"
    if isinstance(tree, dict):
        return "{" + ",".join(f"{name}: {as_typed(part)}" for name, part in tree.items()) + "}"
    if tree is None or isinstance(tree, bool):
        return {None: "null", True: "True", False: "false"}[tree]
    return str(tree)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("scheduler.type=prefill_first,fcfs", "prefill_first,fcfs"),
        ("log_dir=C:\\new\\table\\", "C:\\new\\table\\"),
        ("log_dir=/a b/(c)=#~,{d}", "/a b/(c)=#~,{d}"),
        ("log_dir=${oc.env:HOME}", "${oc.env:HOME}"),
        ("log_dir='two words'", "two words"),
        ('log_dir="null"', "null"),
        ("log_dir=2024", "2024"),
        ("log_dir=", ""),
        ("log_dir=true", "true"),
        ("models.ckpt_dir=null", None),
        ("models.ckpt_dir='null'", "null"),
        ("infer.pp_layer_partition=[10, 12]", [10, 12]),
        ("infer.pp_layer_partition=10,12", [10, 12]),
        ("serve.api_keys=[0123,1e5,'a,b']", ["0123", "1e5", "a,b"]),
        ("serve.api_keys=[]", []),
        ("infer.max_reqs=+8", 8),
        ("infer.max_reqs=1,2", "1,2"),
        ("infer.use_cuda_graph=False", False),
        ("++infer.max_reqs=8", 8),
        ('models.hf_overrides={"a": {"b": 1.5}}', {"a": {"b": 1.5}}),
    ],
)
def test_a_value_is_read_by_the_type_of_its_key(text: str, value: object) -> None:
    (override,) = parse_overrides([text])
    assert override.value == value
    assert type(override.value) is type(value)


@pytest.mark.parametrize(
    ("given_texts", "message"),
    [
        (["infer.max_reqz=3"], "unknown key infer.max_reqz: did you mean infer.max_reqs?"),
        (["hydra.run.dir=x"], "unknown key hydra.run.dir: `chitu-like explain` lists every key"),
        (["models/x=y"], "unknown key models/x: did you mean models?"),
        (
            ["models.name=y"],
            "models.name is set by models=NAME; what clients see is serve.model_name",
        ),
        (["deploy=big"], "deploy is a section, not a key: set one of deploy.replicas"),
        (
            ["~infer.max_reqs"],
            "~infer.max_reqs: a key cannot be removed; leave it out for its default",
        ),
        (["--config-name=x"], "--config-name=x: write KEY=VALUE, for example infer.max_reqs=64"),
        (["serve"], "serve: write KEY=VALUE, for example infer.max_reqs=64"),
        (
            ["infer.max_reqs=3", "infer.max_batch_size=4"],
            "infer.max_reqs is given twice (infer.max_reqs=3 and infer.max_batch_size=4): "
            "give it once",
        ),
        (
            ["serve.api_keys=a", "serve.api_keys=b"],
            "serve.api_keys is given twice (serve.api_keys=*** and serve.api_keys=***): "
            "give it once",
        ),
        (["models=a", "models=b"], "models is given twice (models=a and models=b): give it once"),
        (
            ["models.hf_config.vocab_size=3"],
            "models.hf_config.vocab_size=3: models.hf_config belongs in a file of models/; on the "
            "command line use models.hf_overrides.vocab_size",
        ),
        (["models.hf_overrides={1:2}"], "1:2: write {name:value,...}"),
    ],
)
def test_a_slip_is_one_line(given_texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_overrides(given_texts)
    assert str(raised.value) == message


def test_brackets_and_lists_are_bounded() -> None:
    with pytest.raises(ConfigError, match="nests more than 8 brackets"):
        read_any("[" * 5000 + "]" * 5000)
    with pytest.raises(ConfigError, match="a list of 100001 parts: use at most 4096"):
        read_any("[" + "," * 100_000 + "]")
