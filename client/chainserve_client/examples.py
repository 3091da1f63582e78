"""What `--help` shows below the options of each command."""

import argparse
from collections.abc import Mapping

TOKEN_HELP = "join token, as a server of the swarm printed it; -: read it from standard input"

EXAMPLES = {
    "": """\
first steps:
  chainserve chat TOKEN "Why is the sky blue?"     ask a swarm whose join token you have
  chainserve status TOKEN                          see who is in it
  chainserve health TOKEN                          see all of it on a page, live
  chainserve gateway TOKEN                         serve it to programs that speak OpenAI's API
  chainserve doctor TOKEN                          find out why something does not work
servers are started with chainserve-server; `chainserve COMMAND --help` has examples of each command""",
    "chat": """\
examples:
  chainserve chat TOKEN
  chainserve chat TOKEN "Why is the sky blue?" --temperature 0
  chainserve chat TOKEN "Name three rivers" --json | jq -r .text""",
    "generate": """\
examples:
  chainserve generate TOKEN "Once upon a time" --max-new-tokens 64
  chainserve generate TOKEN "Dear Sir" --temperature 0.8 --seed 7 --stop "Yours" """.rstrip(),
    "status": """\
examples:
  chainserve status TOKEN
  chainserve status TOKEN --json | jq '.models[].missing_blocks'""",
    "plan": """\
examples:
  chainserve plan --model smollm2-135m --servers servers.toml
  chainserve plan --model org/name --servers servers.toml --rate 0.02 --json
a servers.toml with one table per server:
  [servers.office]
  gpu = "A100 80GB"
  round_trip = "12 ms" """.rstrip(),
    "gateway": """\
examples:
  chainserve gateway TOKEN
  chainserve api-key alice >> keys.toml
  chainserve gateway TOKEN --host 0.0.0.0 --api-keys keys.toml""",
    "api-key": """\
example:
  chainserve api-key alice >> keys.toml     # the key itself goes to the terminal""",
    "health": """\
examples:
  chainserve health TOKEN
  chainserve health TOKEN --host 0.0.0.0 --api-keys keys.toml""",
    "token": """\
examples:
  chainserve token TOKEN
  chainserve token TOKEN --json | jq .expires_at
exit status: 0 if one can join with it now, 1 if it has expired or nobody answers, 2 if it is no token""",
    "doctor": """\
examples:
  chainserve doctor                                        this machine alone
  chainserve doctor --model smollm2-135m                   and whether it can have a model
  chainserve doctor TOKEN --host 0.0.0.0 --port 8300       and whether others reach a server there
exit status: 0 if nothing has failed, else 1""",
    "bench": """\
examples:
  chainserve bench TOKEN --rate 0.5 --requests 20
  chainserve bench TOKEN --rate 0.5 --requests 300 --clients 4 --arrivals gamma --shape 0.3 --output bursts
  chainserve bench TOKEN --trace azure.csv --requests 300 --rate 0.5 --scale-tokens 0.1 --output trace
  chainserve bench --url http://127.0.0.1:8000/v1 --model smollm2-135m --rate 2 --json
requests are sent when their time has come, however long those before them take; Ctrl-C shows what is there so far;
exit status: 0 if all were answered, 1 if not, 130 after Ctrl-C""",
    "completion": """\
examples:
  chainserve completion bash > ~/.local/share/bash-completion/completions/chainserve
  chainserve completion zsh > ~/.zfunc/_chainserve           # a folder in $fpath
  chainserve completion fish > ~/.config/fish/completions/chainserve.fish""",
}


def add_examples(parsers: Mapping[str, argparse.ArgumentParser]) -> None:
    """Have the parsers of these commands show their examples."""
    for command, examples in EXAMPLES.items():
        parsers[command].epilog = examples
        parsers[command].formatter_class = argparse.RawDescriptionHelpFormatter
