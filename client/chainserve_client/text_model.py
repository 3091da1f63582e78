"""Text to tokens and back without the model's files: what a server hands out, run by `tokenizers` and Jinja.

It gives the same as transformers' tokenizers and chat templates. What comes from a server is hostile until it has
worked: templates run in a sandbox, and whatever goes wrong in either is one named error.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from chainserve.errors import ChainserveError, PeerError, RequestError, SwarmError, TextModelError
from chainserve.protocol.messages import Topic
from chainserve.protocol.text import TextBundle, unpack_text
from chainserve_client.network import ModelInSwarm, Network
from chainserve_client.token_bytes import bytes_of_tokens

MAX_ASKED = 3
ANSWER_S = 30.0
"""For each server that is asked: the first time it reads its tokenizer, and megabytes may have to come."""
MAX_CHAT_CHARS = 2**24
MAX_ERROR_CHARS = 300


class TextModel:
    """The text side of one model."""

    def __init__(self, name: str, bundle: TextBundle) -> None:
        """TextModelError if the bundle does not work; `name` is for errors."""
        self.name = name
        self.end_tokens = frozenset(bundle.end_tokens)
        self.vocab_size = bundle.vocab_size
        self.max_position = bundle.max_position
        self._special_tokens = dict(bundle.special_tokens)
        with _of_a_server(f"the tokenizer of {name}"):
            self._tokenizer = Tokenizer.from_str(bundle.tokenizer)
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            self._bytes_of = bytes_of_tokens(self._tokenizer)
        self.template_text = bundle.chat_template
        self._template: jinja2.Template | None = None
        if bundle.chat_template is not None:
            with _of_a_server(f"the chat template of {name}"):
                self._template = _environment().from_string(bundle.chat_template)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with those that the model wants before or after it; RequestError if it is no Unicode."""
        return self._encode(text, add_special_tokens=True)

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Token ids of a conversation ({"role": ..., "content": ...}), up to where the model answers.

        `tools` are for templates that have a place for them. RequestError if the model holds no conversations, or not
        such.
        """
        return self._encode(self.render_chat(messages, tools), add_special_tokens=False)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """The text that `encode_chat` takes the tokens of."""
        if self._template is None:
            raise RequestError(f"{self.name} has no chat template: use generate with a plain prompt")
        known = {
            "messages": _plain(messages),
            "tools": _plain(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": True,
        }
        pieces, num_chars = [], 0
        with _of_a_server(f"the chat template of {self.name}"):
            try:
                for piece in self._template.generate(self._special_tokens | known):
                    pieces.append(piece)
                    num_chars += len(piece)
                    if num_chars > MAX_CHAT_CHARS:
                        raise TextModelError(f"it writes more than {MAX_CHAT_CHARS} characters")
            except jinja2.TemplateError as error:
                raise RequestError(f"the chat template of {self.name} refuses: {_short(error)}") from error
        return "".join(pieces)

    def tokens(self) -> dict[str, int]:
        """All tokens by name, special ones included, with their ids."""
        return self._tokenizer.get_vocab()

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        with _of_a_server(f"the tokenizer of {self.name}"):
            return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token, which may be part of a character; of a special token its name."""
        with _of_a_server(f"the tokenizer of {self.name}"):
            return self._bytes_of(token)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError("the prompt is no Unicode text: it holds half of a surrogate pair") from None
        with _of_a_server(f"the tokenizer of {self.name}"):
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids


async def fetch_text_model(network: Network, model: ModelInSwarm) -> TextModel:
    """Get the text side of a model from one of its servers.

    SwarmError if its tokenizer runs only where the model's files are, otherwise the PeerError of who was asked last.
    """
    servers = [server.peer for server in network.swarm.view.models().get(model.digest, ())]
    servers.sort(key=lambda peer: network.links.kind(peer) is None)  # those first to which a link stands
    error: ChainserveError = SwarmError(f"no server of {model.name} is in the swarm now: try again in a moment")
    for peer in servers[:MAX_ASKED]:
        try:
            body = await network.exchange.ask(peer, Topic.TEXT, model.digest, timeout_s=ANSWER_S)
            if not body:
                raise PeerError(peer, f"does not hand out the tokenizer of {model.name}")
            text = unpack_text(body)
            if isinstance(text, TextBundle):
                return TextModel(model.name, text)
            error = SwarmError(
                f"the servers cannot hand out the tokenizer of {model.name} ({text.reason}): install "
                f"chainserve[client-full] where the model's files are"
            )
        except TextModelError as nonsense:
            error = PeerError(peer, str(nonsense))
        except PeerError as lost:
            error = lost
    raise error


@contextmanager
def _of_a_server(what: str) -> Iterator[None]:
    """Whatever is raised over what a server has sent becomes one error, but for what the template says itself."""
    try:
        yield
    except (RequestError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the package raises bare Exception, and panics in Rust are not even that
        raise TextModelError(f"{what} does not work: {_short(error)}") from error


def _short(error: BaseException) -> str:
    """What it says, on one line: it may be a server's own words."""
    text = " ".join(str(error).split())[:MAX_ERROR_CHARS]
    return "".join(filter(str.isprintable, text)) or type(error).__name__


def _plain(messages: Sequence[Mapping[str, Any]]) -> Any:
    """A copy of plain values, as templates can call what others have; fields that are None count as missing."""
    try:
        given = [{key: value for key, value in message.items() if value is not None} for message in messages]
        plain = json.loads(json.dumps(given))
    except RecursionError:
        raise RequestError("messages and tools are nested too deeply") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise RequestError(f'messages must be like {{"role": "user", "content": "text"}}: {error}') from None
    if not plain:
        raise RequestError("the conversation is empty: give at least one message")
    return plain


def _environment() -> ImmutableSandboxedEnvironment:
    """What transformers gives its chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


class _Dict:
    """`dict`, without what else the type has."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's, but for names that lead to Python's insides."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *more = args  # `namespace(self=...)` is allowed
        attributes = dict(*more, **kwargs)
        for name in attributes:
            _check_public(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace holds no {name!r}")


class _GenerationTag(jinja2.ext.Extension):
    """{% generation %} marks what the model has said, for training: here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON that is not escaped for HTML, as Jinja's own is."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
