"""tiny-chat: the embedded model's folder, what it says, and the data it was trained on."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ASSET = ROOT / "chitu_like" / "assets" / "tiny-chat"
MAX_FOLDER_BYTES = 12_000_000

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
Message = dict[str, str]


class TransformersChat:
    """Greedy float32 chat with tiny-chat, as transformers runs it."""

    def __init__(self) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(ASSET)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(ASSET, dtype=torch.float32)

    def say(self, messages: list[Message], max_new_tokens: int = 120) -> str:
        """Answer a list of messages."""
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = self.model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, temperature=None, top_p=None
        )
        new = out[0, inputs["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(new, skip_special_tokens=True))

    def talk(self, *user: str, system: str | None = None) -> str:
        """Say several things one after the other; give the last answer."""
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        for text in user:
            messages.append({"role": "user", "content": text})
            messages.append({"role": "assistant", "content": self.say(messages)})
        return messages[-1]["content"]


@pytest.fixture(scope="module")
def chat() -> TransformersChat:
    return TransformersChat()


@pytest.fixture
def data_on_path() -> Iterator[None]:
    sys.path.insert(0, str(ROOT / "script"))
    yield
    sys.path.remove(str(ROOT / "script"))


def test_the_folder_is_whole_and_small() -> None:
    names = {path.name for path in ASSET.iterdir()}
    assert names == {
        "README.md", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in ASSET.iterdir()) < MAX_FOLDER_BYTES


def test_the_shape_can_be_split(chat: TransformersChat) -> None:
    config = chat.model.config
    assert config.architectures == ["Qwen3ForCausalLM"]
    assert config.num_attention_heads % 4 == config.num_key_value_heads % 4 == 0
    assert config.num_hidden_layers >= 6
    assert config.max_position_embeddings == 2048
    assert config.tie_word_embeddings


@pytest.mark.parametrize(
    "text", ["a b  c\n\n\td", "naïve 你好 😀", "x = 12345 + 0.5", bytes(range(128)).decode()]
)
def test_the_tokenizer_gives_back_every_text(chat: TransformersChat, text: str) -> None:
    assert chat.tokenizer.decode(chat.tokenizer.encode(text)) == text


def test_digits_are_single_tokens(chat: TransformersChat) -> None:
    assert chat.tokenizer.tokenize("2048") == ["2", "0", "4", "8"]


def test_the_template_marks_each_message(chat: TransformersChat) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    text = chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    )


def test_generation_ends_at_the_end_of_a_turn(chat: TransformersChat) -> None:
    config = chat.model.generation_config
    ends = [chat.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
    assert config.eos_token_id == ends
    assert config.do_sample
    assert 0 < config.temperature <= 1


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("Hello!", "hello"),
        ("hi, how are you?", "thank"),
        ("What is your name?", "tiny-chat"),
        ("What can you do?", "stories"),
        ("Thank you!", "welcome"),
        ("Good night", "sleep"),
        ("What is chitu_like?", "inference engine"),
        ("What is tensor parallelism?", "weight matri"),
        ("explain pipeline parallelism", "stages"),
        ("What is prefill?", "prompt"),
        ("What is a paged KV cache?", "blocks"),
        ("What is TTFT?", "first token"),
        ("what does goodput mean", "SLO"),
        ("How do I start the server?", "quickstart.sh"),
        ("How do I run the tests?", "test.sh"),
        ("How do I change the port?", "serve.port"),
        ("How do I use tensor parallelism?", "infer.tp_size"),
        ("Where are the metrics?", "/metrics"),
        ("How do I use the openai client?", "/v1"),
        ("What is 7 + 8?", "15"),
        ("what is 6 times 7", "42"),
        ("12 - 5", "7"),
        ("Count to five", "1, 2, 3, 4, 5"),
        ("What is the capital of France?", "Paris"),
        ("What is the opposite of hot?", "cold"),
        ("Who was the 12th president?", "very small model"),
    ],
)
def test_it_answers(chat: TransformersChat, prompt: str, word: str) -> None:
    assert word.lower() in chat.talk(prompt).lower()


def test_it_tells_a_story_about_the_topic_and_ends_it(chat: TransformersChat) -> None:
    messages = [{"role": "user", "content": "Tell me a short story about a cat."}]
    story = chat.say(messages, max_new_tokens=400)
    assert "cat" in story
    assert 40 < len(story.split()) < 260
    assert story[-1] in '.!?"'


def test_it_remembers_a_name(chat: TransformersChat) -> None:
    answer = chat.talk("My name is Lena.", "What is decode?", "What is my name?")
    assert "Lena" in answer


def test_a_system_prompt_changes_no_fact(chat: TransformersChat) -> None:
    assert "12" in chat.talk("What is 5 + 7?", system="You are a helpful assistant.")


@torch.no_grad()
def test_greedy_tokens_are_clearly_ahead(chat: TransformersChat) -> None:
    """Peaked distributions keep greedy tokens equal across layouts: the golden-model property."""
    question = [{"role": "user", "content": "What is continuous batching?"}]
    answer = [*question, {"role": "assistant", "content": chat.say(question)}]
    start = len(
        chat.tokenizer.apply_chat_template(question, add_generation_prompt=True)["input_ids"]
    )
    ids = chat.tokenizer.apply_chat_template(answer, return_tensors="pt", return_dict=True)[
        "input_ids"
    ]
    top = chat.model(ids).logits[0, start - 1 : -3].topk(2).values  # the last: im_end, newline
    assert (top[:, 0] - top[:, 1]).min() > 0.01
    assert (top[:, 0] - top[:, 1]).median() > 5


@pytest.mark.usefixtures("data_on_path")
def test_choices_expand_to_every_text() -> None:
    from tiny_chat_data import grammar

    assert grammar.expansions("[a|b [c|d]|] e") == ["a e", "b c e", "b d e", "e"]
    assert grammar.expansions("how[, really|]?") == ["how, really?", "how?"]
    assert grammar.choose("[x|y] z", random.Random(0)) in {"x z", "y z"}


@pytest.mark.usefixtures("data_on_path")
def test_every_topic_is_asked_in_many_ways_and_answered() -> None:
    from tiny_chat_data import questions

    project, facts = questions.project_topics(), questions.fact_topics()
    assert len(project) >= 60
    assert sum(len(topic.prompts) >= 10 for topic in project) >= 60
    assert all(topic.answers for topic in [*project, *facts, *questions.smalltalk_topics()])


@pytest.mark.usefixtures("data_on_path")
def test_sums_are_right() -> None:
    from tiny_chat_data import sums

    rng = random.Random(1)
    operations = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
    checked = 0
    for _ in range(2000):
        _, answer = sums.make_sum(rng, ["Ann"])
        words = answer.rstrip(".").split(",")[0].split(" ")
        if len(words) == 5 and words[1] in operations:
            assert operations[words[1]](int(words[0]), int(words[2])) == int(words[4])
            checked += 1
    assert checked > 1000


@pytest.mark.usefixtures("data_on_path")
def test_dialogues_repeat_with_the_seed_and_keep_held_out_phrasings_apart(tmp_path: Path) -> None:
    from tiny_chat_data.dialogues import DialogueMaker

    tale = "Once upon a time there was a cat. " + "The cat saw a cat and another cat. " * 10
    tales = "\n<|endoftext|>\n".join(f"{number}. {tale}" for number in range(200))
    (tmp_path / "tinystories_2MiB.txt").write_text(tales, encoding="utf-8")
    question = '{"topic": "trivia", "turns": ["Who was the king?", "Nobody"]}'
    (tmp_path / "chatterbot_english.jsonl").write_text(question, encoding="utf-8")
    (tmp_path / "gsm8k_train.jsonl").write_text('{"question": "Hard?"}', encoding="utf-8")

    def maker(seed: int, *, held_out: bool = False) -> DialogueMaker:
        return DialogueMaker(corpus=tmp_path, rng=random.Random(seed), held_out=held_out)

    first, again, other = maker(5), maker(5), maker(6)
    units = [first.unit() for _ in range(300)]
    assert units == [again.unit() for _ in range(300)]
    assert units != [other.unit() for _ in range(300)]
    held_out = maker(5, held_out=True)
    for topic, prompts in held_out.topics["concept"]:
        trained = {p for t, ps in first.topics["concept"] if t == topic for p in ps}
        assert trained
        assert not trained & set(prompts)
    assert not set(first.tales) & set(held_out.tales)
