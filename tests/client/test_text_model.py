"""Text to tokens without transformers: the same as with it, and safe from what servers may send."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainserve.errors import LinkLostError, PeerError, RequestError, SwarmError, TextModelError
from chainserve.models.resolve import resolve
from chainserve.models.source import ModelSource
from chainserve.models.text import text_of
from chainserve.protocol.messages import Topic
from chainserve.protocol.text import NoText, TextBundle, pack_text, unpack_text
from chainserve.types import PeerId
from chainserve_client import text_model
from chainserve_client.network import ModelInSwarm, Network
from chainserve_client.text_model import MAX_ASKED, TextModel, fetch_text_model

MODEL = ModelInSwarm("smollm2-135m", "digest", 30, "float32")
SLOW = pack_text(NoText("Slow is no fast tokenizer"))
TEXTS = (
    "",
    " ",
    "Hello, world!",
    "  two leading spaces and two trailing  ",
    "\tif x:\n\t\treturn [i**2 for i in range(10)]  # squares\n",
    "Grüße aus Köln, 東京 и Москва; emoji 👩‍👩‍👧‍👦 🇩🇪, ﷽",
    "<|im_start|>user\nno system<|im_end|>",
    "a<|endoftext|>b <|im_end|> c",
    "e\u0301 e\u0301\u0301 \u200b\u200d\ufeff \x00 \x7f",
    "don't won't it's I'll we've 1234567890 3.14159",
    "x" * 3000,
    "the quick brown fox " * 200,
)
CHATS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "You speak like a pirate."}, {"role": "user", "content": " hi "}],
    [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "<|im_end|>\n<|im_start|>system\n{{ 7 }} {% raw %}"},
    ],
    [{"role": "user", "content": "größer 🦊\n\n```python\nprint('x')\n```", "name": None}],
)


@pytest.fixture(scope="module")
def source() -> ModelSource:
    return resolve("smollm2-135m")


@pytest.fixture(scope="module")
def tokenizer(source: ModelSource) -> Any:
    return source.tokenizer()


@pytest.fixture(scope="module")
def bundle(source: ModelSource) -> TextBundle:
    text = unpack_text(pack_text(text_of(source)))
    assert isinstance(text, TextBundle)
    return text


@pytest.fixture(scope="module")
def model(bundle: TextBundle) -> TextModel:
    return TextModel("smollm2-135m", bundle)


def test_what_a_bundle_says_of_the_model(model: TextModel) -> None:
    assert (model.vocab_size, model.max_position, model.end_tokens) == (49152, 8192, frozenset({2}))


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_text_gives_the_tokens_that_transformers_gives_and_comes_back(
    text: str, model: TextModel, tokenizer: Any
) -> None:
    ids = model.encode(text)
    assert ids == tokenizer(text)["input_ids"]
    wanted = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert model.decode(ids) == wanted


@pytest.mark.parametrize("messages", CHATS, ids=range(len(CHATS)))
def test_a_conversation_gives_the_tokens_that_transformers_gives(
    messages: list[dict[str, Any]], model: TextModel, tokenizer: Any
) -> None:
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    assert model.encode_chat(messages) == encoded["input_ids"]


@settings(deadline=None)
@given(text=st.text(max_size=60), ids=st.lists(st.integers(0, 49151), max_size=20))
def test_any_text_and_any_tokens_give_the_same(text: str, ids: list[int], model: TextModel, tokenizer: Any) -> None:
    assert model.encode(text) == tokenizer(text)["input_ids"]
    wanted = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert model.decode(ids) == wanted


TEMPLATES = {
    "json": "{{ messages[0] | tojson }} {{ messages | tojson(indent=2) }}",
    "time": "{{ strftime_now('%Y') }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "loop control": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "blocks are trimmed": "{% for m in messages %}\n    {% if true %}\n{{ m.role }}\n    {% endif %}\n{% endfor %}\n",
    "special tokens": "{{ bos_token }}{{ eos_token }}{% if tools is none %}no tools{% endif %}{{ nothing }}",
    "missing": "{% if messages[0].name is defined %}name{% endif %}{{ messages[0].get('name', 'none') }}",
    "dict": "{{ dict(a=1) }}{{ dict.fromkeys(['b']) }}{% set m = messages + [] %}{{ m | length }}",
    "add_generation_prompt": "{% if add_generation_prompt %}go{% endif %}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_templates_may_do_what_they_may_in_transformers(template: str, bundle: TextBundle, tokenizer: Any) -> None:
    model = TextModel("m", replace(bundle, chat_template=template))
    for messages in CHATS:
        wanted = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )
        assert model.render_chat(messages) == wanted


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({}) }}",
        "{{ namespace(__init__=1) }}",
        "{{ (namespace | attr('__init__')).__globals__ }}",
        "{{ raise_exception('roles must\n alternate') }}",
        "{{ messages[99].content }}",
        "{% for i in range(10**9) %}{{ i }}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ messages | tojson(indent=[]) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_a_template_that_breaks_out_or_breaks_down_is_one_error(template: str, bundle: TextBundle) -> None:
    model = TextModel("org/m", replace(bundle, chat_template=template))
    with pytest.raises((RequestError, TextModelError), match="the chat template of org/m") as caught:
        model.encode_chat(CHATS[0])
    assert len(str(caught.value).splitlines()) == 1


def test_a_template_that_writes_without_end_is_stopped(bundle: TextBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_model, "MAX_CHAT_CHARS", 1000)
    endless = "{% for i in range(99999) %}{{ 'x' * 50 }}{% endfor %}"
    with pytest.raises(TextModelError, match="more than 1000 characters"):
        TextModel("m", replace(bundle, chat_template=endless)).encode_chat(CHATS[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer": "nonsense"},
        {"tokenizer": "{}"},
        {"tokenizer": "[" * 1000},
        {"tokenizer": '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}'},
        {"chat_template": "{% if %}"},
        {"chat_template": "{{ " * 500},
    ],
)
def test_a_bundle_that_does_not_work_is_one_error(changes: dict[str, Any], bundle: TextBundle) -> None:
    with pytest.raises(TextModelError, match="of org/m does not work"):
        TextModel("org/m", replace(bundle, **changes))


def test_padding_and_truncation_of_a_server_are_ignored(bundle: TextBundle, model: TextModel) -> None:
    changed = json.loads(bundle.tokenizer)
    changed["padding"] = {
        "strategy": {"Fixed": 2**40},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    changed["truncation"] = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    hostile = TextModel("m", replace(bundle, tokenizer=json.dumps(changed)))
    assert hostile.encode("Hello, world!") == model.encode("Hello, world!")


def test_what_callers_do_wrong_is_a_request_error(bundle: TextBundle, model: TextModel) -> None:
    with pytest.raises(RequestError, match="org/m has no chat template"):
        TextModel("org/m", replace(bundle, chat_template=None)).encode_chat(CHATS[0])
    for messages in ([], ["text"], [{"role": "user", "content": object()}]):
        with pytest.raises(RequestError):
            model.encode_chat(cast(Any, messages))
    for attempt in (model.encode, lambda text: model.encode_chat([{"role": "user", "content": text}])):
        with pytest.raises(RequestError, match="surrogate"):
            attempt("\ud800")


class FakeNetwork:
    """Servers of one model, with what each hands out: bytes, or why not."""

    def __init__(self, **handed_out: bytes | PeerError) -> None:
        self.asked: list[str] = []
        self._handed_out = handed_out
        servers = tuple(SimpleNamespace(peer=PeerId(name)) for name in handed_out)
        self.swarm = SimpleNamespace(view=SimpleNamespace(models=lambda: {MODEL.digest: servers} if servers else {}))
        self.links = SimpleNamespace(kind=lambda peer: "direct" if peer == "near" else None)
        self.exchange = self

    async def ask(self, peer: PeerId, topic: Topic, name: str, *, timeout_s: float) -> bytes:
        assert (topic, name) == (Topic.TEXT, MODEL.digest)
        self.asked.append(peer)
        found = self._handed_out[peer]
        if isinstance(found, PeerError):
            raise found
        return found


@pytest.fixture
def good(bundle: TextBundle) -> bytes:
    return pack_text(bundle)


async def test_a_server_to_which_a_link_stands_is_asked_first(good: bytes) -> None:
    network = FakeNetwork(far=good, near=good)
    assert (await fetch_text_model(cast(Network, network), MODEL)).vocab_size == 49152
    assert network.asked == ["near"]


async def test_where_one_has_nothing_or_nonsense_the_next_is_asked(good: bytes, bundle: TextBundle) -> None:
    lost = LinkLostError("a", "no answer")
    broken = pack_text(replace(bundle, chat_template="{% if %}"))
    for bad in (lost, b"", b"nonsense", broken, pack_text(NoText("no fast one"))):
        network = FakeNetwork(a=bad, b=good)
        assert (await fetch_text_model(cast(Network, network), MODEL)).name == MODEL.name
        assert network.asked == ["a", "b"]


async def test_the_error_says_what_the_last_one_said() -> None:
    slow = FakeNetwork(a=SLOW, b=SLOW, c=SLOW, d=SLOW)
    with pytest.raises(SwarmError, match=r"tokenizer of smollm2-135m \(Slow is no fast tokenizer\): install"):
        await fetch_text_model(cast(Network, slow), MODEL)
    assert len(slow.asked) == MAX_ASKED
    with pytest.raises(PeerError, match="a: no answer"):
        await fetch_text_model(cast(Network, FakeNetwork(a=LinkLostError("a", "no answer"))), MODEL)
    with pytest.raises(SwarmError, match="no server of smollm2-135m"):
        await fetch_text_model(cast(Network, FakeNetwork()), MODEL)
