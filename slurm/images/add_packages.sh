# add_packages.sh PACKAGES ROOT: Python packages into the environment of an image that is being made.
set -e
site=$2/opt/venv/lib/python3.11/site-packages
mkdir -p "$site" "$2/opt/venv/bin"
mv "$1/bin" "$1.bin"
link=''
if [ "$(stat -c %d "$1")" = "$(stat -c %d "$site")" ]; then link=-l; fi  # one file system: gigabytes that need no copy
cp -a $link --remove-destination "$1/." "$site"
for script in "$1.bin"/*; do  # their first line names the interpreter of the machine that installed them
    sed '1s|^#!.*python.*|#!/opt/venv/bin/python|' "$script" > "$2/opt/venv/bin/$(basename "$script")"
done
chmod 755 "$2/opt/venv/bin"/*
