# Everything builds in the release profile, once.
CARGO ?= cargo
DEMIST = target/release/demist
# Mesa's driver complains on standard error without one.
export XDG_RUNTIME_DIR ?= /tmp

.PHONY: all demo test lint adapter networks

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

# Installs the software Vulkan driver where no GPU adapter is found.
adapter: all
	sh scripts/ensure-adapter.sh $(DEMIST)

# Trains the networks of assets/ anew into runs/networks.
networks: adapter
	sh scripts/train-networks.sh $(DEMIST)
