# Sourced by quickstart.sh and test.sh: makes .venv from requirements/cpu.lock unless it is there, and checks the machine.
# Everything is installed into .venv; system packages only where they are missing and this user may install them.

say() { printf '\n== %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

need() {  # need COMMAND|LIBRARY.so.N|/FILE DEBIAN_PACKAGE
    case $1 in
        /*) [ ! -e "$1" ] || return 0 ;;
        *.so.*) ! /sbin/ldconfig -p | grep -q "$1" || return 0 ;;
        *) ! command -v "$1" >/dev/null || return 0 ;;
    esac
    local sudo=""
    [ "$(id -u)" = 0 ] || sudo="sudo -n"
    command -v apt-get >/dev/null && $sudo true 2>/dev/null || die "$1 is missing: install the package $2 (Debian, Ubuntu: sudo apt-get install $2)"
    say "installing $2"
    { $sudo apt-get -q update && DEBIAN_FRONTEND=noninteractive $sudo apt-get -q install -y --no-install-recommends "$2"; } >/dev/null ||
        die "$2 could not be installed: run 'sudo apt-get install $2' and look at what it says"
}

suits() {  # suits PYTHON: whether it is of a version that the lock is for
    [ -n "$1" ] && command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

find_python() {  # of several the fastest: how an interpreter was built makes a third of its speed; those with venv and headers first
    local candidate real round found="" took all=$'\n' said
    if [ -n "${PYTHON:-}" ]; then
        suits "$PYTHON" || die "PYTHON=$PYTHON is no Python 3.11 or 3.12: name another, or leave it out"
        command -v "$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3 /usr/bin/python3.11 /usr/bin/python3.12; do
        suits "$candidate" || continue
        case $(command -v "$candidate") in "$PWD"/.venv/*) continue ;; esac  # it is about to be removed
        real=$("$candidate" -c 'import os, sys; print(os.path.realpath(sys.executable))') && [ -n "$real" ] || continue
        [[ "$all" == *$'\n'"$real"$'\n'* ]] || all+="$real"$'\n'
    done
    all=${all#$'\n'}
    [ -n "$all" ] || die "Python 3.11 or 3.12 is needed: install it, or name it: PYTHON=/path/to/python3.11 bash $0"
    [ "$(wc -l <<<"${all%$'\n'}")" -gt 1 ] || { printf %s "$all"; return; }
    said=$(mktemp)
    for round in 1 2 3 4 5 6 7 8; do  # in turns, and the least counts: other work on the machine slows any one by half
        while read -r candidate; do
            took=$("$candidate" - 2>>"$said" <<-'MEASURE'
				import ast, importlib.util, os, sysconfig, timeit
				headers = os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h"))
				whole = headers and importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")
				source = "\n".join(f"def f{i}(a, b=({i}, 'x')):\n    return [a * {i} + len(b), *(str(c) for c in b if c != a)]" for i in range(40))
				work = lambda: [compile(source, "work", "exec"), *ast.walk(ast.parse(source))]
				print((0 if whole else 10**12) + int(1e8 * min(timeit.repeat(work, number=1, repeat=12))))
			MEASURE
            ) || continue
            found+="$took $candidate"$'\n'
        done <<<"${all%$'\n'}"
    done
    [ -n "$found" ] || die "none of these runs a program: ${all//$'\n'/ }($(tail -n 1 "$said"))"
    rm "$said"
    sort -n <<<"${found%$'\n'}" | sed -n '1s/^[0-9]* //p'
}

make_environment() {
    local lock=requirements/cpu.lock stamp python links torch
    stamp=$(sha256sum "$lock" | cut -c1-16)
    [ "$(cat .venv/stamp 2>/dev/null)" = "$stamp" ] && return
    say "making .venv from $lock (2.5 GB; one to five minutes)"
    python=$(find_python)
    rm -rf .venv
    "$python" -m venv .venv 2>/dev/null || { need_venv "$python"; rm -rf .venv; "$python" -m venv .venv; }
    .venv/bin/python -m pip install -q uv==0.13.8 || die "pip could not install uv: check the network and pip's index"
    # a folder of wheels that pip is configured to look into may hold torch; else it comes from PyTorch's own CPU index
    links=$(.venv/bin/python -m pip config list | sed -n "s/.*find-links='\(.*\)'/\1/p" | tail -n 1)
    torch=(--torch-backend cpu)
    ls "${links:-/nowhere}"/torch-*+cpu-*.whl >/dev/null 2>&1 && torch=(--find-links "$links")
    .venv/bin/uv pip install --python .venv/bin/python --no-deps --compile-bytecode "${torch[@]}" -r "$lock" -q \
        || die "the packages of $lock could not be installed: see above"
    .venv/bin/python requirements/name_vllm.py
    .venv/bin/uv pip install --python .venv/bin/python --no-deps -q -e . --config-settings editable_mode=compat \
        || die "this project could not be installed into .venv: see above"
    echo "$stamp" >.venv/stamp
}

need_venv() {
    local package
    package=$(basename "$(readlink -f "$1")")-venv
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || die "python's venv module is missing: sudo apt-get install $package"
    { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "$package"; } >/dev/null \
        || die "sudo apt-get install $package failed"
}

unset PYTHONDONTWRITEBYTECODE  # some containers set it: then every program compiles all that it imports, which takes vLLM half a minute
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
[ "$(uname -m)" = x86_64 ] || die "only x86-64 machines are supported: the CPU build of vLLM exists for no other"
[ "$(df -Pk . | awk 'NR==2 {print int($4 / 1048576)}')" -ge 5 ] || [ -x .venv/bin/python ] \
    || die "less than 5 GB are free here: the environment alone takes 2.5 GB"
need git git
need bwrap bubblewrap
need libnuma.so.1 libnuma1  # vLLM for CPUs is linked with it
need g++ g++  # vLLM compiles its sampling kernels at the first start
[ -e /dev/nvidia0 ] || export DS_ACCELERATOR=cpu  # else each program says that it looked for a GPU
make_environment
