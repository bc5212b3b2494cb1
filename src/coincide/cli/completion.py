"""``coincide completion``: a script that completes commands, options and values, else files."""

from __future__ import annotations

import argparse
import shlex
from argparse import Namespace
from collections.abc import Iterator

from coincide.cli.arguments import build_parser
from coincide.cli.options import METHODS

_BASH = """\
_coincide() {
    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" word command=""
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "$word" in %(names)s) command="$word"; break ;; esac
    done
    local found=""
    case "$command $previous" in
%(values)s
    *) case "$command $current" in
%(flags)s
        esac ;;
    esac
    COMPREPLY=($(compgen -W "$found" -- "$current"))
}
complete -o default -F _coincide coincide"""

_ZSH = """\
#compdef coincide
_coincide() {
    local word command=""
    for word in "${(@)words[2,CURRENT-1]}"; do
        case "$word" in (%(names)s) command="$word"; break ;; esac
    done
    local found=""
    case "$command ${words[CURRENT-1]}" in
%(values)s
    *) case "$command ${words[CURRENT]}" in
%(flags)s
        esac ;;
    esac
    if [[ -n $found ]]; then compadd -- ${=found}; else _files; fi
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _coincide "$@"
else compdef _coincide coincide; fi"""


def completion(arguments: Namespace) -> None:
    """Print the script."""
    commands = _commands()
    if arguments.shell == "fish":
        print("\n".join(_fish(commands)))
        return
    script = _BASH if arguments.shell == "bash" else _ZSH
    values, flags = [], []
    for name, actions in commands.items():
        for action in actions:
            listed = " ".join(_choices(action))
            pattern = [f'"{name} {flag}"' for flag in action.option_strings] or [f'"{name} "*']
            if listed:
                values.append(f'    {"|".join(pattern)}) found="{listed}" ;;')
        known = " ".join(flag for action in actions for flag in action.option_strings)
        flags.append(f'        "{name} -"*) found="{known}" ;;')
    flags.append(f'        " "*) found="{" ".join(commands)} --help --version" ;;')
    parts = {"names": "|".join(commands), "values": "\n".join(values), "flags": "\n".join(flags)}
    print(script % parts)


def _commands() -> dict[str, list[argparse.Action]]:
    """Return the arguments of every command that help shows."""
    commands = next(action.choices for action in build_parser()._actions if action.choices)
    assert isinstance(commands, dict)
    return {
        name: [action for action in parser._actions if action.help != argparse.SUPPRESS]
        for name, parser in commands.items()
    }


def _choices(action: argparse.Action) -> list[str]:
    """Return the values of an option, where they are few."""
    known = METHODS if action.dest == "method" else action.choices or ()
    return [str(choice) for choice in known]


def _fish(commands: dict[str, list[argparse.Action]]) -> Iterator[str]:
    """Yield a line for every command, and one for every option of it."""
    yield f"complete -c coincide -n __fish_use_subcommand -xa {shlex.quote(' '.join(commands))}"
    for name, actions in commands.items():
        start = f"complete -c coincide -n '__fish_seen_subcommand_from {name}'"
        for action in actions:
            flags = [f"-l {f[2:]}" if f[1] == "-" else f"-s {f[1:]}" for f in action.option_strings]
            if listed := _choices(action):
                flags.append(f"-xa {shlex.quote(' '.join(listed))}")
            elif action.nargs != 0:
                flags.append("-r")
            if flags != ["-r"]:
                yield " ".join([start, *flags])
