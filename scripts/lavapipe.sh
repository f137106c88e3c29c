#!/bin/sh
# Fetches a newer software Vulkan driver (Mesa's llvmpipe) into a folder; nothing is
# installed. For Debian 12 and its kin, where the packaged driver is Mesa 22.3.
#   lavapipe.sh 25 DIR     Mesa 25.0, of bookworm-backports: loads that lanes share
#   lavapipe.sh 26 DIR     Mesa 26, of trixie-backports: cooperative matrices, 8x8x8
# Then  DIR/run.sh PROGRAM ARGS...  runs a program on it. With 26 what PROGRAM starts
# in turn finds no driver, since only PROGRAM itself gets that suite's C library.
# Packages come from the archive that this machine's own sources name.
set -eu

case "${1:-} ${2:+DIR}" in
    "25 DIR") base=bookworm ;;
    "26 DIR") base=trixie ;;
    *) sed -n '2,8s/^# //p' "$0"; exit 2 ;;
esac
suite=$base-backports
mkdir -p "$2"
dir=$(cd "$2" && pwd)
work=$dir/fetch
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/debs" "$work/none"

# Also where sources are written in the older one-line format.
archive=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '/debian/$' | head -n 1)
[ -n "$archive" ] || { echo "no Debian archive among this machine's package sources" >&2; exit 1; }
key=/usr/share/keyrings/debian-archive-keyring.gpg
for s in $base $suite; do echo "deb [signed-by=$key] $archive $s main"; done >"$work/sources.list"
# An empty list of installed packages, so that all libraries are fetched.
: >"$work/status"
cat >"$work/apt.conf" <<C
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "$work/none";
Dir::Etc::preferencesparts "$work/none";
Dir::State::lists "$work/lists";
Dir::State::status "$work/status";
Dir::Cache "$work/cache";
Acquire::Languages "none";
APT::Install-Recommends "false";
APT::Sandbox::User "";
C
export APT_CONFIG="$work/apt.conf"
apt-get update -qq

cd "$work/debs"
apt-get install -y -qq --print-uris -t $suite mesa-vulkan-drivers libvulkan1 libc6 libstdc++6 |
    sed -n "s#^'.*/\([^/_]*\)_[^/]*' .*#\1#p" | sed 's/%2b/+/g' | sort -u |
    grep -Ev '^(adduser|base-files|coreutils|debconf|dpkg|init|perl|python|sensible|systemd|tar)' >../packages
# shellcheck disable=SC2046
apt-get download -qq -t $suite $(cat ../packages)
rm -rf "$dir/root"
for deb in *.deb; do dpkg-deb -x "$deb" "$dir/root"; done

machine=$(uname -m)-linux-gnu
libraries=$dir/root/usr/lib/$machine
driver=$libraries/libvulkan_lvp.so
[ -e "$driver" ] || { echo "the packages hold no $driver" >&2; exit 1; }
sed "s#\"library_path\": *\"[^\"]*\"#\"library_path\": \"$driver\"#" \
    "$dir"/root/usr/share/vulkan/icd.d/lvp_icd*.json >"$dir/driver.json"
loader=$(find "$dir/root" -name 'ld-linux*.so.*' | head -n 1)
[ -n "$loader" ] || { echo "the packages hold no program loader" >&2; exit 1; }
cat >"$dir/run.sh" <<R
#!/bin/sh
export VK_DRIVER_FILES="$dir/driver.json" VK_ICD_FILENAMES="$dir/driver.json"
export XDG_RUNTIME_DIR="\${XDG_RUNTIME_DIR:-/tmp}"
exec "$loader" --library-path "$libraries:$dir/root/lib/$machine" "\$@"
R
chmod +x "$dir/run.sh"
