# make eval · make test · make check · make bench · make gate · make docs: each sets up what it needs in .venv
PYTHON ?= python3
BIN := .venv/bin

.PHONY: eval test test-slow check bench gate gate-cifar10 baselines baselines-cifar10 zoo zoo-cifar10 docs clean

eval: .venv/.installed
	@echo "AutoAttack on digits-cnn-at, 355 images: about 25 s on one thread"
	$(BIN)/robustkit eval --model digits-cnn-at --attack autoattack --eps 0.2 --threads 1

test: .venv/.installed-test
	@echo "The quick tests, one worker a core: at most 10 minutes on two idle cores"
	$(BIN)/python -m pytest -n auto -m "not slow"

test-slow: .venv/.installed-test
	@echo "The slow tests: some take many minutes each, hours in all"
	$(BIN)/python -m pytest -n auto -m slow

check: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.installed-test
	$(BIN)/python -m benchmarks.peers

# The bundled networks against their baselines; `make baselines` writes these anew when an attack has changed. Those of
# adversarially trained networks ask what their cards say: AutoAttack. `gate-cifar10` needs CIFAR-10, as `zoo-cifar10`.
GATE = $(BIN)/robustkit gate --quiet --baseline reports/baselines
SUITE := (apgd:steps=20)+(apgd:loss=dlr-targeted,steps=20,targets=3)+(square:queries=200)
WRITE = $(GATE)/$(1).json --update --model $(1) --eps $(2) --device cpu --threads 1 --tile 64

gate: .venv/.installed
	$(GATE)/digits-cnn.json
	$(GATE)/digits-cnn-at.json
	$(GATE)/digits-trades.json

baselines: .venv/.installed
	$(call WRITE,digits-cnn,0.1) --attack "$(SUITE)"
	$(call WRITE,digits-cnn-at,0.2) --attack autoattack
	$(call WRITE,digits-trades,0.2) --attack autoattack

gate-cifar10: .venv/.installed
	$(GATE)/cifar10-resnet8.json
	$(GATE)/cifar10-resnet8-at.json

baselines-cifar10: .venv/.installed
	$(call WRITE,cifar10-resnet8,8/255) --attack autoattack -n 200
	$(call WRITE,cifar10-resnet8-at,8/255) --attack autoattack -n 200

# The bundled networks, each by its own command; `zoo-cifar10` needs CIFAR-10 (ROBUSTKIT_DATA, ROBUSTKIT_KIT, or fetched).
# What others learn from comes first.
ZOO := digits-cnn digits-cnn-at digits-trades digits-teacher digits-distillation digits-dverge digits-self-ensemble \
  digits-fusion scenes-background scenes-foreground scenes-cnn scenes-cnn-at scenes-trades scenes-teacher \
  scenes-distillation scenes-dverge scenes-self-ensemble scenes-fusion
MAKE_ZOO = for name in $(1); do $(BIN)/python -m tools.zoo.make $$name || exit 1; done

zoo: .venv/.installed
	$(call MAKE_ZOO,$(ZOO))

zoo-cifar10: .venv/.installed
	$(call MAKE_ZOO,cifar10-resnet8 cifar10-resnet8-at)

docs: .venv/.installed .venv-docs/.installed
	$(BIN)/python docs/build_pages.py
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

.venv-docs/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m venv .venv-docs
	.venv-docs/bin/python -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; print(*extras["docs"], sep="\n")' > .venv-docs/wanted.txt
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r .venv-docs/wanted.txt
	touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "robustkit needs Python 3.11 or newer; say which: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv .venv

# Nothing is compiled beforehand: Python does that when it first imports a module, and most of torch never is.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --editable

.venv/.installed: pyproject.toml | .venv/bin/python
	@echo "Setting up .venv: torch and twelve small packages, by far the most of it torch; needs 6 GB of disk with CUDA"
	$(INSTALL) .
	touch $@

.venv/.installed-test: pyproject.toml | .venv/bin/python
	@echo "Setting up .venv for the tests: also other libraries of models, data and attacks; a few minutes"
	$(INSTALL) '.[test]'
	touch $@ .venv/.installed

clean:
	rm -rf .venv .venv-docs build site dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
