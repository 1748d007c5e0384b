#!/usr/bin/env bash
# Make a virtual environment with the first suitable Python.
#   tools/make_venv.sh <folder> [<python>]
# A given Python is used or refused. An environment that works is kept.
set -euo pipefail

folder=$1
chosen=${2:-}

fit='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 15))'
complete='import ensurepip, venv'

if [[ -x $folder/bin/python ]] && "$folder/bin/python" -c "$fit; import pip" 2>/dev/null &&
    { [[ -z $chosen ]] || [[ $("$chosen" -c "import sys; print(sys.version)") == \
        $("$folder/bin/python" -c "import sys; print(sys.version)") ]]; }; then
    exit 0
fi

if [[ -n $chosen ]]; then
    candidates=("$chosen")
else
    candidates=(python3 python3.14 python3.13 python3.12 python3.11 python3.10)
fi

found='' incomplete='' seen=''
for candidate in "${candidates[@]}"; do
    version=$("$candidate" -c 'import platform; print(platform.python_version())' 2>/dev/null) || continue
    seen+=" $candidate ($version)"
    "$candidate" -c "$fit" 2>/dev/null || continue
    if "$candidate" -c "$complete" 2>/dev/null; then
        found=$candidate
        break
    fi
    incomplete=${incomplete:-$candidate}
done

if [[ -z $found && -n $incomplete ]]; then
    echo "$incomplete cannot make virtual environments: its venv module is missing." >&2
    echo "On Debian and Ubuntu: apt-get install python3-venv. Or name another: make PYTHON=/path/to/python3" >&2
    exit 1
elif [[ -z $found ]]; then
    echo "Python 3.10 to 3.14 is needed; found:${seen:- none of ${candidates[*]}}." >&2
    echo "Install one, or name one that is not on the PATH: make PYTHON=/path/to/python3" >&2
    exit 1
fi

echo "Making $folder with $found ($("$found" -c 'import platform; print(platform.python_version())'))"
"$found" -m venv --clear "$folder"
