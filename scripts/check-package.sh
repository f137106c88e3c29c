#!/bin/sh
# Builds the program from what `cargo package` packs, outside of the repository, and runs
# it on a network that is shipped. Dependencies are taken from the target folder.
set -eu
cd "$(dirname "$0")/.."
CARGO=${CARGO:-cargo}
target=${CARGO_TARGET_DIR:-$PWD/target}

# Unpacked and built below: cargo's own check would build all dependencies anew.
$CARGO package --quiet --no-verify --allow-dirty --target-dir "$target"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
package=$target/package/demist-$version.crate
echo "$(tar -tzf "$package" | wc -l) files, $(($(wc -c <"$package") / 1024)) KiB"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
tar -xzf "$package" -C "$folder"
cd "$folder/demist-$version"
CARGO_TARGET_DIR=$target $CARGO build --release --locked --bin demist
"$target/release/demist" info assets/faces16.safetensors
