# Everything builds in the release profile, once.
CARGO ?= cargo
DEMIST = target/release/demist
# Mesa's driver complains on standard error without one.
export XDG_RUNTIME_DIR ?= /tmp

.PHONY: all demo test lint portable package adapter networks

all:
	$(CARGO) build --release

# Trains for a minute on the shipped faces, then draws from the shipped network.
demo: adapter
	$(DEMIST) demo $(DEMO_FLAGS)

test: adapter
	$(CARGO) test --release

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --release --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --no-deps

# The library with fewer features, and for browsers
# (`rustup target add wasm32-unknown-unknown`).
CLIPPY_LIB = $(CARGO) clippy --release --lib --no-default-features
portable:
	$(CLIPPY_LIB) -- -D warnings
	$(CLIPPY_LIB) --features files -- -D warnings
	$(CLIPPY_LIB) --features plots -- -D warnings
	$(CLIPPY_LIB) --target wasm32-unknown-unknown -- -D warnings

# What cargo packages builds and runs outside of the repository.
package:
	sh scripts/check-package.sh

# Installs the software Vulkan driver where no GPU adapter is found.
adapter: all
	sh scripts/ensure-adapter.sh $(DEMIST)

# Trains the networks of assets/ anew into runs/networks.
networks: adapter
	sh scripts/train-networks.sh $(DEMIST)
