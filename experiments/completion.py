"""Tab completion in bash for ``python -m experiments.<command>``, as a function that is sourced.

Hydra's own completes ``python file.py`` alone, and starts Python at every press of the key.
"""

import re
from importlib import import_module

from experiments.help import sections

_FLAGS = ["--help ", "--version "]
_OF_HYDRA = ["-m ", "--multirun ", "--cfg ", "--config-dir "]
_OF_SWEEPS = {
    "hydra/launcher=": ["local", "basic", "ray", "submitit_local", "submitit_slurm"],
    "hydra.launcher.workers=": [],
    "hydra.sweeper.part=": [],
}
_FUNCTION = r"""# Tab completion of flowlab's commands: python -m experiments.<command>
_flowlab() {
    local line=${COMP_LINE:0:COMP_POINT} IFS=$'\n' command= key= given= words= found
    local word=${line##*[[:space:]]}
    COMPREPLY=()
    if [[ $line =~ [[:space:]]-m[[:space:]]+experiments\.([a-z]+)[[:space:]] ]]; then
        command=${BASH_REMATCH[1]}
    elif [[ $line =~ [[:space:]]-m[[:space:]]+[^[:space:]]*$ ]]; then
        COMPREPLY=($(compgen -W "$_flowlab_commands" -- "$word"))
        return
    else
        return
    fi
    key=${word%%=*} given=${word#*=}
    if [[ $word != *=* ]]; then
        found=($(compgen -W "${_flowlab_keys[$command]}" -- "$word"))
    else
        [[ $IFS${_flowlab_keys[$command]}$IFS == *"$IFS$key=$IFS"* ]] || return
        # Of values between commas, the last one.
        words=${_flowlab_values[$command $key]-${_flowlab_values[$key]-}}
        [[ $given == *,* ]] && given=${given##*,}
        if [[ $words ]]; then
            found=($(compgen -P "${word:0:${#word}-${#given}}" -W "$words" -- "$given"))
        else
            found=($(compgen -P "${word:0:${#word}-${#given}}" -f -- "$given"))
        fi
        # Readline replaces what stands behind the last equals sign, where that parts words.
        [[ $COMP_WORDBREAKS == *=* ]] && found=("${found[@]#"${word%=*}="}")
    fi
    COMPREPLY=("${found[@]}")
}
complete -o nospace -o default -F _flowlab python python3
"""


def script(names: list[str]) -> str:
    """The function for these commands, with the keys and values of each."""
    settings = {key: own for section in sections().values() for key, own in section.items()}
    keys, values = {}, {key: _values(own.allowed) for key, own in settings.items()}
    for name in names:
        command = import_module(f"experiments.{name}").COMMAND
        own = {f"{key}=": _values(option.allowed) for key, option in command.options.items()}
        keys[name] = [*_FLAGS, *own]
        values |= {f"{name} {key[:-1]}": found for key, found in own.items()}
        if command.composed:
            keys[name] += [*_OF_HYDRA, *(f"{key}=" for key in settings)]
        if name == "run":
            keys[name] += _OF_SWEEPS
    values |= {key[:-1]: found for key, found in _OF_SWEEPS.items()}
    modules = _lines(f"experiments.{name} " for name in names)
    return (
        f"_flowlab_commands={modules}\n{_array('keys', keys)}{_array('values', values)}{_FUNCTION}"
    )


def _values(allowed: str) -> list[str]:
    """The values, where an option's allowed ones are listed one by one."""
    found = allowed.removeprefix("text, or ").split(", ")
    listed = len(found) > 1 and "text" not in found
    return found if listed and all(re.fullmatch(r"\w+", value) for value in found) else []


def _array(name: str, entries: dict[str, list[str]]) -> str:
    lines = "".join(f"    [{key!r}]={_lines(found)}\n" for key, found in entries.items() if found)
    return f"declare -gA _flowlab_{name}=(\n{lines})\n"


def _lines(words) -> str:
    """Words as bash quotes them, one a line."""
    return "$'" + r"\n".join(words) + "'"
