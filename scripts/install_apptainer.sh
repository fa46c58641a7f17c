#!/usr/bin/env bash
# Installs Apptainer where it is missing: from this Debian or Ubuntu if it has the package, else (Debian 12) from Debian unstable with a
# C library of its own beside the system's, so that nothing else of the system changes. Root only; for machines that you own, and for tests.
set -euo pipefail
say() { printf '== %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

command -v apptainer >/dev/null && { apptainer --version; exit 0; }
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || die "apptainer is missing: https://apptainer.org/docs/admin/latest/installation.html"
export DEBIAN_FRONTEND=noninteractive
say "installing what Apptainer needs"
apt-get -q update >/dev/null
apt-get -q install -y --no-install-recommends squashfs-tools squashfuse fuse-overlayfs fuse3 uidmap patchelf fakeroot mmdebstrap >/dev/null \
    || die "apt-get could not install them: see above"
say "installing Apptainer"
if apt-cache show apptainer >/dev/null 2>&1; then
    apt-get -q install -y --no-install-recommends apptainer >/dev/null
else
    mirror=${MIRROR:-$(bash "$(dirname "$0")/debian_mirror.sh")}
    [ -n "$mirror" ] || die "apt's sources name no Debian archive: set MIRROR to one that this machine reaches and that has unstable (sid)"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work"/{lists/partial,cache/archives/partial,debs,tree}
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$work/sources.list"
    apt=(apt-get -q -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
         -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
    "${apt[@]}" update >/dev/null
    (cd "$work/debs" && "${apt[@]}" download apptainer libc6 libseccomp2 libsqlite3-0 >/dev/null)
    for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$work/tree"; done
    own=/opt/apptainer/lib tree=$work/tree
    mkdir -p "$own" /usr/lib/x86_64-linux-gnu
    cp -a "$tree"/usr/lib/x86_64-linux-gnu/*.so* "$own/"
    cp -a "$tree/usr/lib/x86_64-linux-gnu/apptainer" /usr/lib/x86_64-linux-gnu/
    cp -a "$tree/etc/apptainer" /etc/
    for program in /usr/lib/x86_64-linux-gnu/apptainer/bin/starter "$tree/usr/bin/apptainer"; do
        patchelf --set-interpreter "$own/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$own" "$program"
    done
    cp -a "$tree/usr/bin/apptainer" /usr/bin/apptainer
    mkdir -p /var/lib/apptainer/mnt/{session,final,overlay,underlay}
fi
conf=/etc/apptainer/apptainer.conf
# a root without every capability (in a container) can't ask for all of them; without systemd, limits go through cgroupfs
[ -d /run/systemd/system ] || sed -i 's/^systemd cgroups = .*/systemd cgroups = no/' "$conf"
grep -q 'CapEff:[[:space:]]*000001ffffffffff' /proc/self/status || sed -i 's/^root default capabilities = .*/root default capabilities = no/' "$conf"
[ ! -e /dev/fuse ] || chmod 666 /dev/fuse  # what users mount images with
for file in /etc/subuid /etc/subgid; do grep -q ^root: $file || echo root:200000:65536 >>$file; done  # for `build --fakeroot` as root
apptainer --version
