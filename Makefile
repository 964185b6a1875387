# make serve   the example chat on all cores; examples/chat/guests.py brings company from other addresses
# make test    everything: style, docs, all tests
# make style   lint, format, types
# make docs    the documentation, docs/_build/html
# make bench   the speed of sticky-session beside its peers, in half an hour: RESULTS.md and BUS.md in benchmarks/, and
#              plots; bench-quick takes less than three and only prints
# make screenshot  the picture of the example chat in the README
# make clean   remove what the others made
#
# What is missing is installed: Python packages into .venv, npm packages beside their package.json, Debian packages
# with apt-get. What can't be installed is an error.

PYTHON ?= python3
# Debian has daemons where a user's PATH may not lead.
export PATH := $(PATH):/usr/sbin:/sbin
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
BIN := .venv/bin
# pytest rewrites the tests once, not in each of its processes each time.
unexport PYTHONDONTWRITEBYTECODE
# Hundreds of Node's clients through real proxies: they get the cores to themselves.
CROWDS := tests/integration/test_proxied_clients.py tests/integration/test_proxied_connections.py

# $(call need,COMMAND,DEBIAN PACKAGES): have the command, or install the packages that bring it.
need = command -v $(1) >/dev/null || { $(apt-get) $(2) && command -v $(1) >/dev/null; }
apt-get = $(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -qq -y --no-install-recommends

.PHONY: serve test style docs bench bench-quick screenshot clean
.DELETE_ON_ERROR:

serve: .venv/example.stamp examples/chat/node_modules/.stamp
	$(BIN)/sticky-session serve --chdir examples/chat app:app

# The servers that tests start write no bytecode; they find it.
test: style docs .venv/test.stamp .venv/tools.stamp .venv/proxies.stamp tests/clients/node_modules/.stamp examples/chat/node_modules/.stamp
	$(BIN)/python -m compileall -q sticky_session tests/apps
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile $(CROWDS:%=--ignore %)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(CROWDS)

style: .venv/style.stamp .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs.stamp
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

bench: .venv/test.stamp .venv/bench.stamp .venv/tools.stamp
	$(BIN)/python benchmarks/parsers.py
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/bus.py

bench-quick: .venv/test.stamp .venv/bench.stamp
	$(BIN)/python benchmarks/run.py --quick

screenshot: .venv/test.stamp .venv/tools.stamp examples/chat/node_modules/.stamp
	fc-match Inter | grep -q Inter || { $(apt-get) fonts-inter; }
	$(BIN)/python tests/integration/screenshot.py

clean:
	rm -rf .venv docs/_build build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	rm -rf tests/clients/node_modules examples/chat/node_modules benchmarks/peers/node_modules benchmarks/build
	rm -f examples/chat/chat.sqlite3*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# On Debian ensurepip, which venv needs, is a package of its own.
.venv/created.stamp:
	rm -rf .venv
	$(PYTHON) -c 'import ensurepip' || { $(apt-get) python3-venv; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

.venv/installed.stamp: .venv/created.stamp setup.cfg setup.py
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/bench.stamp .venv/test.stamp .venv/style.stamp .venv/docs.stamp: .venv/%.stamp: .venv/installed.stamp
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

.venv/example.stamp: .venv/installed.stamp examples/chat/requirements.txt
	$(BIN)/python -m pip install --quiet -r examples/chat/requirements.txt
	touch $@

# The programs that tests run, beside what is a part of every Debian.
.venv/tools.stamp: .venv/created.stamp Makefile
	$(call need,cc,gcc libc6-dev)
	$(call need,curl,curl)
	$(call need,redis-check-rdb,redis-tools)
	$(call need,chromium,chromium)
	touch $@

# The proxies that tests put before a server. Their packages start a daemon each on a machine with an init system, unless
# there is a policy-rc.d(8) that forbids it.
POLICY := /usr/sbin/policy-rc.d
.venv/proxies.stamp: .venv/created.stamp
	test -e $(POLICY) || { \
		printf '#!/bin/sh\nexit 101\n' | $(SUDO) install -m 755 /dev/stdin $(POLICY); \
		trap '$(SUDO) rm $(POLICY)' EXIT; \
	}; \
	{ $(call need,nginx,nginx); } && \
	{ test -e /usr/lib/nginx/modules/ngx_stream_module.so || { $(apt-get) libnginx-mod-stream; }; } && \
	{ $(call need,haproxy,haproxy); } && \
	{ $(call need,apache2,apache2-bin); } && \
	{ $(call need,caddy,caddy); }
	touch $@

%/node_modules/.stamp: %/package.json %/package-lock.json %/.npmrc
	$(call need,npm,nodejs npm)
	cd $* && npm ci --no-progress
	touch $@
