#!/bin/sh
# Makes sure that the program finds an adapter: installs Mesa's software
# Vulkan driver where apt can, and says what to install elsewhere.
#   ensure-adapter.sh PATH_OF_DEMIST
set -eu
demist=$1

# GL alone does not count: it is slower and not what the tests were made for.
found() { "$demist" devices 2>/dev/null | grep -Eq 'via (vulkan|metal|dx12)'; }

found && exit 0
if [ "$(uname -s)" = Linux ] && command -v apt-get >/dev/null 2>&1; then
    echo "no GPU adapter found, installing the software Vulkan driver (mesa-vulkan-drivers)" >&2
    as_root=
    if [ "$(id -u)" != 0 ]; then
        as_root=sudo
        command -v sudo >/dev/null 2>&1 || {
            echo "run as root: apt-get install mesa-vulkan-drivers libvulkan1" >&2
            exit 1
        }
    fi
    $as_root apt-get update -qq
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        mesa-vulkan-drivers libvulkan1 >/dev/null
    found && exit 0
fi
cat >&2 <<'M'
no GPU adapter found. Install a Vulkan driver:
  Debian, Ubuntu   apt-get install mesa-vulkan-drivers libvulkan1   (includes a software driver)
  Fedora           dnf install mesa-vulkan-drivers vulkan-loader
  Arch             pacman -S vulkan-swrast vulkan-icd-loader
  Windows, macOS   the graphics driver brings DX12 or Metal
M
exit 1
