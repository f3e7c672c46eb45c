# Everything a person does with this repository. `make demo` and `make test` set up
# what they need on a fresh Debian machine; see tests/provision.

.PHONY: demo test test-all bench lint

demo:
	tests/provision/provision --profile demo
	examples/demo/run

test:
	tests/provision/provision --profile test
	tests/run

test-all:
	tests/provision/provision --profile test
	tests/run --all

bench:
	tests/provision/provision --profile test
	tests/run --bench

lint:
	tests/run --lint
